"""Small regions of label maps."""

import numpy as np
from scipy import ndimage


def replace_small_regions(labels: np.ndarray, least_area: int) -> np.ndarray:
    """Give each connected region under ``least_area`` pixels the label of the nearest other pixel.

    That fills holes and removes islands at once: a region is what hangs together by its pixels'
    sides and has one label, and no label at all is a label, too.

    Args:
        labels: (H, W) integers from 0 on, or bool.

    Returns:
        A new map of the same type; where no region is large enough, an equal one.
    """
    numbers = labels.astype(np.int32) + 1
    small = np.zeros(labels.shape, dtype=bool)
    for label, place in enumerate(ndimage.find_objects(numbers), start=1):
        if place is None:
            continue
        regions, count = ndimage.label(numbers[place] == label)
        areas = np.bincount(regions.ravel(), minlength=count + 1)
        areas[0] = least_area  # the other labels
        small[place] |= (areas < least_area)[regions]
    if not small.any() or small.all():
        return labels.copy()
    nearest = ndimage.distance_transform_edt(small, return_distances=False, return_indices=True)
    return labels[tuple(nearest)]
