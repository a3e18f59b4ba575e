#!/usr/bin/env python
"""COCO-Stuff 10K v1.0: pictures by split, and label maps of 171 classes from the .mat files.

Classes count from 0; 255 is where nothing is labelled. Needs h5py.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io
from _prepare import (
    existing,
    parse_args,
    picture_size,
    report,
    run_jobs,
    save_picture,
    write_whole,
)

from mask2former.errors import DatasetError, report_user_errors

# In the files, 1 is "unlabeled" and 2 the first class.
FIRST, LAST = 1, 172


def convert(source: Path, annotation: Path, picture: Path, labels: Path) -> None:
    values = read_label_matrix(annotation)
    size = picture_size(source)
    if values.shape != size:
        raise DatasetError(
            f"{annotation} has {values.shape[0]} x {values.shape[1]} labels (height x width), but "
            f"its picture is {size[0]} x {size[1]}"
        )
    if values.min() < FIRST or values.max() > LAST:
        raise DatasetError(
            f"{annotation} has labels from {values.min()} to {values.max()}, but v1.0 has {FIRST} "
            f"to {LAST}; v1.1 numbers its classes differently: download v1.0"
        )
    write_whole(picture, lambda part: shutil.copyfile(source, part))
    # 1, not labelled, wraps around to 255
    save_picture(labels, values.astype(np.uint8) - np.uint8(2))


def read_label_matrix(path: Path) -> np.ndarray:
    """The variable ``S`` of a MATLAB file of either kind, (h, w)."""
    try:
        return scipy.io.loadmat(path, variable_names=["S"])["S"]
    except NotImplementedError:  # version 7.3, an HDF5 file
        pass
    except (ValueError, KeyError) as error:
        raise DatasetError(f"{path} is no MATLAB file with a label map S ({error})") from error
    try:
        import h5py
    except ImportError as error:
        raise DatasetError(f"{path} needs h5py to be read: pip install h5py") from error
    with h5py.File(path) as file:
        return np.asarray(file["S"]).T  # MATLAB stores columns first


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(__doc__, argv, ("train", "test"))
    root = args.root / "coco" / "coco_stuff_10k"
    problems = []
    for split in args.splits:
        names = existing(root / "imageLists" / f"{split}.txt", "the pictures' names").read_text()
        pictures = existing(root / "images", "the pictures")
        annotations = existing(root / "annotations", "the .mat files")
        jobs = []
        for name in names.split():
            output = root / "images_detectron2" / split / f"{name}.jpg"
            labels = root / "annotations_detectron2" / split / f"{name}.png"
            if not (output.exists() and labels.exists()):
                jobs.append((pictures / f"{name}.jpg", annotations / f"{name}.mat", output, labels))
        problems += run_jobs(convert, jobs, workers=args.workers, title=split)[1]
    return report(problems)


if __name__ == "__main__":
    with report_user_errors():
        sys.exit(main())
