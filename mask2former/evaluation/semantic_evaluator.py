"""Semantic segmentation of a model's predictions."""

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..data.panoptic_png import rgb2id
from ..data.picture import apply_label_map, read_label_map
from ..errors import DatasetError
from ..modeling.postprocessing import semantic_labels
from .semantic import SemanticCounts, semantic_table

logger = logging.getLogger(__name__)


class SemanticEvaluator(DatasetEvaluator):
    """IoU and accuracy of the model's ``sem_seg``.

    The truth is a picture's label map; a panoptic set that has none is scored against the classes
    of its segments.
    """

    def __init__(
        self,
        *,
        dataset_name: str,
        output_dir: str | os.PathLike | None = None,
        boundary: bool = False,
    ) -> None:
        """
        Args:
            dataset_name: its metadata has ``stuff_classes``, the names of all classes, and
                ``ignore_label``.
            output_dir: where to keep the predictions, as PNG label maps; None: nowhere. On
                several machines each keeps its own.
            boundary: boundary IoU, too.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self.names, self.ignore = list(metadata.stuff_classes), metadata.get("ignore_label", 255)
        self.boundary = boundary
        self.folder = Path(output_dir) / "semantic_png" if output_dir else None
        # The loader's records need not name the label maps, as in Detectron2.
        self.records = {record["file_name"]: record for record in DatasetCatalog.get(dataset_name)}
        self.root = os.path.commonpath([os.path.dirname(path) for path in self.records])
        self.reset()

    def reset(self) -> None:
        self.counts = SemanticCounts(len(self.names), ignore=self.ignore, boundary=self.boundary)

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Take a batch of records and the model's outputs for them."""
        for record, output in zip(inputs, outputs, strict=True):
            record = self.records[record["file_name"]]
            prediction = semantic_labels(output["sem_seg"]).cpu().numpy().astype(np.uint16)
            try:
                self.counts.add(self._truth(record), prediction)
            except ValueError as error:
                if isinstance(error, DatasetError):
                    raise
                raise DatasetError(f"{_truth_file(record)}: {error}") from error
            if self.folder:
                name = os.path.relpath(record["file_name"], self.root)
                path = (self.folder / name).with_suffix(".png")
                path.parent.mkdir(parents=True, exist_ok=True)
                if len(self.names) < 256:
                    prediction = prediction.astype(np.uint8)
                cv2.imwrite(str(path), prediction)

    def _truth(self, record: Mapping[str, Any]) -> np.ndarray:
        if "sem_seg_file_name" in record:
            labels = read_label_map(record["sem_seg_file_name"])
            if "sem_seg_label_map" in record:
                labels = apply_label_map(labels, record["sem_seg_label_map"], self.ignore)
            return labels
        ids = rgb2id(read_label_map(record["pan_seg_file_name"]))
        lookup = np.full(1 << 24, self.ignore, np.int32)
        for segment in record["segments_info"]:
            if not segment.get("iscrowd", 0):
                lookup[segment["id"]] = segment["category_id"]
        return lookup[ids]

    def evaluate(self) -> OrderedDict | None:
        """``{"sem_seg": {mIoU, fwIoU, mACC, pACC, IoU-<class>, ACC-<class>}}`` in percent.

        With ``boundary`` also ``BoundaryIoU`` and ``BoundaryIoU-<class>``. NaN for a class that
        occurs nowhere. None on all but the main worker.
        """
        comm.synchronize()
        gathered = comm.gather(self.counts)
        if not comm.is_main_process():
            return None
        total = SemanticCounts(len(self.names), ignore=self.ignore, boundary=self.boundary)
        for counts in gathered:
            total.merge(counts)
        result = total.figures(self.names)
        logger.info("Semantic segmentation:\n%s", semantic_table(result))
        figures = {key: 100 * value for key, value in result.items() if key != "per_class"}
        for name, class_figures in result["per_class"].items():
            figures |= {f"{key}-{name}": 100 * value for key, value in class_figures.items()}
        return OrderedDict(sem_seg=figures)


def _truth_file(record: Mapping[str, Any]) -> str:
    return record.get("sem_seg_file_name") or record["pan_seg_file_name"]
