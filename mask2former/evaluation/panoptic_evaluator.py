"""Panoptic quality of a model's predictions."""

import contextlib
import io
import itertools
import json
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from PIL import Image

from ..data.panoptic_png import id2rgb
from ..errors import DatasetError
from .panoptic import panoptic_quality, pq_table
from .quality import GROUPS

logger = logging.getLogger(__name__)


class PanopticEvaluator(DatasetEvaluator):
    """PQ, SQ and RQ of the model's ``panoptic_seg``, against a COCO panoptic json with its PNGs."""

    def __init__(
        self,
        *,
        dataset_name: str,
        output_dir: str | os.PathLike | None = None,
        boundary: bool = False,
    ) -> None:
        """
        Args:
            dataset_name: its metadata has ``panoptic_json``, ``panoptic_root`` and the contiguous
                ids of things and stuff.
            output_dir: where to keep the predictions in COCO's format; None: nowhere.
            boundary: Boundary PQ, too.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name = dataset_name
        self.gt_json, self.gt_folder = metadata.panoptic_json, metadata.panoptic_root
        self.thing_ids = _inverse(metadata.thing_dataset_id_to_contiguous_id)
        self.stuff_ids = _inverse(metadata.stuff_dataset_id_to_contiguous_id)
        self.output_dir = output_dir
        self.boundary = boundary
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
        """``{"panoptic_seg": {PQ, SQ, RQ, PQ_th, ..., PQ_st, ..., PQ-<class>, ...}}`` in percent.

        With ``boundary`` the same under ``BoundaryPQ``, ... NaN for a group or class that occurs
        nowhere. None on all but the main worker.
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
                while file_name in annotations:  # pictures of different folders may share a name
                    file_name = f"{Path(file_name).stem}_{annotation['image_id']}.png"
                annotations[file_name] = annotation | {"file_name": file_name}
                (pred_folder / file_name).write_bytes(png)
            pred_json.write_text(json.dumps({"annotations": list(annotations.values())}))
            result = panoptic_quality(
                self.gt_json, pred_json, self.gt_folder, pred_folder, boundary=self.boundary
            )
        logger.info("Panoptic quality:\n%s", pq_table(result))
        figures = _in_percent(result)
        if self.boundary:
            for name, figure in _in_percent(result["boundary"]).items():
                figures[f"Boundary{name}"] = figure
        return OrderedDict(panoptic_seg=figures)


def _in_percent(result: Mapping[str, Any]) -> dict[str, float]:
    """Detectron2's names of the figures."""
    figures = {}
    for group, suffix in zip(GROUPS, ("", "_th", "_st"), strict=True):
        for key in ("pq", "sq", "rq"):
            figures[key.upper() + suffix] = 100 * result[group][key]
    for name, class_figures in result["per_class"].items():
        for key in ("pq", "sq", "rq"):
            figures[f"{key.upper()}-{name}"] = 100 * class_figures[key]
    return figures


def _inverse(mapping: Mapping[int, int]) -> dict[int, int]:
    return {contiguous: id_ for id_, contiguous in mapping.items()}
