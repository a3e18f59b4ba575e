"""Predictions on disk in the formats that evaluation tools read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from PIL import Image
from torch import Tensor

from ..data.panoptic_png import id2rgb
from ..modeling.postprocessing import semantic_labels


def keep_confident(prediction: Mapping[str, Any], threshold: float) -> dict[str, Any]:
    """The prediction without instances and panoptic segments that score below ``threshold``."""
    result = dict(prediction)
    if "instances" in result:
        instances = result["instances"]
        result["instances"] = instances[instances.scores >= threshold]
    if "panoptic_seg" in result:
        ids, segments = result["panoptic_seg"]
        kept = [segment for segment in segments if segment["score"] >= threshold]
        kept_ids = torch.tensor([s["id"] for s in kept], dtype=ids.dtype, device=ids.device)
        result["panoptic_seg"] = (ids * torch.isin(ids, kept_ids), kept)
    return result


class ResultWriter:
    """Collects predictions in a folder.

    ``instances.json``: COCO results (RLE); ``panoptic/*.png`` and ``panoptic.json``: COCO panoptic;
    ``semantic/*.png``: 8 or 16-bit class indices. Category ids are the data set's own where its
    metadata knows them.
    """

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        self.folder = folder
        self.thing_ids = _inverse(metadata.get("thing_dataset_id_to_contiguous_id"))
        self.all_ids = _inverse(metadata.get("stuff_dataset_id_to_contiguous_id")) | self.thing_ids
        names = metadata.get("stuff_classes") or metadata.get("thing_classes") or []
        things = self.thing_ids or dict.fromkeys(range(len(names)))
        self.categories = [
            {"id": self.all_ids.get(i, i), "name": name, "isthing": int(i in things)}
            for i, name in enumerate(names)
        ]
        self.images: list[dict[str, Any]] = []
        self.instances: list[dict[str, Any]] | None = None
        self.panoptic: list[dict[str, Any]] = []

    def add(self, name: str, file_name: str, prediction: Mapping[str, Any]) -> None:
        """Write the label maps of one picture now, its records on :meth:`close`.

        Args:
            name: unique among the pictures; the PNG files are called so.
            file_name: the picture's own.
            prediction: the model's output.
        """
        image_id = len(self.images) + 1
        self.images.append({"id": image_id, "file_name": file_name})
        if "instances" in prediction:
            self.instances = self.instances or []
            for result in instances_to_coco_json(prediction["instances"].to("cpu"), image_id):
                class_id = result["category_id"]
                result["category_id"] = self.thing_ids.get(class_id, class_id)
                self.instances.append(result)
        if "panoptic_seg" in prediction:
            self._add_panoptic(image_id, name, *prediction["panoptic_seg"])
        if "sem_seg" in prediction:
            labels = semantic_labels(prediction["sem_seg"]).cpu().numpy()
            dtype = np.uint8 if len(prediction["sem_seg"]) <= 255 else np.uint16
            self._save_png("semantic", name, labels.astype(dtype))

    def _add_panoptic(
        self, image_id: int, name: str, ids: Tensor, segments: list[dict[str, Any]]
    ) -> None:
        file_name = self._save_png("panoptic", name, id2rgb(ids.cpu().numpy()))
        infos = [
            s | {"category_id": self.all_ids.get(s["category_id"], s["category_id"])}
            for s in segments
        ]
        self.panoptic.append({"image_id": image_id, "file_name": file_name, "segments_info": infos})

    def _save_png(self, kind: str, name: str, array: np.ndarray) -> str:
        path = self.folder / kind / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
        return path.name

    def close(self) -> None:
        """Write the JSON files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.panoptic:
            content = {
                "images": self.images,
                "annotations": self.panoptic,
                "categories": self.categories,
            }
            (self.folder / "panoptic.json").write_text(json.dumps(content))
        if self.instances is not None:  # an empty list is a result too: nothing was found
            (self.folder / "instances.json").write_text(json.dumps(self.instances))
        (self.folder / "images.json").write_text(json.dumps(self.images))


def _inverse(mapping: Mapping[int, int] | None) -> dict[int, int]:
    return {contiguous: id_ for id_, contiguous in (mapping or {}).items()}
