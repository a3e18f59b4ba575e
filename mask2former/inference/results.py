"""Predictions on disk in the formats that evaluation tools read."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata
from PIL import Image
from scipy import ndimage

from ..data.panoptic_png import id2rgb
from .prediction import Panoptic, Prediction, encode


class ResultWriter:
    """Collects predictions in a folder.

    ``instances.json``: COCO results (RLE); ``panoptic/*.png`` and ``panoptic.json``: COCO panoptic;
    ``semantic/*.png``: 8 or 16-bit class indices. Category ids are the data set's own where its
    metadata knows them.
    """

    def __init__(
        self, folder: Path, metadata: Metadata, categories: Sequence[str], tasks: Sequence[str]
    ) -> None:
        """
        Args:
            categories: the names of the K classes.
            tasks: what is written. Where a prediction has no instances, the things of its panoptic
                segmentation are (a picture in tiles).
        """
        self.folder = folder
        self.tasks = tasks
        self.thing_ids = _inverse(metadata.get("thing_dataset_id_to_contiguous_id"))
        self.all_ids = _inverse(metadata.get("stuff_dataset_id_to_contiguous_id")) | self.thing_ids
        things = self.thing_ids or dict.fromkeys(range(len(categories)))
        self.categories = [
            {"id": self.all_ids.get(i, i), "name": name, "isthing": int(i in things)}
            for i, name in enumerate(categories)
        ]
        self.images: list[dict[str, Any]] = []
        self.instances: list[dict[str, Any]] | None = None
        self.panoptic: list[dict[str, Any]] = []

    def add(self, name: str, file_name: str, prediction: Prediction) -> None:
        """Write the label maps of one picture now, its records on :meth:`close`.

        Args:
            name: unique among the pictures; the PNG files are called so.
            file_name: the picture's own.
        """
        image_id = len(self.images) + 1
        panoptic = prediction.panoptic if "panoptic" in self.tasks else None
        semantic = prediction.semantic if "semantic" in self.tasks else None
        # What can fail comes first: a picture that is left out is in none of the files.
        if panoptic is not None:
            annotation = self._panoptic_annotation(image_id, name, panoptic)
        if semantic is not None:
            dtype = np.uint8 if len(semantic.categories) <= 255 else np.uint16
            self._save_png("semantic", name, semantic.labels.astype(dtype))
        if "instance" in self.tasks:
            results = [self._instance(image_id, *found) for found in _instances_of(prediction)]
            self.instances = (self.instances or []) + results
        if panoptic is not None:
            self.panoptic.append(annotation)
        size = {"height": prediction.height, "width": prediction.width}
        self.images.append({"id": image_id, "file_name": file_name, **size})

    def _instance(
        self,
        image_id: int,
        class_id: int,
        score: float,
        box: Sequence[float],
        rle: Mapping[str, Any],
    ) -> dict[str, Any]:
        x0, y0, x1, y1 = box
        return {
            "image_id": image_id,
            "category_id": self.thing_ids.get(class_id, class_id),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": score,
            "segmentation": rle,
        }

    def _panoptic_annotation(self, image_id: int, name: str, panoptic: Panoptic) -> dict[str, Any]:
        file_name = self._save_png("panoptic", name, id2rgb(panoptic.ids))
        infos = []
        for segment in panoptic.segments:
            x0, y0, x1, y1 = segment.box
            infos.append(
                {
                    "id": segment.id,
                    "category_id": self.all_ids.get(segment.category_id, segment.category_id),
                    "isthing": segment.isthing,
                    "score": segment.score,
                    "area": segment.area,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                }
            )
        return {"image_id": image_id, "file_name": file_name, "segments_info": infos}

    def _save_png(self, kind: str, name: str, array: np.ndarray) -> str:
        path = self.folder / kind / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
        return path.name

    def close(self) -> None:
        """Write the JSON files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.panoptic:
            segmented = {annotation["image_id"] for annotation in self.panoptic}
            content = {
                "images": [image for image in self.images if image["id"] in segmented],
                "annotations": self.panoptic,
                "categories": self.categories,
            }
            (self.folder / "panoptic.json").write_text(json.dumps(content))
        if self.instances is not None:  # an empty list is a result too: nothing was found
            (self.folder / "instances.json").write_text(json.dumps(self.instances))
        (self.folder / "images.json").write_text(json.dumps(self.images))


def _instances_of(
    prediction: Prediction,
) -> Iterator[tuple[int, float, Sequence[float], dict[str, Any]]]:
    """Class, score, box and RLE mask of each."""
    instances, panoptic = prediction.instances, prediction.panoptic
    if instances is not None:
        columns = (instances.classes, instances.scores, instances.boxes)
        yield from zip(*(column.tolist() for column in columns), instances.rles)
    elif panoptic is not None:
        for s in panoptic.segments:
            if s.isthing:
                yield s.category_id, s.score, s.box, encode(panoptic.mask(s))


def save_cutouts(image: np.ndarray, prediction: Prediction, folder: Path) -> None:
    """Write every segment, instance or class (the first of these that there are) as a PNG.

    Args:
        image: (H, W, 3) uint8 RGB.
        folder: gets ``<number>_<category>.png``, as large as its box, transparent around it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, category, place, mask in _cutouts(prediction):
        alpha = 255 * mask[..., None].astype(np.uint8)
        category = re.sub(r"[^\w-]+", "_", category)
        cut = Image.fromarray(np.concatenate([image[place], alpha], axis=2))
        cut.save(folder / f"{number:03d}_{category}.png")


def _cutouts(
    prediction: Prediction,
) -> Iterator[tuple[int, str, tuple[slice, slice], np.ndarray]]:
    """Number from 1 on, category, rows and columns of the box, and the mask in it."""
    if prediction.panoptic is not None:
        for segment in prediction.panoptic.segments:
            x0, y0, x1, y1 = segment.box
            place = slice(y0, y1), slice(x0, x1)
            yield segment.id, segment.category, place, prediction.panoptic.ids[place] == segment.id
    elif prediction.instances is not None:
        found = prediction.instances
        boxes = found.boxes.astype(int).tolist()
        for number, (x0, y0, x1, y1) in enumerate(boxes, start=1):
            place = slice(y0, y1), slice(x0, x1)
            yield number, found.categories[number - 1], place, found.masks[number - 1][place]
    elif prediction.semantic is not None:
        labels, names = prediction.semantic.labels, prediction.semantic.categories
        for class_id, place in enumerate(ndimage.find_objects(labels + 1, len(names))):
            if place is not None:
                yield class_id + 1, names[class_id], place, labels[place] == class_id


def _inverse(mapping: Mapping[int, int] | None) -> dict[int, int]:
    return {contiguous: id_ for id_, contiguous in (mapping or {}).items()}
