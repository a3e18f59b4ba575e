#!/usr/bin/env python
"""ADE20K (2021_17_01): pictures of at most 512 pixels on the shorter side, 847 classes in 16 bits.

Label maps are 16-bit TIFF files that count from 0; 65535 is everything else.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from _prepare import (
    ADE20K_FOLDERS,
    existing,
    parse_args,
    read_labels,
    report,
    run_jobs,
    save_picture,
)

from mask2former.data.builtin import load_categories
from mask2former.data.picture import read_picture
from mask2former.errors import DatasetError, report_user_errors

SHORTER_SIDE = 512
IGNORE = 65535


def convert(source: Path, picture: Path, labels: Path) -> None:
    """``source`` is an official .jpg; its classes are in the _seg.png beside it."""
    # Red and green hold the object's number, blue tells instances apart.
    pixels = read_picture(str(source), "RGB")
    segments = read_labels(
        source.with_name(f"{source.stem}_seg.png"), pixels.shape[:2], channels=3
    ).astype(np.int32)
    classes = class_table()[segments[..., 0] // 10 * 256 + segments[..., 1]]
    size = new_size(*pixels.shape[:2])
    if size is not None:
        pixels = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR)
        classes = cv2.resize(classes, size[::-1], interpolation=cv2.INTER_NEAREST)
    # Pillow's default quality, as published: results stay comparable.
    save_picture(picture, pixels)
    save_picture(labels, classes)


def class_table() -> np.ndarray:
    """The class of each number of an object, (65536,) uint16."""
    table = np.full(65536, IGNORE, dtype=np.uint16)
    for class_id, category in enumerate(load_categories("ade20k_full_847")):
        table[category["id"]] = class_id
    return table


def new_size(height: int, width: int) -> tuple[int, int] | None:
    """Height and width, if the picture is too large."""
    shorter = min(height, width)
    if shorter <= SHORTER_SIDE:
        return None
    if width >= height:
        return SHORTER_SIDE, round(width / float(height) * SHORTER_SIDE)
    return round(height / float(width) * SHORTER_SIDE), SHORTER_SIDE


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(__doc__, argv, ADE20K_FOLDERS)
    root = args.root / "ADE20K_2021_17_01"
    problems = []
    for split in args.splits:
        folder = ADE20K_FOLDERS[split]
        source = existing(root / "images" / "ADE" / folder, "the pictures and their _seg.png files")
        pictures = sorted(source.rglob("*.jpg"))
        if not pictures:
            raise DatasetError(f"{source.absolute()} has no picture (.jpg) in any folder below")
        jobs = []
        for picture in pictures:
            output = root / "images_detectron2" / folder / picture.name
            labels = root / "annotations_detectron2" / folder / f"{picture.stem}.tif"
            if not (output.exists() and labels.exists()):
                jobs.append((picture, output, labels))
        problems += run_jobs(convert, jobs, workers=args.workers, title=folder)[1]
    return report(problems)


if __name__ == "__main__":
    with report_user_errors():
        sys.exit(main())
