"""Segment ids as COCO's panoptic PNG files store them: ``id = R + 256 G + 256^2 B``."""

import numpy as np


def rgb2id(rgb: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 -> (h, w) int32 ids in [0, 2^24)."""
    channels = rgb.astype(np.int32)
    return channels[..., 0] + 256 * channels[..., 1] + 256 * 256 * channels[..., 2]


def id2rgb(ids: np.ndarray) -> np.ndarray:
    """(h, w) ids in [0, 2^24) -> (h, w, 3) uint8."""
    little_endian = np.ascontiguousarray(ids, dtype="<i4")
    return np.ascontiguousarray(little_endian.view(np.uint8).reshape(*ids.shape, 4)[..., :3])
