"""Pictures in whatever form people have them."""

import os

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from ..data.picture import RAW, read_picture

Picture = str | os.PathLike | Image.Image | np.ndarray | Tensor


def as_array(picture: Picture, image_format: str) -> np.ndarray:
    """A picture as the model takes it, (H, W, C) with channels as ``image_format`` says.

    Args:
        picture: a path; a PIL image (for ``raw``, with the channels it has); an array, (H, W, 3) or
            grey (H, W), uint8 in RGB; a tensor (3, H, W) or (1, H, W), uint8 in RGB. For the format
            ``raw`` arrays (H, W, C) and tensors (C, H, W) of any type, taken as they are.
        image_format: ``RGB``, ``BGR`` or ``raw``, see :func:`read_picture`.

    Raises:
        DatasetError: a path that cannot be read.
        TypeError, ValueError: an array of another type or shape; the message names it.
    """
    if isinstance(picture, str | os.PathLike):
        return read_picture(os.fspath(picture), image_format)
    if isinstance(picture, Image.Image):
        picture = _from_pil(ImageOps.exif_transpose(picture), image_format)
    elif isinstance(picture, Tensor):
        if picture.dim() != 3:
            raise ValueError(f"the picture's shape is {tuple(picture.shape)}, expected (C, H, W)")
        picture = picture.detach().cpu().permute(1, 2, 0).numpy()
    elif not isinstance(picture, np.ndarray):
        raise TypeError(
            f"a picture is a path, a PIL image, an array or a tensor, not {type(picture).__name__}"
        )
    array = picture[:, :, None] if picture.ndim == 2 else picture
    if array.ndim != 3 or not array.size:
        raise ValueError(f"the picture's shape is {picture.shape}, expected (H, W, C), all above 0")
    if image_format == RAW:
        return array.astype(np.float32, copy=False)
    return _rgb(array, image_format)


def _from_pil(picture: Image.Image, image_format: str) -> np.ndarray:
    if image_format == RAW:
        return np.asarray(picture)
    if picture.mode.startswith(("I", "F")):
        raise ValueError(
            f"the picture's mode is {picture.mode}: more than 8 bits; scale it to 0 to 255, or let "
            "a model of INPUT.FORMAT raw see it"
        )
    return np.asarray(picture.convert("RGB"))


def _rgb(array: np.ndarray, image_format: str) -> np.ndarray:
    if array.dtype != np.uint8:
        raise TypeError(
            f"the picture is {array.dtype}, expected uint8 from 0 to 255; scale it, for example "
            "(255 * picture).astype(numpy.uint8)"
        )
    if array.shape[2] == 1:
        array = array.repeat(3, axis=2)
    if array.shape[2] != 3:
        raise ValueError(
            f"the picture has {array.shape[2]} channels, expected 3 (RGB) or 1; drop alpha with "
            "picture[..., :3]"
        )
    return array if image_format == "RGB" else array[:, :, ::-1]
