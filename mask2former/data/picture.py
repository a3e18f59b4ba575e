"""Reading pictures and label maps, with errors that name the file."""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import detection_utils
from PIL import Image

from ..errors import DatasetError

RAW = "raw"
"""The ``INPUT.FORMAT`` of pictures of any depth and number of channels."""


def read_picture(path: str, image_format: str) -> np.ndarray:
    """Read a picture.

    Args:
        image_format: ``RGB`` or ``BGR``: as Detectron2 reads it (EXIF rotation applied), (h, w, 3)
            uint8. ``raw``: channels and values as they are stored, (h, w, C) float32; PNG and other
            formats of OpenCV, TIFF, or npy.

    Raises:
        DatasetError: the file is missing, truncated or no picture, or would lose values.
    """
    if image_format == RAW:
        return _read_raw(path)
    return _read(path, image_format)


def read_label_map(path: str) -> np.ndarray:
    """Read a label map, (h, w) or (h, w, 3) for a panoptic PNG, unconverted; a picture or npy.

    Raises:
        DatasetError: the file is missing, truncated or no picture.
    """
    if Path(path).suffix.lower() != ".npy":
        labels = _read(path, None)
        return labels.astype(np.uint8) if labels.dtype == bool else labels
    labels = _read_raw(path)
    if labels.shape[2] != 1:
        raise DatasetError(
            f"{path} has {labels.shape[2]} channels; a label map has one, (height, width)"
        )
    return labels[:, :, 0].astype(np.int64)


def apply_label_map(labels: np.ndarray, label_map: Mapping[int, int], ignore: int) -> np.ndarray:
    """Replace the values of a label map; values not among ``label_map`` become ``ignore``."""
    low, high = min(label_map), max(label_map)
    table = np.full(high - low + 2, ignore)
    for value, class_id in label_map.items():
        table[value - low] = class_id
    outside = (labels < low) | (labels > high)
    return table[np.where(outside, high + 1, labels) - low]


def _read_raw(path: str) -> np.ndarray:
    suffix = Path(path).suffix.lower()
    if not Path(path).is_file():
        raise DatasetError(f"{path} does not exist")
    try:
        if suffix == ".npy":
            image = np.load(path, allow_pickle=False)
        elif suffix in (".tif", ".tiff"):
            image = _read_tiff(path)
        else:
            image = cv2.imread(path, cv2.IMREAD_UNCHANGED)
            if image is None:
                raise ValueError("OpenCV knows no such picture")
            if image.ndim == 3:  # OpenCV's order is blue, green, red, alpha
                image = image[:, :, [2, 1, 0, *range(3, image.shape[2])]]
        image = np.atleast_3d(image).astype(np.float32)
        if image.ndim != 3 or not image.size:
            raise ValueError(f"its shape is {image.shape}, not (height, width, channels)")
        if not np.isfinite(image).all():
            raise ValueError("it holds NaN or infinity; give such pixels a number")
    except Exception as error:  # decoders of damaged files raise all sorts
        raise DatasetError(
            f"{path} cannot be read as a picture ({str(error).strip()}); replace the file or leave "
            "it out (of a data set, remove its entry)"
        ) from error
    return image


def _read_tiff(path: str) -> np.ndarray:
    try:
        import tifffile
    except ImportError as error:
        raise DatasetError(
            f"{path} is read with tifffile, which is not installed; pip install tifffile"
        ) from error
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        image, axes = series.asarray(), series.axes
    if image.ndim == 3 and axes.endswith("YX"):  # planes, or a page each
        return image.transpose(1, 2, 0)
    return image


def _read(path: str, image_format: str | None) -> np.ndarray:
    try:
        if image_format is not None:
            with Image.open(path) as file:
                if file.mode.startswith(("I", "F")):  # Pillow would clip the values at 255
                    raise DatasetError(
                        f"{path} has more than 8 bits a pixel; set INPUT.FORMAT {RAW}, with "
                        "MODEL.PIXEL_MEAN and PIXEL_STD in the units of the picture"
                    )
        return detection_utils.read_image(path, format=image_format)
    except DatasetError:
        raise  # it is a ValueError, too
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist") from error
    except Image.DecompressionBombError as error:
        raise DatasetError(
            f"{path} has more pixels than Pillow decodes ({2 * Image.MAX_IMAGE_PIXELS:,}); cut "
            "it up, or segment it with tools/demo.py --tile or --max-memory, which have no limit"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DatasetError(
            f"{path} cannot be read as a picture ({error}); replace the file or leave it out (of a "
            "data set, remove its entry)"
        ) from error
