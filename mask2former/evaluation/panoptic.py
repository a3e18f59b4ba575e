"""Panoptic quality (Kirillov et al., Panoptic Segmentation, CVPR 2019)."""

import contextlib
import io
import itertools
import json
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from hotcoco.panoptic import pq_compute
from PIL import Image
from tabulate import tabulate

from ..data.panoptic_png import id2rgb
from ..errors import DatasetError

logger = logging.getLogger(__name__)


class PanopticEvaluator(DatasetEvaluator):
    """PQ, SQ and RQ of the model's ``panoptic_seg``, against a COCO panoptic json with its PNGs."""

    def __init__(self, *, dataset_name: str, output_dir: str | os.PathLike | None = None) -> None:
        """
        Args:
            dataset_name: its metadata has ``panoptic_json``, ``panoptic_root`` and the contiguous
                ids of things and stuff.
            output_dir: where to keep the predictions in COCO's format; None: nowhere.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name = dataset_name
        self.gt_json, self.gt_folder = metadata.panoptic_json, metadata.panoptic_root
        self.thing_ids = _inverse(metadata.thing_dataset_id_to_contiguous_id)
        self.stuff_ids = _inverse(metadata.stuff_dataset_id_to_contiguous_id)
        self.output_dir = output_dir
        self.reset()

    def reset(self) -> None:
        self.predictions: list[tuple[dict[str, Any], bytes]] = []  # annotation, PNG file

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Take a batch of records and the model's outputs for them."""
        for record, output in zip(inputs, outputs, strict=True):
            ids, segments = output["panoptic_seg"]
            ids = ids.cpu().numpy()
            if segments is None:
                ids, segments = self._decode_labels(ids)
            annotation = {
                "image_id": record["image_id"],
                "file_name": Path(record["file_name"]).stem + ".png",
                "segments_info": [self._with_dataset_id(segment) for segment in segments],
            }
            with io.BytesIO() as buffer:
                # Compression is most of the cost of a PNG, and these are read once.
                Image.fromarray(id2rgb(ids)).save(buffer, format="PNG", compress_level=1)
                self.predictions.append((annotation, buffer.getvalue()))

    def _decode_labels(self, labels: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Detectron2's encoding without segments: class * label_divisor + instance, -1 is void."""
        label_divisor = MetadataCatalog.get(self.dataset_name).label_divisor
        segments = []
        for label in np.unique(labels[labels >= 0]).tolist():
            class_id = label // label_divisor
            segments.append(
                {"id": label + 1, "category_id": class_id, "isthing": class_id in self.thing_ids}
            )
        return labels + 1, segments

    def _with_dataset_id(self, segment: Mapping[str, Any]) -> dict[str, Any]:
        if "isthing" not in segment:  # as in Detectron2: the model gives the data set's ids
            return dict(segment)
        kind, ids = ("thing", self.thing_ids) if segment["isthing"] else ("stuff", self.stuff_ids)
        class_id = segment["category_id"]
        if class_id not in ids:
            raise DatasetError(
                f"the model predicts class {class_id} as {kind}, which data set "
                f"{self.dataset_name} does not have (its {kind} classes: {sorted(ids)}); evaluate "
                "on the classes that the model was trained on"
            )
        return {**segment, "category_id": ids[class_id]}

    def evaluate(self) -> OrderedDict | None:
        """``{"panoptic_seg": {PQ, SQ, RQ, PQ_th, ..., PQ_st, ..., PQ-<class>}}`` in percent.

        NaN for a group or class that occurs nowhere. None on all but the main worker.
        """
        comm.synchronize()
        gathered = comm.gather(self.predictions)
        if not comm.is_main_process():
            return None
        with contextlib.ExitStack() as stack:
            folder = self.output_dir or stack.enter_context(tempfile.TemporaryDirectory())
            pred_json = Path(folder) / "predictions.json"
            pred_folder = Path(folder) / "panoptic_png"
            pred_folder.mkdir(parents=True, exist_ok=True)
            annotations: dict[str, dict[str, Any]] = {}  # by file name
            for annotation, png in itertools.chain.from_iterable(gathered):
                file_name = annotation["file_name"]
                if file_name in annotations:  # pictures of different folders may share a name
                    file_name = f"{Path(file_name).stem}_{annotation['image_id']}.png"
                annotations[file_name] = annotation | {"file_name": file_name}
                (pred_folder / file_name).write_bytes(png)
            pred_json.write_text(json.dumps({"annotations": list(annotations.values())}))
            result = panoptic_quality(self.gt_json, pred_json, self.gt_folder, pred_folder)
        logger.info("Panoptic quality:\n%s", pq_table(result))
        return OrderedDict(panoptic_seg=_in_percent(result))


def panoptic_quality(
    gt_json: str | os.PathLike,
    pred_json: str | os.PathLike,
    gt_folder: str | os.PathLike,
    pred_folder: str | os.PathLike,
) -> dict[str, Any]:
    """Compare two sets of COCO panoptic annotations.

    Predictions for pictures that the ground truth does not have are passed over.

    Returns:
        ``All``, ``Things``, ``Stuff``: ``pq``, ``sq``, ``rq`` in [0, 1] (NaN for an empty group)
        and ``n``, the number of classes that occur; ``per_class``: the same without ``n`` by class
        name, NaN for a class that does not occur.

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
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            scores = pq_compute(*map(os.fspath, (gt_json, pred_json, gt_folder, pred_folder)))
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise DatasetError(f"{pred_json} cannot be compared with {gt_json}: {error}") from error
    names = {category["id"]: category["name"] for category in categories}
    result: dict[str, Any] = {
        group: _figures(scores[group], scores[group]["n"] > 0) | {"n": scores[group]["n"]}
        for group in ("All", "Things", "Stuff")
    }
    result["per_class"] = {
        names[int(id_)]: _figures(figures, figures["tp"] + figures["fp"] + figures["fn"] > 0)
        for id_, figures in scores["per_class"].items()
    }
    return result


def pq_table(result: Mapping[str, Any]) -> str:
    """The three groups of :func:`panoptic_quality`, in percent."""
    rows = [
        [group, *(100 * result[group][key] for key in ("pq", "sq", "rq")), result[group]["n"]]
        for group in ("All", "Things", "Stuff")
    ]
    return tabulate(rows, headers=["", "PQ", "SQ", "RQ", "classes"], floatfmt=".3f")


def _figures(figures: Mapping[str, float], occurs: bool) -> dict[str, float]:
    return {key: figures[key] if occurs else float("nan") for key in ("pq", "sq", "rq")}


def _in_percent(result: Mapping[str, Any]) -> dict[str, float]:
    """Detectron2's names of the figures."""
    figures = {}
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for key in ("pq", "sq", "rq"):
            figures[key.upper() + suffix] = 100 * result[group][key]
    for name, class_figures in result["per_class"].items():
        figures[f"PQ-{name}"] = 100 * class_figures["pq"]
    return figures


def _inverse(mapping: Mapping[int, int]) -> dict[int, int]:
    return {contiguous: id_ for id_, contiguous in mapping.items()}


def _read(path: str | os.PathLike) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]]]:
    """Categories, and annotations by image id, of a COCO panoptic json."""
    try:
        content = json.loads(Path(path).read_text())
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
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist") from error
    except DatasetError:
        raise
    except (OSError, ValueError) as error:  # unreadable, no JSON, no text at all
        raise DatasetError(f"{path} is no COCO panoptic json ({error})") from error
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
