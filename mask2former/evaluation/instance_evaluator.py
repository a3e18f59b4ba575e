"""Average precision of a model's predictions."""

import itertools
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from hotcoco import mask as rle_mask

from ..data.panoptic_png import rgb2id
from ..data.picture import read_label_map
from ..errors import DatasetError
from .instance import ap_table, check_truth, score_instances
from .report import read_json

logger = logging.getLogger(__name__)


class InstanceEvaluator(DatasetEvaluator):
    """AP of boxes and masks of the model's ``instances``.

    The truth is the COCO json of the data set; a panoptic set that has none, or whose file is not
    there, is scored against the thing segments of its panoptic annotations.
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
            dataset_name: its metadata has ``thing_dataset_id_to_contiguous_id``, and ``json_file``
                unless it is panoptic.
            output_dir: where to keep the predictions in COCO's format; None: nowhere.
            boundary: boundary AP, too.

        Raises:
            DatasetError: the json has other categories than the data set has thing classes.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name, self.output_dir = dataset_name, output_dir
        self.iou_types = ("bbox", "segm", "boundary") if boundary else ("bbox", "segm")
        self.truth = None
        path = metadata.get("json_file")
        if path and (os.path.isfile(path) or not metadata.get("panoptic_json")):
            self.truth = read_json(path)
            for iou_type in self.iou_types:  # now, not after hours of inference
                check_truth(path, self.truth, iou_type)
        mapping = metadata.get("thing_dataset_id_to_contiguous_id")
        if mapping is None:  # Detectron2 notes it down when it loads the set
            ids = sorted(category["id"] for category in self.truth["categories"])
            mapping = {id_: i for i, id_ in enumerate(ids)}
        self.category_ids = {contiguous: id_ for id_, contiguous in mapping.items()}
        stuff = metadata.get("stuff_dataset_id_to_contiguous_id", {}).values()
        self.stuff = set(stuff) - set(self.category_ids)
        if self.truth is not None:
            known = {category["id"] for category in self.truth["categories"]}
            if differing := sorted(set(mapping) ^ known):
                raise DatasetError(
                    f"{metadata.json_file} and the thing classes of data set {dataset_name} differ "
                    f"in the category ids {differing}; the instances json must have the same "
                    "things, and no stuff"
                )
        self.reset()

    def reset(self) -> None:
        self.results: list[dict[str, Any]] = []

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Take a batch of records and the model's outputs for them."""
        for record, output in zip(inputs, outputs, strict=True):
            self.results += self._to_coco(record["image_id"], output["instances"].to("cpu"))

    def _to_coco(self, image_id: int | str, instances: Instances) -> list[dict[str, Any]]:
        boxes = instances.pred_boxes.tensor.clone()
        boxes[:, 2:] -= boxes[:, :2]
        results = []
        for class_id, score, box, mask in zip(
            instances.pred_classes.tolist(),
            instances.scores.tolist(),
            boxes.tolist(),
            instances.pred_masks.numpy(),
            strict=True,
        ):
            if class_id in self.stuff:
                continue  # no instance, and nothing that COCO's json could say
            if class_id not in self.category_ids:
                raise DatasetError(
                    f"the model predicts class {class_id}, which data set {self.dataset_name} does "
                    f"not have (its classes: {sorted(self.category_ids)}); evaluate on the classes "
                    "that the model was trained on"
                )
            results.append(
                {
                    "image_id": image_id,
                    "category_id": self.category_ids[class_id],
                    "bbox": box,
                    "score": score,
                    "segmentation": _encode(mask.astype(bool, copy=False)),
                }
            )
        return results

    def evaluate(self) -> OrderedDict | None:
        """``{"bbox": {AP, AP50, AP75, APs, APm, APl, AP-<class>}, "segm": ...}`` in percent.

        With ``boundary`` also under ``boundary``. NaN where there is nothing to be found. Empty
        where the json has no annotations. None on all but the main worker.
        """
        comm.synchronize()
        gathered = comm.gather(self.results)
        if not comm.is_main_process():
            return None
        results = list(itertools.chain.from_iterable(gathered))
        if self.output_dir:
            Path(self.output_dir).mkdir(parents=True, exist_ok=True)
            path = Path(self.output_dir) / "coco_instances_results.json"
            path.write_text(json.dumps(results))
        if self.truth is None:
            self.truth = instances_of_panoptic(self.dataset_name)
        if "annotations" not in self.truth:
            logger.warning("%s has no annotations to compare with", self.dataset_name)
            return OrderedDict()
        figures: OrderedDict[str, dict[str, float]] = OrderedDict()
        for iou_type in self.iou_types:
            result = score_instances(self.truth, results, iou_type)
            logger.info("Average precision (%s):\n%s", iou_type, ap_table(result, iou_type))
            names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
            figures[iou_type] = {name: 100 * result[name] for name in names}
            if len(result["per_class"]) > 1:
                per_class = result["per_class"].items()
                figures[iou_type] |= {f"AP-{name}": 100 * ap for name, ap in per_class}
        return figures


def instances_of_panoptic(dataset_name: str) -> dict[str, Any]:
    """The thing segments of a panoptic data set, as the content of a COCO instances json."""
    metadata, records = MetadataCatalog.get(dataset_name), DatasetCatalog.get(dataset_name)
    ids = {
        contiguous: id_ for id_, contiguous in metadata.thing_dataset_id_to_contiguous_id.items()
    }
    names = {c["id"]: c["name"] for c in read_json(metadata.panoptic_json)["categories"]}

    def annotations(record: Mapping[str, Any]) -> list[dict[str, Any]]:
        segment_ids = rgb2id(read_label_map(record["pan_seg_file_name"]))
        found = []
        for segment in record["segments_info"]:
            if segment["category_id"] in ids:
                mask = segment_ids == segment["id"]
                rle = _encode(mask)
                found.append(
                    {
                        "image_id": record["image_id"],
                        "category_id": ids[segment["category_id"]],
                        "iscrowd": int(segment.get("iscrowd", 0)),
                        "area": int(np.count_nonzero(mask)),
                        "bbox": rle_mask.to_bbox(rle).tolist(),
                        "segmentation": rle,
                    }
                )
        return found

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(itertools.chain.from_iterable(pool.map(annotations, records)))
    return {
        "images": [
            {"id": record["image_id"], "height": record["height"], "width": record["width"]}
            for record in records
        ],
        "annotations": found,
        "categories": [{"id": id_, "name": names[id_]} for id_ in ids.values()],
    }


def _encode(mask: np.ndarray) -> dict[str, Any]:
    """(h, w) bool -> COCO's compressed RLE, as JSON can hold it."""
    rle = rle_mask.encode(mask)
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}
