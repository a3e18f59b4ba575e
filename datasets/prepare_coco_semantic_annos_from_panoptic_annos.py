#!/usr/bin/env python
"""COCO 2017: label maps of all 133 classes from the panoptic PNG files, for evaluating mIoU.

Classes count from 0 in the order of Detectron2's table; 255 is where nothing is labelled.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from _prepare import (
    existing,
    parse_args,
    read_labels,
    report,
    run_jobs,
    save_picture,
)

from mask2former.data.builtin import load_categories
from mask2former.data.formats import read_json
from mask2former.data.panoptic_png import rgb2id
from mask2former.errors import DatasetError, report_user_errors

IGNORE = 255


def convert(
    panoptic: Path, output: Path, size: tuple[int, int], categories: Mapping[int, int]
) -> None:
    """``categories``: the category of each segment id."""
    classes = {category["id"]: i for i, category in enumerate(load_categories("coco"))}
    ids, position = np.unique(rgb2id(read_labels(panoptic, size, channels=3)), return_inverse=True)
    table = np.full(len(ids), IGNORE, dtype=np.uint8)
    for i, segment_id in enumerate(ids.tolist()):
        if segment_id == 0:
            continue
        if categories.get(segment_id) not in classes:
            raise DatasetError(
                f"{panoptic}: segment {segment_id} has the category {categories.get(segment_id)}, "
                "which COCO's 133 classes do not have (None: the json does not list the segment)"
            )
        table[i] = classes[categories[segment_id]]
    save_picture(output, table[position].reshape(size))


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(__doc__, argv, ("val", "train"))
    root = args.root / "coco"
    problems = []
    for split in args.splits:
        folder = f"{split}2017"
        panoptic = existing(root / f"panoptic_{folder}", "the panoptic PNG files")
        output = root / f"panoptic_semseg_{folder}"
        path = existing(
            root / "annotations" / f"panoptic_{folder}.json", "the panoptic annotations"
        )
        content = read_json(str(path))
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        jobs = []
        for annotation in content["annotations"]:
            name, image_id = annotation["file_name"], annotation["image_id"]
            if image_id not in sizes:
                problems.append(f"{path}: {name} belongs to image id {image_id}, which it lacks")
            elif not (output / name).exists():
                categories = {s["id"]: s["category_id"] for s in annotation["segments_info"]}
                jobs.append((panoptic / name, output / name, sizes[image_id], categories))
        problems += run_jobs(convert, jobs, workers=args.workers, title=folder)[1]
    return report(problems)


if __name__ == "__main__":
    with report_user_errors():
        sys.exit(main())
