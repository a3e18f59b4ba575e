"""What a picture's segmentation looks like to those who use it: arrays of numpy and plain numbers.

(H, W) is the size of the picture as it was given. Boxes are XYXY in pixel edges, so x1 - x0 is the
width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from scipy import ndimage

from ..modeling.postprocessing import boxes_of_masks

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Segment:
    """One thing, or all of one kind of stuff.

    Attributes:
        id: in the id map, from 1 on.
        category_id: contiguous class index, from 0 on.
        category: its name.
        isthing: whether such things are counted.
        score: class probability, in [0, 1].
        area: pixels.
        box: around all of its pixels.
    """

    id: int
    category_id: int
    category: str
    isthing: bool
    score: float
    area: int
    box: Box


@dataclass(frozen=True)
class Panoptic:
    """One segment or none for each pixel.

    Attributes:
        ids: (H, W) int32, 0 where there is no segment.
        segments: every id of the map, and no other, once.
    """

    ids: np.ndarray
    segments: tuple[Segment, ...]

    @classmethod
    def of(
        cls,
        ids: np.ndarray,
        segments: Sequence[Mapping[str, Any]],
        names: Sequence[str],
        *,
        least_area: int = 1,
    ) -> "Panoptic":
        """Areas and boxes are taken from the map.

        Args:
            ids: (H, W) int32, changed in place: what segments lose under ``least_area`` becomes 0.
            segments: ``id``, ``category_id``, ``isthing`` and ``score`` of each.
            names: of the classes.
        """
        places = ndimage.find_objects(ids)
        areas = np.zeros(len(places) + 1, np.int64)
        for rows in np.array_split(ids, len(ids) // 256 + 1):  # bincount makes a larger copy
            areas += np.bincount(rows.ravel(), minlength=len(places) + 1)
        kept, gone = [], []
        for segment in segments:
            if segment["id"] > len(places) or areas[segment["id"]] < max(1, least_area):
                gone.append(segment["id"])
                continue
            rows, columns = places[segment["id"] - 1]
            kept.append(
                Segment(
                    id=segment["id"],
                    category_id=segment["category_id"],
                    category=names[segment["category_id"]],
                    isthing=bool(segment["isthing"]),
                    score=float(segment["score"]),
                    area=int(areas[segment["id"]]),
                    box=(columns.start, rows.start, columns.stop, rows.stop),
                )
            )
        for id_ in gone:
            if id_ <= len(places) and places[id_ - 1] is not None:
                part = ids[places[id_ - 1]]
                part[part == id_] = 0
        return cls(ids, tuple(kept))

    def mask(self, segment: Segment) -> np.ndarray:
        """(H, W) bool: the pixels of a segment."""
        return self.ids == segment.id


@dataclass(frozen=True)
class Instances:
    """n objects, the surest first; they may overlap.

    Attributes:
        masks: (n, H, W) bool.
        boxes: (n, 4) float32, tight around the masks, zeros for an empty mask.
        classes: (n,) int64 contiguous class indices.
        categories: their names.
        scores: (n,) float32, in [0, 1]: class probability times mean mask probability.
    """

    masks: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    categories: tuple[str, ...]
    scores: np.ndarray

    @classmethod
    def of(
        cls,
        masks: np.ndarray,
        classes: np.ndarray,
        scores: np.ndarray,
        names: Sequence[str],
        *,
        least_area: int = 1,
    ) -> "Instances":
        """Those of ``least_area`` pixels or more, the surest first."""
        order = np.argsort(-scores, kind="stable")
        areas = np.count_nonzero(masks, axis=(1, 2))
        order = order[areas[order] >= max(1, least_area)]
        masks = masks[order]
        return cls(
            masks,
            boxes_of_masks(torch.from_numpy(masks)).numpy(),
            classes[order],
            tuple(names[i] for i in classes[order]),
            scores[order],
        )

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def areas(self) -> np.ndarray:
        """(n,) int64 pixels."""
        return np.count_nonzero(self.masks, axis=(1, 2))

    @cached_property
    def rles(self) -> list[dict[str, Any]]:
        """The masks in COCO's run-length encoding, ready for JSON."""
        return [encode(mask) for mask in self.masks]


def encode(mask: np.ndarray) -> dict[str, Any]:
    """A mask (H, W) in COCO's run-length encoding, ready for JSON."""
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


@dataclass(frozen=True)
class Semantic:
    """One class for each pixel.

    Attributes:
        labels: (H, W) int32 contiguous class indices; ``len(categories)`` where there is none.
        categories: names of all classes.
    """

    labels: np.ndarray
    categories: tuple[str, ...]


@dataclass(frozen=True)
class Prediction:
    """The segmentations of one picture that were asked for; None in place of the others."""

    height: int
    width: int
    panoptic: Panoptic | None = None
    instances: Instances | None = None
    semantic: Semantic | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Those that it has the segmentations of."""
        found = {
            "panoptic": self.panoptic,
            "instance": self.instances,
            "semantic": self.semantic,
        }
        return tuple(task for task, kind in found.items() if kind is not None)
