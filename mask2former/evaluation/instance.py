"""Average precision of instances (COCO), from files."""

import contextlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..errors import DatasetError

# The order of COCOeval.stats.
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
SHAPE_KEYS = {"segm": "segmentation", "bbox": "bbox"}


def average_precision(
    gt_json: str | os.PathLike, pred_json: str | os.PathLike, *, iou_type: str = "segm"
) -> dict[str, float]:
    """Score COCO results against COCO instances.

    Args:
        gt_json: COCO instances json.
        pred_json: COCO results: a list of ``image_id``, ``category_id``, ``score`` and
            ``segmentation`` (RLE) or ``bbox``.
        iou_type: ``segm`` or ``bbox``.

    Returns:
        COCO's twelve figures in [0, 1], NaN where there is no object of that size.

    Raises:
        DatasetError: a file is missing or malformed, or names a picture or a category that the
            other does not, or a mask has another size than its picture.
    """
    truth, results = _read(gt_json), _read(pred_json)
    if not isinstance(results, list):
        raise DatasetError(f"{pred_json} is no COCO results json: it must hold a list")
    _check_truth(gt_json, truth, iou_type)
    _check_results(pred_json, results, gt_json, truth, iou_type)
    if iou_type == "segm":
        # COCO.loadRes would take an object's size from its box, where there is one; as Detectron2,
        # take it from the mask.
        results = [{k: v for k, v in result.items() if k != "bbox"} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_index(truth), _index(truth, results), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # COCOeval says -1 where nothing is to be found.
    return {
        name: float(value) if value > -1 else float("nan")
        for name, value in zip(FIGURES, evaluation.stats, strict=True)
    }


def number_annotations(truth: COCO) -> None:
    """Give the annotations of a ground truth the ids 1, 2, ...

    COCOeval takes an object of id 0 for one that no prediction found, and confuses objects that
    share an id; many tools count from 0.
    """
    for number, annotation in enumerate(truth.dataset.get("annotations", ()), start=1):
        annotation["id"] = number
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()


def _index(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]] | None = None) -> COCO:
    """pycocotools' view of the ground truth, or of results on its pictures."""
    coco = COCO()
    coco.dataset = dict(truth) if results is None else {**truth, "annotations": []}
    number_annotations(coco)
    return coco.loadRes(results) if results else coco  # loadRes takes no empty list


def _check_truth(path: str | os.PathLike, truth: Any, iou_type: str) -> None:
    lists = ("images", "annotations", "categories")
    if not isinstance(truth, dict) or not all(isinstance(truth.get(key), list) for key in lists):
        raise DatasetError(f"{path} is no COCO instances json: it must hold the lists {lists}")
    for annotation in truth["annotations"]:
        annotation.setdefault("iscrowd", 0)
        for key in ("image_id", "category_id", "area", SHAPE_KEYS[iou_type]):
            if key not in annotation:
                raise DatasetError(
                    f"{path}: annotation {annotation.get('id')} of image id "
                    f"{annotation.get('image_id')} has no {key!r}; add it"
                )


def _check_results(
    path: str | os.PathLike,
    results: Sequence[Any],
    gt_json: str | os.PathLike,
    truth: Mapping[str, Any],
    iou_type: str,
) -> None:
    shape_key = SHAPE_KEYS[iou_type]
    for number, result in enumerate(results):
        for key in ("image_id", "category_id", "score"):
            if not isinstance(result, dict) or key not in result:
                raise DatasetError(
                    f"{path} is no COCO results json: result {number} has no {key!r}"
                )
    images = {image["id"]: image for image in truth["images"]}
    unknown = [result["image_id"] for result in results if result["image_id"] not in images]
    if unknown:
        raise DatasetError(
            f"{path} has results for {len(set(unknown))} pictures that {gt_json} does not have, "
            f"such as image id {unknown[0]}; compare with the set it was made for"
        )
    categories = {category["id"] for category in truth["categories"]}
    for result in results:
        if shape_key not in result:
            raise DatasetError(f"{path} has results without {shape_key!r}; choose another IoU type")
        where = f"{path}: a result of image id {result['image_id']}"
        if result["category_id"] not in categories:
            raise DatasetError(
                f"{where} has category_id {result['category_id']}, which {gt_json} does not know; "
                "results hold the data set's category ids, not indices from 0"
            )
        if iou_type == "segm":
            image = images[result["image_id"]]
            size = [image.get("height"), image.get("width")]
            rle = result[shape_key]
            if not isinstance(rle, dict) or list(rle.get("size", ())) != size:
                raise DatasetError(
                    f"{where} has a segmentation that is no RLE of size {size} (height, width), "
                    f"the size of the picture in {gt_json}"
                )


def _read(path: str | os.PathLike) -> Any:
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    except ValueError as error:  # no JSON, or no text at all
        raise DatasetError(f"{path} is no valid JSON: {error}") from error
