#!/usr/bin/env python
"""ADE20K: panoptic segments in COCO's format: stuff of SceneParse150, things of the challenge."""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _prepare import (
    ADE20K_FOLDERS,
    ade20k_image,
    ade20k_instances,
    box_and_area,
    check_values,
    existing,
    paired,
    parse_args,
    picture_size,
    read_labels,
    report,
    run_jobs,
    save_json,
    save_picture,
)

from mask2former.data.builtin import load_categories
from mask2former.data.panoptic_png import id2rgb, rgb2id
from mask2former.errors import DatasetError, report_user_errors


def convert(
    picture: Path, semantic: Path, instances: Path, output: Path, *, visible: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the PNG; the picture's entry and its annotation.

    Things cover stuff where both are labelled. As published, the box and area of stuff are those
    before it was covered, which panoptic quality counts with; ``visible``: those of what is left.
    """
    size = picture_size(picture)
    image = ade20k_image(picture.stem, size)
    masks = stuff_masks(semantic, size) + ade20k_instances(instances, size)
    ids = np.zeros(size, dtype=np.int32)
    segments = []
    for class_id, mask in masks:
        segment_id = new_id(class_id, {segment["id"] for segment in segments})
        ids[mask] = segment_id
        box, area = box_and_area(mask)
        segments.append(
            {"id": segment_id, "category_id": class_id, "iscrowd": 0, "bbox": box, "area": area}
        )
    if visible:
        segments = [segment for segment in segments if (ids == segment["id"]).any()]
        for segment in segments:
            segment["bbox"], segment["area"] = box_and_area(ids == segment["id"])
    write_png(output, id2rgb(ids))
    annotation = {"image_id": image["id"], "file_name": output.name, "segments_info": segments}
    return image, annotation


def stuff_masks(path: Path, size: tuple[int, int]) -> list[tuple[int, np.ndarray]]:
    """Class and mask of each stuff class of a label map of SceneParse150."""
    labels = read_labels(path, size)
    check_values(path, labels, 150)
    things = {c["id"] for c in load_categories("ade20k_150") if c["isthing"]}
    classes = [int(value) - 1 for value in np.unique(labels) if value > 0]
    return [(c, labels == c + 1) for c in classes if c not in things]


def new_id(class_id: int, taken: set[int]) -> int:
    """The colour of the class as an id, or the next one that is free and not 0."""
    segment_id = int(rgb2id(np.asarray(load_categories("ade20k_150")[class_id]["color"])))
    while segment_id in taken or segment_id == 0:
        segment_id = (segment_id + 1) % 256**3
    return segment_id


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Unless it is there already. Another script's may hold other ids: compare."""
    try:
        done = path.exists() and np.array_equal(
            read_labels(path, pixels.shape[:2], channels=3), pixels
        )
    except DatasetError:
        done = False
    if not done:
        save_picture(path, pixels)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(
        __doc__,
        argv,
        ADE20K_FOLDERS,
        visible="boxes and areas of what things leave visible of stuff; unlike the published ones, "
        "so that PQ differs a little",
    )
    root = args.root / "ADEChallengeData2016"
    problems = []
    for split in args.splits:
        folder = ADE20K_FOLDERS[split]
        output = root / f"ade20k_panoptic_{split}"
        if output.with_suffix(".json").exists():
            continue
        inputs = [
            existing(root / "images" / folder, "the pictures"),
            existing(root / "annotations" / folder, "the label maps of SceneParse150"),
            existing(root / "annotations_instance" / folder, "those of the instance challenge"),
        ]
        stems, found = paired(*inputs)
        jobs = [
            (
                inputs[0] / f"{stem}.jpg",
                *(labels / f"{stem}.png" for labels in inputs[1:]),
                output / f"{stem}.png",
            )
            for stem in stems
        ]
        function = functools.partial(convert, visible=args.visible)
        results, failed = run_jobs(function, jobs, workers=args.workers, title=folder)
        problems += found + failed
        if found or failed:
            continue  # rather no json than one that lacks pictures
        content = {
            "images": [image for image, _ in results],
            "annotations": [annotation for _, annotation in results],
            "categories": load_categories("ade20k_150"),
        }
        save_json(output.with_suffix(".json"), content)
    return report(problems)


if __name__ == "__main__":
    with report_user_errors():
        sys.exit(main())
