#!/usr/bin/env python
"""Check the data sets of a config before training on them (docs/CHECK_DATASET.md).

    python tools/check_dataset.py configs/custom/nuts.yaml --output output/check [KEY VALUE ...]

Prints what there is and what is wrong with it, each finding with its file, its id and what to do;
writes ``findings.json`` and, for each data set, a sheet of pictures with their annotations drawn.
The exit status is 1 if there are errors, 0 if there is nothing or only warnings.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from PIL import Image

from mask2former import load_config
from mask2former.data import build_training_mapper, check_datasets
from mask2former.data.check import check_dataset
from mask2former.data.check.sheet import annotation_sheet
from mask2former.errors import ConfigError, positive, report_user_errors, whole_number
from mask2former.evaluation.report import save_json


def main() -> int:
    args = parse_arguments()
    cfg = load_config(args.config_file, args.opts)
    names = args.dataset or list(dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]))
    if not names:
        raise ConfigError("DATASETS.TRAIN and DATASETS.TEST name no data set to check")
    check_datasets(names)
    build_training_mapper(cfg)  # whether there is one of that name
    reports = []
    for name in names:
        report = check_dataset(name, cfg, read_pictures=not args.quick, workers=args.workers)
        reports.append(report)
        print(report.text(limit=None if args.all else 5), end="\n\n")
        sheet = annotation_sheet(
            name, report.records, image_format=cfg.INPUT.FORMAT, count=args.pictures
        )
        if sheet is not None:
            args.output.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sheet).save(args.output / f"{name}.png")
            print(f"annotations drawn in {args.output / name}.png")
    findings = {r.name: [dataclasses.asdict(f) for f in r.findings] for r in reports}
    save_json(findings, args.output / "findings.json")
    errors = sum(f.severity == "error" for r in reports for f in r.findings)
    warnings = sum(len(r.findings) for r in reports) - errors
    print(f"{errors} errors, {warnings} warnings; all in {args.output / 'findings.json'}")
    return int(errors > 0)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config_file", metavar="CONFIG")
    parser.add_argument(
        "--dataset", action="append", help="a name (repeatable); default: all of the config"
    )
    parser.add_argument("--output", type=Path, default=Path("output/check"), help="folder")
    parser.add_argument("--pictures", type=whole_number, default=8, help="how many to draw")
    parser.add_argument("--quick", action="store_true", help="open no picture but those drawn")
    parser.add_argument("--all", action="store_true", help="print all findings of a kind, not five")
    parser.add_argument("--workers", type=positive, help="threads (default: all cores)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the config")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    with report_user_errors():
        sys.exit(main())
