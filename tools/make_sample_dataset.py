#!/usr/bin/env python
"""Make the sample data set, offline: `python tools/make_sample_dataset.py [FOLDER]`.

FOLDER/catalog.yaml then describes the data sets sample_train and sample_val (DATASETS.CATALOG).
"""

import argparse
from pathlib import Path

from mask2former.data.sample import generate_sample_dataset
from mask2former.errors import positive, report_user_errors, whole_number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "root", nargs="?", type=Path, default=Path("output/sample"), metavar="FOLDER"
    )
    parser.add_argument("--train", type=positive, default=400, help="number of training pictures")
    parser.add_argument("--val", type=positive, default=80, help="number of validation pictures")
    parser.add_argument("--seed", type=whole_number, default=0, help="another seed, other pictures")
    args = parser.parse_args()
    root = generate_sample_dataset(
        args.root, num_train=args.train, num_val=args.val, seed=args.seed
    )
    print(f"{args.train} + {args.val} pictures; the data sets are described by {root}/catalog.yaml")


if __name__ == "__main__":
    with report_user_errors():
        main()
