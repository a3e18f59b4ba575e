"""Panoptic quality of COCO panoptic annotations (Kirillov et al., CVPR 2019), from files."""

import os
import re
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from hotcoco.panoptic import PanopticEval

from ..data.panoptic_png import rgb2id
from ..data.picture import read_label_map
from ..errors import DatasetError
from .boundary import boundary_pixels
from .quality import GROUPS, Segments, count_matches, panoptic_figures, sum_counts
from .report import percent_table, read_json

FIGURES = ("pq", "sq", "rq")


def panoptic_quality(
    gt_json: str | os.PathLike,
    pred_json: str | os.PathLike,
    gt_folder: str | os.PathLike,
    pred_folder: str | os.PathLike,
    *,
    boundary: bool = False,
) -> dict[str, Any]:
    """Compare two sets of COCO panoptic annotations.

    Predictions for pictures that the ground truth does not have are passed over.

    Args:
        boundary: also match segments by the smaller of mask IoU and boundary IoU (Boundary PQ).

    Returns:
        The groups and classes of :func:`.quality.panoptic_figures`; with ``boundary`` the same
        once more under ``boundary``.

    Raises:
        DatasetError: a file is missing, or predictions and ground truth do not fit together.
    """
    categories, truth = _read(gt_json)
    for category in categories:
        if not {"id", "name", "isthing"} <= category.keys():
            raise DatasetError(f"{gt_json}: category {category} needs an id, a name and isthing")
    known = {category["id"] for category in categories}
    _, predictions = _read(pred_json)
    _check(gt_json, truth, gt_folder, known)
    _check(pred_json, predictions, pred_folder, known)
    missing = sorted(truth.keys() - predictions.keys())
    if missing:
        raise DatasetError(
            f"{pred_json} has no prediction for {len(missing)} pictures of {gt_json}, the first "
            f"being image id {missing[0]}; predict them too, if only with an empty segments_info"
        )
    pairs = [(annotation, predictions[id_]) for id_, annotation in truth.items()]
    folders = (gt_folder, pred_folder)
    try:
        result = panoptic_figures(_count(categories, pairs, folders), categories)
        if boundary:
            result["boundary"] = panoptic_figures(_count_boundaries(pairs, folders), categories)
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        if isinstance(error, DatasetError):
            raise
        # Pictures were numbered; say the id instead.
        message = re.sub(
            r"(?<=image )\d+", lambda n: str(pairs[int(n[0]) - 1][0]["image_id"]), str(error)
        )
        raise DatasetError(f"{pred_json} cannot be compared with {gt_json}: {message}") from error
    return result


Pair = tuple[Mapping[str, Any], Mapping[str, Any]]  # annotations of truth and prediction


def _count(
    categories: Sequence[Mapping[str, Any]],
    pairs: Sequence[Pair],
    folders: tuple[str | os.PathLike, str | os.PathLike],
) -> dict[int, np.ndarray]:
    """The counts of all pictures by category id, by hotcoco, which is compiled."""
    # It wants numbers for image ids, where Cityscapes has names.
    truth, prediction = (
        [{**pair[side], "image_id": number} for number, pair in enumerate(pairs, start=1)]
        for side in (0, 1)
    )
    evaluation = PanopticEval(
        {"annotations": truth, "categories": list(categories)},
        {"annotations": prediction},
        gt_folder=os.fspath(folders[0]),
        pred_folder=os.fspath(folders[1]),
    )
    evaluation.evaluate()
    per_class = evaluation.results()["per_class"]
    if any(counts["iou"] > counts["tp"] * (1 + 1e-9) for counts in per_class.values()):
        raise DatasetError(
            "areas of the ground-truth json are smaller than the segments of its PNGs, and "
            "panoptic quality counts on them; correct them (tools/check_dataset.py finds which)"
        )
    keys = ("iou", "tp", "fp", "fn")
    return {int(id_): np.array([c[key] for key in keys]) for id_, c in per_class.items()}


def _count_boundaries(
    pairs: Sequence[Pair], folders: tuple[str | os.PathLike, str | os.PathLike]
) -> dict[int, np.ndarray]:
    """The counts of all pictures by category id, matched by mask and boundary."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum_counts(pool.map(partial(_count_boundaries_of, folders=folders), pairs))


def _count_boundaries_of(
    pair: Pair, folders: tuple[str | os.PathLike, str | os.PathLike]
) -> dict[int, np.ndarray]:
    truth, prediction = (
        read_segments(os.path.join(folder, annotation["file_name"]), annotation["segments_info"])
        for annotation, folder in zip(pair, folders, strict=True)
    )
    edges = (boundary_pixels(truth.index), boundary_pixels(prediction.index))
    return count_matches(truth, prediction, edges)


def read_segments(path: str | os.PathLike, infos: Sequence[Mapping[str, Any]]) -> Segments:
    """The segments of a panoptic PNG, described by its ``segments_info``."""
    try:
        return Segments.from_ids(rgb2id(read_label_map(path)), infos)
    except ValueError as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path}: {error}; add the segment, or clear its pixels") from error


def pq_table(result: Mapping[str, Any], *, per_class: bool = True) -> str:
    """:func:`panoptic_quality`'s groups, and its classes if there are several."""
    tables = []
    for name, figures in (("", result), ("boundary", result.get("boundary"))):
        if figures is None:
            continue
        groups = {group: figures[group] for group in GROUPS}
        tables.append(percent_table(groups, FIGURES, first=name, last="n"))
        if per_class and len(figures["per_class"]) > 1:
            tables.append(percent_table(figures["per_class"], FIGURES, first=f"{name} class"))
    return "\n\n".join(tables)


def _read(path: str | os.PathLike) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]]]:
    """Categories, and annotations by image id, of a COCO panoptic json."""
    content = read_json(path)
    try:
        annotations: dict[int, dict[str, Any]] = {}
        for annotation in content["annotations"]:
            if annotation["image_id"] in annotations:
                raise DatasetError(
                    f"{path} has two annotations of image id {annotation['image_id']}; keep one"
                )
            annotations[annotation["image_id"]] = annotation
            for segment in annotation["segments_info"]:
                segment["id"], segment["category_id"]
            annotation["file_name"]
        return content.get("categories", []), annotations
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{path} is no COCO panoptic json ({error!r})") from error


def _check(
    path: str | os.PathLike,
    annotations: Mapping[int, dict[str, Any]],
    folder: str | os.PathLike,
    categories: Set[int],
) -> None:
    """What the scoring would pass over in silence, or call by no name of a file."""
    for image_id, annotation in annotations.items():
        png = Path(folder) / annotation["file_name"]
        if not png.is_file():
            raise DatasetError(
                f"{png} of image id {image_id} in {path} does not exist; check the folder of the "
                "PNG files"
            )
        seen = set()
        for segment in annotation["segments_info"]:
            where = f"{path}: segment {segment['id']} of image id {image_id}"
            if segment["category_id"] not in categories:
                raise DatasetError(
                    f"{where} has category_id {segment['category_id']}, which is not among the "
                    "categories of the ground truth; correct the segment, or add the category"
                )
            if segment["id"] in seen:
                raise DatasetError(f"{where} is listed twice; keep one")
            seen.add(segment["id"])
