"""Pictures of a data set with their annotations drawn."""

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
from .records import Record

SIDE = 640  # at which pictures are drawn on, in pixels


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
        except (DatasetError, ValueError, AssertionError, IndexError, KeyError):
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
    visualizer = Visualizer(image, metadata, scale=scale)
    if "segments_info" in record:
        ids = rgb2id(read_label_map(record["pan_seg_file_name"])).astype(np.int32)
        segments = [dict(s) | {"isthing": s.get("isthing", True)} for s in record["segments_info"]]
        drawn = visualizer.draw_panoptic_seg(torch.from_numpy(ids), segments, alpha=0.5)
    elif "annotations" in record:
        drawn = visualizer.draw_dataset_dict({"annotations": record["annotations"]})
    else:
        labels = read_label_map(record["sem_seg_file_name"])
        if "sem_seg_label_map" in record:
            ignore = metadata.get("ignore_label", 255)
            labels = apply_label_map(labels, record["sem_seg_label_map"], ignore)
        drawn = visualizer.draw_sem_seg(labels, alpha=0.5)
    return [shown, drawn.get_image()]
