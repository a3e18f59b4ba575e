#!/usr/bin/env python
"""ADE20K: the 100 things of the instance challenge, from its label maps to COCO's format."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
from _prepare import (
    ADE20K_FOLDERS,
    ade20k_image,
    ade20k_instances,
    box_and_area,
    existing,
    paired,
    parse_args,
    picture_size,
    report,
    run_jobs,
    save_json,
)

from mask2former.data.builtin import load_categories
from mask2former.errors import report_user_errors


def convert(picture: Path, labels: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The picture's entry, and the annotations of its objects, without ids."""
    size = picture_size(picture)
    image = ade20k_image(picture.stem, size)
    annotations = []
    for class_id, mask in ade20k_instances(labels, size):
        rle = pycocotools.mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        box, area = box_and_area(mask)
        annotations.append(
            {
                "image_id": image["id"],
                "category_id": class_id,
                "iscrowd": 0,
                "bbox": box,
                "area": area,
                "segmentation": {"size": list(size), "counts": rle["counts"].decode("ascii")},
            }
        )
    return image, annotations


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(__doc__, argv, ADE20K_FOLDERS)
    root = args.root / "ADEChallengeData2016"
    problems = []
    for split in args.splits:
        folder = ADE20K_FOLDERS[split]
        output = root / f"ade20k_instance_{split}.json"
        if output.exists():
            continue
        pictures = existing(root / "images" / folder, "the pictures")
        labels = existing(
            root / "annotations_instance" / folder, "the label maps of the instance challenge"
        )
        stems, found = paired(pictures, labels)
        jobs = [(pictures / f"{stem}.jpg", labels / f"{stem}.png") for stem in stems]
        results, failed = run_jobs(convert, jobs, workers=args.workers, title=folder)
        problems += found + failed
        if found or failed:
            continue  # rather no json than one that lacks pictures
        annotations = [annotation for _, objects in results for annotation in objects]
        content = {
            "images": [image for image, _ in results],
            "annotations": [{"id": i, **a} for i, a in enumerate(annotations, start=1)],
            "categories": load_categories("ade20k_instance_100"),
        }
        save_json(output, content)
    return report(problems)


if __name__ == "__main__":
    with report_user_errors():
        sys.exit(main())
