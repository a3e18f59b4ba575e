#!/usr/bin/env python
"""ADE20K, SceneParse150: label maps that count from 0, with 255 where nothing is labelled."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _prepare import (
    ADE20K_FOLDERS,
    check_values,
    existing,
    paired,
    parse_args,
    picture_size,
    read_labels,
    report,
    run_jobs,
    save_picture,
)

from mask2former.errors import report_user_errors


def convert(picture: Path, labels: Path, output: Path) -> None:
    values = read_labels(labels, picture_size(picture))
    check_values(labels, values, 150)
    save_picture(output, values - np.uint8(1))  # 0, not labelled, wraps around to 255


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(__doc__, argv, ADE20K_FOLDERS)
    root = args.root / "ADEChallengeData2016"
    problems = []
    for split in args.splits:
        folder = ADE20K_FOLDERS[split]
        pictures = existing(root / "images" / folder, "the pictures")
        labels = existing(root / "annotations" / folder, "the label maps of SceneParse150")
        output = root / "annotations_detectron2" / folder
        stems, alone = paired(pictures, labels)
        jobs = [
            (pictures / f"{stem}.jpg", labels / f"{stem}.png", output / f"{stem}.png")
            for stem in stems
            if not (output / f"{stem}.png").exists()
        ]
        problems += alone + run_jobs(convert, jobs, workers=args.workers, title=folder)[1]
    return report(problems)


if __name__ == "__main__":
    with report_user_errors():
        sys.exit(main())
