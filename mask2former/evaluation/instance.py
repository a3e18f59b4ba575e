"""Average precision of instances (COCO), from files."""

import contextlib
import io
import json
import os
from pathlib import Path

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..errors import DatasetError

# The order of COCOeval.stats.
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def average_precision(
    gt_json: str | os.PathLike, pred_json: str | os.PathLike, *, iou_type: str = "segm"
) -> dict[str, float]:
    """Score COCO results against COCO instances.

    Args:
        gt_json: COCO instances json.
        pred_json: COCO results: a list of ``image_id``, ``category_id``, ``score`` and
            ``segmentation`` or ``bbox``.
        iou_type: ``segm`` or ``bbox``.

    Returns:
        COCO's twelve figures in [0, 1], NaN where there is no object of that size.

    Raises:
        DatasetError: a file is missing or malformed, or names a picture that the other does not.
    """
    predictions = _read(pred_json)
    if not isinstance(predictions, list):
        raise DatasetError(f"{pred_json} is no COCO results json: it must hold a list")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = _read(gt_json)
        try:
            truth.createIndex()
            unknown = {result["image_id"] for result in predictions} - set(truth.getImgIds())
        except (KeyError, TypeError) as error:
            raise DatasetError(
                f"{gt_json} is no COCO instances json, or {pred_json} no results: {error!r}"
            ) from error
        if unknown:
            raise DatasetError(
                f"{pred_json} has results for {len(unknown)} pictures that {gt_json} does not "
                f"have, such as image id {min(unknown)}; compare with the set it was made for"
            )
        if not predictions:  # COCO.loadRes takes no empty list
            return dict.fromkeys(FIGURES, 0.0)
        key = {"segm": "segmentation", "bbox": "bbox"}[iou_type]
        if any(key not in result for result in predictions):
            raise DatasetError(f"{pred_json} has results without {key!r}; choose another IoU type")
        evaluation = COCOeval(truth, truth.loadRes(predictions), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # COCOeval says -1 where nothing is to be found.
    return {
        name: float(value) if value > -1 else float("nan")
        for name, value in zip(FIGURES, evaluation.stats, strict=True)
    }


def _read(path: str | os.PathLike) -> object:
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist") from error
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path} is no valid JSON: {error}") from error
