"""Segment ids as COCO's panoptic PNG files store them: ``id = R + 256 G + 256^2 B``."""

import numpy as np


def rgb2id(rgb: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 -> (h, w) int32 ids in [0, 2^24)."""
    channels = rgb.astype(np.int32)
    return channels[..., 0] + 256 * channels[..., 1] + 256 * 256 * channels[..., 2]


def id2rgb(ids: np.ndarray) -> np.ndarray:
    """(h, w) ids in [0, 2^24) -> (h, w, 3) uint8."""
    return np.stack([(ids >> shift) & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
