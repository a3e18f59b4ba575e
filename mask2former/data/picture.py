"""Reading pictures and label maps, with errors that name the file."""

from collections.abc import Mapping

import numpy as np
from detectron2.data import detection_utils
from PIL import Image

from ..errors import DatasetError


def read_picture(path: str, image_format: str) -> np.ndarray:
    """Read a picture as Detectron2 does (EXIF rotation applied): (h, w, 3) uint8.

    Args:
        image_format: ``RGB`` or ``BGR``.

    Raises:
        DatasetError: the file is missing, truncated or no picture.
    """
    return _read(path, image_format)


def read_label_map(path: str) -> np.ndarray:
    """Read a label map, (h, w) or (h, w, 3) for a panoptic PNG, unconverted.

    Raises:
        DatasetError: the file is missing, truncated or no picture.
    """
    return _read(path, None)


def apply_label_map(labels: np.ndarray, label_map: Mapping[int, int], ignore: int) -> np.ndarray:
    """Replace the values of a label map; values not among ``label_map`` become ``ignore``."""
    table = np.full(max(int(labels.max(initial=0)), *label_map) + 1, ignore)
    for value, class_id in label_map.items():
        table[value] = class_id
    return table[labels]


def _read(path: str, image_format: str | None) -> np.ndarray:
    try:
        return detection_utils.read_image(path, format=image_format)
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(
            f"{path} cannot be read as a picture ({error}); replace the file or remove its "
            "entry from the annotations"
        ) from error
