"""Pictures of predictions, drawn by Detectron2's visualizer."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer

from ..data.picture import RAW
from ..modeling.postprocessing import semantic_labels

# The visualizer's labels are illegible on small pictures: those are enlarged to this side.
LEAST_SIDE = 480


def draw_prediction(
    image: np.ndarray, prediction: Mapping[str, Any], metadata: Metadata
) -> np.ndarray:
    """Draw the richest segmentation of a prediction over its picture.

    Args:
        image: (h, w, 3) uint8 RGB.
        prediction: the model's output for it: ``panoptic_seg``, ``instances`` or ``sem_seg``.

    Returns:
        (H, W, 3) uint8 RGB, of the same proportions and at least ``LEAST_SIDE`` on the short side.
    """
    image = enlarge(image)
    height, width = image.shape[:2]
    if "panoptic_seg" in prediction:
        ids, segments = prediction["panoptic_seg"]
        ids = enlarge_labels(ids.cpu().numpy(), (height, width))
        return draw_panoptic(image, ids, segments, metadata)
    if "instances" in prediction:
        instances = prediction["instances"].to("cpu")
        enlarged = Instances((height, width))
        masks = [
            enlarge_labels(mask.numpy().astype(np.uint8), (height, width))
            for mask in instances.pred_masks
        ]
        enlarged.pred_masks = np.stack(masks) if masks else np.zeros((0, height, width), np.uint8)
        enlarged.scores, enlarged.pred_classes = instances.scores, instances.pred_classes
        return Visualizer(image, metadata).draw_instance_predictions(enlarged).get_image()
    labels = semantic_labels(prediction["sem_seg"]).cpu().numpy()
    labels = enlarge_labels(labels, (height, width))
    return Visualizer(image, metadata).draw_sem_seg(labels).get_image()


def displayable(image: np.ndarray, image_format: str) -> np.ndarray:
    """A picture as :func:`read_picture` gives it, as (h, w, 3) uint8 RGB.

    Of a ``raw`` one, the first three channels (or the first) between their 1 % and 99 % quantiles.
    """
    if image_format != RAW:
        return image if image_format == "RGB" else image[:, :, ::-1]
    shown = image[:, :, :3] if image.shape[2] >= 3 else image[:, :, [0, 0, 0]]
    low, high = np.quantile(shown, (0.01, 0.99), axis=(0, 1))
    return ((shown - low) / np.maximum(high - low, 1e-9) * 255).clip(0, 255).astype(np.uint8)


def draw_panoptic(
    image: np.ndarray, ids: np.ndarray, segments: Sequence[Mapping[str, Any]], metadata: Metadata
) -> np.ndarray:
    """Draw segment ids (h, w) over a picture (h, w, 3) of the same size; RGB uint8."""
    ids = torch.from_numpy(ids.astype(np.int32))
    drawn = Visualizer(image, metadata).draw_panoptic_seg(ids, [dict(s) for s in segments])
    return drawn.get_image()


def enlarge(image: np.ndarray) -> np.ndarray:
    """Resize a picture with a shorter side under ``LEAST_SIDE`` to that side."""
    scale = LEAST_SIDE / min(image.shape[:2])
    if scale <= 1:
        return np.ascontiguousarray(image)
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)


def enlarge_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a label map to (height, width) without mixing labels."""
    resized = cv2.resize(labels.astype(np.float64), size[::-1], interpolation=cv2.INTER_NEAREST)
    return resized.astype(labels.dtype)


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]], *, headings: Sequence[str] = (), cell: int = 300
) -> np.ndarray:
    """Lay pictures out in a grid: each row's pictures beside each other, on white.

    Args:
        rows: (h, w, 3) uint8 pictures of any size.
        headings: of the columns, plain ASCII.
        cell: side of a cell in pixels; pictures are shrunk to fit.

    Returns:
        (H, W, 3) uint8.
    """
    margin, top = 6, 30 if headings else 6
    columns = max(len(row) for row in rows)
    sheet = np.full(
        (len(rows) * (cell + margin) + top, columns * (cell + margin) + margin, 3),
        255,
        dtype=np.uint8,
    )
    for j, heading in enumerate(headings):
        origin = (margin + j * (cell + margin), 20)
        cv2.putText(
            sheet, heading, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA
        )
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            scale = cell / max(picture.shape[:2])
            picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            height, width = picture.shape[:2]
            y = top + i * (cell + margin) + (cell - height) // 2
            x = margin + j * (cell + margin) + (cell - width) // 2
            sheet[y : y + height, x : x + width] = picture
    return sheet
