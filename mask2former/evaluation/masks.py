"""Panoptic quality of class and instance masks, which many tools save side by side.

A description in JSON says which files there are (paths relative to it)::

    {"categories": [{"id": 1, "name": "person", "isthing": 1, "color": [0, 0, 255]}, ...],
     "void": 0,
     "pictures": [{"truth": {"instances": "team_gt.png", "classes": {"47": 1, "198": 2, "0": 0}},
                   "prediction": {"instances": "team_pred.png", "classes": "team_class.png"}}]}

A segment is what has the same class and the same value in ``instances``: a picture of one channel,
whose values are taken as they are stored, or a colour picture, of which the grey values are.
``classes`` is a picture, of grey values that are category ids or of the categories' colours, or it
says which class each value of ``instances`` has. ``void`` is the class of pixels that are no
segment; its colour is black, if that is no category's.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.panoptic_png import id2rgb, rgb2id
from ..errors import DatasetError
from .panoptic import panoptic_quality
from .report import read_json, save_json

SIDES = ("truth", "prediction")
NUMBERS = ("1", "L", "I;16", "I;16B", "I", "P")  # modes of pictures with one number a pixel


def panoptic_quality_of_masks(
    description: str | os.PathLike, *, boundary: bool = False
) -> dict[str, Any]:
    """
    Returns:
        See :func:`.panoptic.panoptic_quality`.

    Raises:
        DatasetError: a file is missing, or has a value or colour without a class.
    """
    with tempfile.TemporaryDirectory() as folder:
        for side in SIDES:
            _convert(Path(description), side, Path(folder))
        jsons = [Path(folder) / f"{side}.json" for side in SIDES]
        folders = [Path(folder) / side for side in SIDES]
        return panoptic_quality(*jsons, *folders, boundary=boundary)


def _convert(description: Path, side: str, folder: Path) -> None:
    """Write one side's COCO panoptic json and PNG files."""
    content = read_json(description)
    try:
        categories, void, pictures = (content[k] for k in ("categories", "void", "pictures"))
        colors = {tuple(c["color"]): c["id"] for c in categories if "color" in c}
        entries = [(picture[side]["instances"], picture[side]["classes"]) for picture in pictures]
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{description} is no description of masks: {error!r}") from error
    colors.setdefault((0, 0, 0), void)
    annotations = []
    (folder / side).mkdir()
    for number, (instance_file, classes) in enumerate(entries, start=1):
        instances = _numbers(description.parent / instance_file)
        if isinstance(classes, str):
            path = description.parent / classes
            class_ids = _classes_of_picture(path, colors)
        else:
            path = description.parent / instance_file
            class_ids = _look_up(instances, {int(k): v for k, v in classes.items()}, path)
        if class_ids.shape != instances.shape:
            raise DatasetError(f"{path} has another size than {instance_file}")
        pairs, segments = np.unique(
            np.stack([class_ids.ravel(), instances.ravel()], axis=1), axis=0, return_inverse=True
        )
        is_segment = pairs[:, 0] != void
        ids = (np.arange(1, len(pairs) + 1) * is_segment)[segments.reshape(instances.shape)]
        Image.fromarray(id2rgb(ids)).save(folder / side / f"{number}.png")
        infos = [
            {
                "id": i + 1,
                "category_id": int(pairs[i, 0]),
                "area": int((ids == i + 1).sum()),
                "iscrowd": 0,
            }
            for i in np.flatnonzero(is_segment).tolist()
        ]
        annotation = {"image_id": number, "file_name": f"{number}.png", "segments_info": infos}
        annotations.append(annotation)
    save_json({"categories": categories, "annotations": annotations}, folder / f"{side}.json")


def _classes_of_picture(path: Path, colors: Mapping[Sequence[int], int]) -> np.ndarray:
    with _open(path) as picture:
        if picture.mode in NUMBERS:
            return np.asarray(picture).astype(np.int64)
        values = {int(rgb2id(np.array(color))): id_ for color, id_ in colors.items()}
        return _look_up(rgb2id(np.asarray(picture.convert("RGB"))), values, path)


def _numbers(path: Path) -> np.ndarray:
    """The stored values of a picture of one channel, the grey values of one with colours."""
    with _open(path) as picture:
        if picture.mode in NUMBERS:
            return np.asarray(picture).astype(np.int64)
        rgb, grey = (np.asarray(picture.convert(mode)).astype(np.int64) for mode in ("RGB", "L"))
    if len(np.unique(rgb2id(rgb))) != len(np.unique(grey)):
        raise DatasetError(
            f"{path} has colours of the same grey value, and instances are told apart by that; "
            "write them as numbers, in a picture of one channel"
        )
    return grey


def _look_up(values: np.ndarray, classes: Mapping[int, int], path: Path) -> np.ndarray:
    found, inverse = np.unique(values, return_inverse=True)
    if unknown := sorted(set(found.tolist()) - classes.keys()):
        raise DatasetError(
            f"{path} has value {unknown[0]} (of a colour: R + 256 G + 65536 B), to which the "
            "description gives no class; add it to classes or categories"
        )
    return np.array([classes[value] for value in found.tolist()])[inverse].reshape(values.shape)


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (OSError, SyntaxError) as error:
        raise DatasetError(f"{path} cannot be read as a picture ({error})") from error
