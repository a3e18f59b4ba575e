"""Average precision of instances (COCO) and its boundary form, from files."""

import contextlib
import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import hotcoco
import numpy as np
from hotcoco import mask as rle_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..data.check.masks import mask_fault
from ..data.formats import require
from ..errors import DatasetError
from .boundary import mask_boundary
from .report import percent_table, read_json

# The order of COCOeval.stats.
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
SHAPE_KEYS = {"segm": "segmentation", "bbox": "bbox", "boundary": "segmentation"}


def average_precision(
    gt_json: str | os.PathLike, pred_json: str | os.PathLike, *, iou_type: str = "segm"
) -> dict[str, Any]:
    """Score COCO results against COCO instances.

    Args:
        gt_json: COCO instances json.
        pred_json: COCO results: a list of ``image_id``, ``category_id``, ``score`` and
            ``segmentation`` (RLE) or ``bbox``.
        iou_type: ``segm``, ``bbox`` or ``boundary``, see :func:`score_instances`.

    Returns:
        See :func:`score_instances`.

    Raises:
        DatasetError: a file is missing or malformed, or names a picture or a category that the
            other does not, or a mask has another size than its picture.
    """
    truth, results = read_json(gt_json), read_json(pred_json)
    if not isinstance(results, list):
        raise DatasetError(f"{pred_json} is no COCO results json: it must hold a list")
    check_truth(gt_json, truth, iou_type)
    _check_results(pred_json, results, gt_json, truth, iou_type)
    return score_instances(truth, results, iou_type)


def score_instances(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], iou_type: str
) -> dict[str, Any]:
    """COCO's figures.

    Args:
        truth: the content of a COCO instances json. Its annotations are numbered anew: COCOeval
            takes an object of id 0 for one that no prediction found, and confuses objects that
            share an id; many tools count from 0.
        results: the content of a COCO results json.
        iou_type: ``segm`` and ``bbox`` by hotcoco; ``boundary``: masks that match by the smaller
            of mask IoU and boundary IoU (Cheng et al., CVPR 2021).

    Returns:
        The twelve :data:`FIGURES` in [0, 1] and ``per_class``, the AP by category name; NaN where
        there is no object of that size or class.
    """
    # Neither library takes names for image ids.
    numbers = {image["id"]: number for number, image in enumerate(truth["images"], start=1)}
    if all(isinstance(id_, int) for id_ in numbers):
        numbers = {id_: id_ for id_ in numbers}
    annotations = [
        {"iscrowd": 0, **annotation, "id": number, "image_id": numbers[annotation["image_id"]]}
        for number, annotation in enumerate(truth["annotations"], start=1)
        if annotation["image_id"] in numbers  # others count for nothing
    ]
    images = [{**image, "id": numbers[image["id"]]} for image in truth["images"]]
    truth = {"images": images, "annotations": annotations, "categories": truth["categories"]}
    # Given both, COCO.loadRes would take an object's size from its box; as Detectron2, take it from
    # the shape that is compared.
    keys = ("category_id", "score", SHAPE_KEYS[iou_type])
    results = [
        {"image_id": numbers[result["image_id"]], **{key: result[key] for key in keys}}
        for result in results
    ]
    evaluate = _evaluate_boundaries if iou_type == "boundary" else _evaluate
    stats, precision, category_ids = evaluate(truth, results, iou_type)
    names = {category["id"]: category["name"] for category in truth["categories"]}
    # (IoU thresholds, recalls, categories, sizes, numbers of detections); -1: nothing to be found.
    precision = np.where(precision[:, :, :, 0, -1] < 0, np.nan, precision[:, :, :, 0, -1])
    return {
        **{
            name: float(value) if value > -1 else float("nan")
            for name, value in zip(FIGURES, stats, strict=True)
        },
        "per_class": {names[id_]: _mean(precision[:, :, i]) for i, id_ in enumerate(category_ids)},
    }


def ap_table(result: Mapping[str, Any], name: str, *, per_class: bool = True) -> str:
    """The figures of :func:`score_instances`, in percent."""
    groups = {"AP": FIGURES[:6], "AR": FIGURES[6:]}
    tables = [percent_table({name: result}, columns) for columns in groups.values()]
    if per_class and len(result["per_class"]) > 1:
        rows = {class_name: {"AP": ap} for class_name, ap in result["per_class"].items()}
        tables.append(percent_table(rows, ("AP",), first=f"{name} class"))
    return "\n\n".join(tables)


Evaluation = tuple[np.ndarray, np.ndarray, Sequence[int]]  # stats, precision, category ids


def _evaluate(truth: dict[str, Any], results: list[dict[str, Any]], iou_type: str) -> Evaluation:
    coco = hotcoco.COCO(truth)
    evaluation = hotcoco.COCOeval(coco, coco.load_res(results), iou_type)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.run()
    return evaluation.stats, evaluation.eval["precision"], evaluation.params.cat_ids


def _evaluate_boundaries(
    truth: dict[str, Any], results: list[dict[str, Any]], iou_type: str
) -> Evaluation:
    with contextlib.redirect_stdout(io.StringIO()):
        coco, found = COCO(), COCO()
        coco.dataset, found.dataset = truth, {**truth, "annotations": []}
        coco.createIndex()
        found.createIndex()
        if results:  # loadRes takes no empty list
            found = coco.loadRes(results)
        evaluation = _BoundaryEval(coco, found, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats, evaluation.eval["precision"], evaluation.params.catIds


class _BoundaryEval(COCOeval):
    """COCOeval on the smaller of mask IoU and boundary IoU.

    Below COCO's lowest threshold the mask IoU decides alone, so that few boundaries are needed.
    Crowds are matched by mask.
    """

    def computeIoU(self, imgId: int, catId: int) -> Any:
        ious = super().computeIoU(imgId, catId)
        if not len(ious):
            return ious
        truth = [gt["segmentation"] for gt in self._gts[imgId, catId]]
        found = self._dts[imgId, catId]
        order = np.argsort([-dt["score"] for dt in found], kind="mergesort")  # as super() does it
        crowd = np.array([gt["iscrowd"] for gt in self._gts[imgId, catId]], bool)
        pairs = np.argwhere((ious >= self.params.iouThrs[0]) & ~crowd)
        edges = {j: _boundary_of_rle(truth[j]) for j in set(pairs[:, 1].tolist())}
        for i in set(pairs[:, 0].tolist()):
            edge = _boundary_of_rle(found[order[i]]["segmentation"])
            for j in pairs[pairs[:, 0] == i, 1].tolist():
                shared = np.count_nonzero(edge & edges[j])
                joint = np.count_nonzero(edge | edges[j])
                ious[i, j] = min(ious[i, j], shared / joint)
        return ious


def _boundary_of_rle(rle: Mapping[str, Any]) -> np.ndarray:
    """The boundary, (w, h) as RLE holds it."""
    return mask_boundary(rle_mask.decode(rle).T)


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def check_truth(path: str | os.PathLike, truth: Any, iou_type: str) -> None:
    """
    Raises:
        DatasetError: instances cannot be scored against this content of a COCO json.
    """
    lists = ("images", "annotations", "categories")
    if not isinstance(truth, dict) or not all(isinstance(truth.get(key), list) for key in lists):
        raise DatasetError(f"{path} is no COCO instances json: it must hold the lists {lists}")
    sized = () if iou_type == "bbox" else ("height", "width")
    for image in truth["images"]:
        require(path, "image", image, ("id", *sized))
    for category in truth["categories"]:
        require(path, "category", category, ("id", "name"))
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in truth["images"]}
    for annotation in truth["annotations"]:
        id_, image_id = (annotation.get(key) for key in ("id", "image_id"))
        where = f"{path}: annotation {id_} of image id {image_id}"
        for key in ("image_id", "category_id", "area", SHAPE_KEYS[iou_type]):
            if key not in annotation:
                raise DatasetError(f"{where} has no {key!r}; add it")
        if iou_type == "bbox" or image_id not in sizes:
            continue
        if not annotation["segmentation"]:
            raise DatasetError(f"{where} has no mask; add it, or remove the annotation")
        if fault := mask_fault(annotation["segmentation"], sizes[image_id]):
            raise DatasetError(f"{where}: {fault[1]}")


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
        if not isinstance(result["score"], int | float) or not math.isfinite(result["score"]):
            raise DatasetError(
                f"{path}: a result of image id {result['image_id']} has the score "
                f"{result['score']}; write a number"
            )
        if shape_key not in result:
            raise DatasetError(f"{path} has results without {shape_key!r}; choose another IoU type")
        where = f"{path}: a result of image id {result['image_id']}"
        if result["category_id"] not in categories:
            raise DatasetError(
                f"{where} has category_id {result['category_id']}, which {gt_json} does not know; "
                "results hold the data set's category ids, not indices from 0"
            )
        if iou_type != "bbox":
            image = images[result["image_id"]]
            size = [image.get("height"), image.get("width")]
            rle = result[shape_key]
            if not isinstance(rle, dict) or list(rle.get("size", ())) != size:
                raise DatasetError(
                    f"{where} has a segmentation that is no RLE of size {size} (height, width), "
                    f"the size of the picture in {gt_json}"
                )
