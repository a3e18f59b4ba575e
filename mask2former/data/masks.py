"""Ground-truth masks through the transforms of a picture.

Nearest-neighbour resizing, cropping and padding act on every pixel alone. So what is the same for
many masks is done once: segments travel as numbers in one map, bitmaps as the bits of bytes.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import pycocotools.mask
from fvcore.transforms.transform import TransformList

from .panoptic_png import id2rgb, rgb2id

Segmentation = list | dict | np.ndarray
"""Polygons ``[[x0, y0, x1, y1, ...], ...]`` in pixels, COCO RLE, or an (h, w) bitmap."""


def transform_segments(
    ids: np.ndarray, segment_ids: Sequence[int], transforms: TransformList
) -> np.ndarray:
    """The masks of segments after ``transforms``, which pad label maps with 0 or 255.

    Args:
        ids: (h, w) segment ids, at most 2^24 - 1.
        segment_ids: which of them are wanted.

    Returns:
        (n, H, W) bool.
    """
    numbers = range(1, len(segment_ids) + 1)  # 0: none of them
    few = len(segment_ids) < 255
    table = np.zeros(1 << 24, np.uint8 if few else np.int32)
    table[list(segment_ids)] = numbers
    labels = table[ids]
    # Detectron2 resizes bytes as Pillow does, and other types in another way.
    moved = transforms.apply_segmentation(labels if few else id2rgb(labels))
    return masks_of(moved if few else rgb2id(moved), numbers)


def masks_of(labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """(h, w) labels -> (n, h, w) bool, a mask for each value."""
    masks = np.empty((len(values), *labels.shape), bool)
    for mask, value in zip(masks, values):
        np.equal(labels, value, out=mask)
    return masks


def transform_masks(
    segmentations: Sequence[Segmentation],
    transforms: TransformList,
    *,
    original_size: tuple[int, int],
    size: tuple[int, int],
) -> np.ndarray:
    """The masks of annotations after ``transforms``, which pad label maps with 0.

    Args:
        original_size: (height, width) of the picture, which a bitmap must have.
        size: (H, W) of the transformed picture.

    Returns:
        (n, H, W) bool.

    Raises:
        ValueError: a bitmap or RLE has another size than the picture.
    """
    masks = np.empty((len(segmentations), *size), bool)
    bitmaps = {}
    for i, segmentation in enumerate(segmentations):
        if isinstance(segmentation, list):
            # Corners outside of a crop stay where they are: drawing them cuts the polygon exactly,
            # and unlike fvcore's cropping of polygons needs no geometry library.
            polygons = [
                transforms.apply_coords(np.asarray(polygon, dtype=np.float64).reshape(-1, 2))
                for polygon in segmentation
            ]
            masks[i] = draw_polygons(polygons, size)
        else:
            bitmaps[i] = decode(segmentation, original_size)
    positions = list(bitmaps)
    for start in range(0, len(positions), 8):
        group = positions[start : start + 8]
        packed = np.zeros(original_size, np.uint8)
        for bit, i in enumerate(group):
            packed |= bitmaps[i] << np.uint8(bit)
        packed = transforms.apply_segmentation(packed)
        for bit, i in enumerate(group):
            np.not_equal(packed & np.uint8(1 << bit), 0, out=masks[i])
    return masks


def decode(segmentation: dict | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A bitmap of ``size``, (h, w) uint8 of zeros and ones."""
    if isinstance(segmentation, dict):
        segmentation = _decode(segmentation)
    if segmentation.shape != size:
        raise ValueError(
            f"a mask of its annotations is {segmentation.shape[1]} x {segmentation.shape[0]}"
        )
    return segmentation.astype(bool).view(np.uint8)


def draw_polygons(polygons: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """The union of polygons, (n, 2) x and y in pixels each, as (h, w) bool."""
    if not len(polygons):
        return np.zeros(size, dtype=bool)
    rles = pycocotools.mask.frPyObjects([polygon.ravel().tolist() for polygon in polygons], *size)
    return _decode(pycocotools.mask.merge(rles)).view(bool)


def _decode(rle: dict) -> np.ndarray:
    """(h, w) uint8, row by row: pycocotools writes columns, which numpy is slow to turn."""
    return cv2.transpose(pycocotools.mask.decode(rle).T)
