"""Boxes and masks of annotations: what is wrong with them, and how large they are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask
from detectron2.structures import BoxMode

# Boxes may leave the picture by this much: annotation tools round.
TOLERANCE = 1.0  # pixel

Fault = tuple[str, str]
"""Kind and message of a finding."""


def box_fault(
    box: Sequence[float] | None, mode: BoxMode | None, size: tuple[int, int]
) -> str | None:
    """What is wrong with a box in a picture of (height, width), and what to do, in words."""
    if box is None or len(box) != 4 or mode not in (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS):
        return None
    x0, y0, x1, y1 = box
    if mode == BoxMode.XYWH_ABS:
        x1, y1 = x0 + x1, y0 + y1
    height, width = size
    if not (x1 > x0 and y1 > y0):
        numbers = ", ".join(f"{value:g}" for value in box)
        return f"the box [{numbers}] has no area; correct it, or remove the annotation"
    # Written so that NaN fails, too.
    low, high = -TOLERANCE, TOLERANCE
    if x0 >= low and y0 >= low and x1 <= width + high and y1 <= height + high:
        return None
    return (
        f"the box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) leaves the picture of {width} x "
        f"{height} pixels; correct the box, or check that the annotations belong to this picture"
    )


def mask_fault(
    segmentation: list | Mapping[str, Any] | np.ndarray | None, size: tuple[int, int]
) -> Fault | None:
    """What is wrong with the form of a mask in a picture of (height, width)."""
    if segmentation is None:
        return None
    if isinstance(segmentation, list):
        return polygon_fault(segmentation)
    rle = isinstance(segmentation, Mapping)
    height, width = segmentation["size"] if rle else segmentation.shape
    if (height, width) != size:
        what = "RLE" if rle else "bitmap"
        return f"{what} of another size", (
            f"the {what} is {width} x {height} pixels, the picture {size[1]} x {size[0]}; encode "
            "the mask again at the size of the picture (COCO writes [height, width])"
        )
    if rle:
        runs = rle_runs(segmentation["counts"])
        if runs is None or min(runs, default=0) < 0 or sum(runs) != height * width:
            what = "are no RLE" if runs is None else f"cover {sum(runs)} pixels"
            return "damaged RLE", (
                f"its counts {what}, the picture has {height * width}; encode the mask again"
            )
    return None


def polygon_fault(polygons: list[list[float]]) -> Fault | None:
    bad = [p for p in polygons if len(p) < 6 or len(p) % 2]
    if not bad:
        return None
    rest = len(polygons) - len(bad)
    left = f"only the other {rest} of it count" if rest else "the object is left out of training"
    return "polygon of fewer than 3 points", (
        f"a polygon has {len(bad[0])} numbers, not an x and a y for each of 3 points or more: "
        f"{left}; draw it again, or remove it"
    )


def rle_runs(counts: str | bytes | list[int]) -> list[int] | None:
    """The runs of an RLE, background first; None if its text is none.

    COCO's text holds a run in characters of 5 bits, the lowest first, from ``0`` on; bit 5 says
    that the number goes on, bit 4 of its last character is its sign. From the fourth run on it is
    the difference to the run before the last.
    """
    if isinstance(counts, list):
        return counts
    runs: list[int] = []
    value = shift = 0
    for byte in counts.encode() if isinstance(counts, str) else counts:
        code = byte - 48
        if not 0 <= code < 64:
            return None
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs if shift == 0 else None


def mask_area(
    segmentation: list | Mapping[str, Any], size: tuple[int, int], *, expected: float
) -> float:
    """Pixels of a mask without faults.

    Args:
        size: (height, width) of the picture.
        expected: polygons whose areas add up to about this need not be drawn.
    """
    if not isinstance(segmentation, list):
        return sum(rle_runs(segmentation["counts"])[1::2])
    area = 0.0
    for polygon in segmentation:
        x, y = np.array(polygon).reshape(-1, 2).T
        area += abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
    if area and same_area(expected, area):
        return area
    # They overlap, or cross themselves, or the number is wrong.
    drawn = pycocotools.mask.frPyObjects(segmentation, *size)
    return float(pycocotools.mask.area(pycocotools.mask.merge(drawn)))


def same_area(stated: float, area: float) -> bool:
    """Whether two areas differ by no more than ways of drawing an outline do."""
    return abs(stated - area) <= max(0.1 * area, 2 * area**0.5)
