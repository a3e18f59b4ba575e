"""Boundaries of segments (Cheng et al., Boundary IoU, CVPR 2021).

The boundary of a mask are its pixels that lie within d of the mask's edge; the edge of the picture
is an edge of the mask. d is 2 % of the picture's diagonal, and distance is the larger of the
horizontal and the vertical one: d erosions with a 3 x 3 square, as the official code has it.
"""

import cv2
import numpy as np

DILATION_RATIO = 0.02


def boundary_width(height: int, width: int) -> int:
    """d of a picture, in pixels, at least 1."""
    return max(1, round(DILATION_RATIO * float(np.hypot(height, width))))


def boundary_pixels(labels: np.ndarray) -> np.ndarray:
    """The pixels of a label map that belong to the boundary of their own segment.

    A pixel is inside its segment if the square of side 2 d + 1 around it has one label only, which
    finds the boundaries of all segments at once.

    Args:
        labels: (h, w) uint8 or uint16; the largest value of the type must not occur.

    Returns:
        (h, w) bool.
    """
    outside = int(np.iinfo(labels.dtype).max)
    square = _square(*labels.shape)
    border = {"borderType": cv2.BORDER_CONSTANT, "borderValue": outside}
    return cv2.erode(labels, square, **border) != cv2.dilate(labels, square, **border)


def mask_boundary(mask: np.ndarray) -> np.ndarray:
    """The boundary of one mask: (h, w) uint8 of 0 and 1 -> (h, w) uint8 of 0 and 1."""
    return mask - cv2.erode(
        mask, _square(*mask.shape), borderType=cv2.BORDER_CONSTANT, borderValue=0
    )


def _square(height: int, width: int) -> np.ndarray:
    return np.ones((2 * boundary_width(height, width) + 1,) * 2, np.uint8)
