"""Pictures of a data set with their annotations drawn."""

import os
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.utils.visualizer import Visualizer

from ...errors import DatasetError
from ...inference.visualization import contact_sheet, displayable
from ..panoptic_png import rgb2id
from ..picture import apply_label_map, read_label_map, read_picture
from .masks import mask_fault
from .records import Record

SIDE = 640  # at which pictures are drawn on, in pixels
FONT_SIZE = 14  # of labels there, in points


def annotation_sheet(
    name: str, records: Sequence[Record], *, image_format: str, count: int
) -> np.ndarray | None:
    """``count`` pictures, evenly chosen, each beside its annotations; two to a row.

    Returns:
        (H, W, 3) uint8 RGB; None if no picture can be drawn.
    """
    rows: list[list[np.ndarray]] = [[]]
    chosen = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
    for index in chosen:
        try:
            pair = draw_annotations(records[index], name, image_format)
        except (DatasetError, ValueError, AssertionError, IndexError, KeyError, TypeError):
            continue  # the report says what is wrong with it
        if len(rows[-1]) == 4:
            rows.append([])
        rows[-1] += pair
    if not rows[0]:
        return None
    headings = ["picture", "annotations"] * (len(rows[0]) // 2)
    return contact_sheet(rows, headings=headings, cell=420)


def draw_annotations(record: Record, name: str, image_format: str) -> list[np.ndarray]:
    """The picture of a record, and the same with everything that is annotated in it."""
    metadata = MetadataCatalog.get(name)
    image = displayable(read_picture(record["file_name"], image_format), image_format)
    scale = SIDE / max(image.shape[:2])
    shown = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    write_name(shown, os.path.basename(record["file_name"]))
    visualizer = Visualizer(image, metadata, scale=scale)
    visualizer._default_font_size = FONT_SIZE / scale  # else illegible on small pictures
    if "segments_info" in record:
        ids = rgb2id(read_label_map(record["pan_seg_file_name"])).astype(np.int32)
        segments = [dict(s) | {"isthing": s.get("isthing", True)} for s in record["segments_info"]]
        drawn = visualizer.draw_panoptic_seg(torch.from_numpy(ids), segments, alpha=0.5)
    elif "annotations" in record:
        # What has no mask, or none that fits, cannot be drawn; the report says so.
        objects = [
            a
            for a in record["annotations"]
            if a.get("segmentation") is not None
            and "bbox" in a
            and mask_fault(a["segmentation"], image.shape[:2]) is None
        ]
        drawn = visualizer.draw_dataset_dict({"annotations": objects}) if objects else None
    else:
        labels = read_label_map(record["sem_seg_file_name"])
        if "sem_seg_label_map" in record:
            ignore = metadata.get("ignore_label", 255)
            labels = apply_label_map(labels, record["sem_seg_label_map"], ignore)
        drawn = visualizer.draw_sem_seg(labels, alpha=0.5)
    return [shown, shown if drawn is None else drawn.get_image()]


def write_name(image: np.ndarray, name: str) -> None:
    """Write a file's name into the lower left corner, dark on light."""
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, 1
    (width, height), base = cv2.getTextSize(name, font, 0.7, thickness)
    bottom = image.shape[0]
    image[max(bottom - height - base - 8, 0) :, : width + 10] = 255
    origin = (5, bottom - base - 4)
    cv2.putText(image, name, origin, font, 0.7, (0, 0, 0), thickness, cv2.LINE_AA)
