"""Panoptic quality from counts, and the counts of one picture (Kirillov et al., CVPR 2019).

The counts of a class are four numbers (float64): the sum of the IoU of its matches, and how many
there are of matches (tp), of predicted segments without one (fp) and of true segments without one
(fn).
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

COUNTS = IOU, TP, FP, FN = range(4)
GROUPS = ("All", "Things", "Stuff")


def panoptic_figures(
    counts: Mapping[Hashable, np.ndarray], categories: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Panoptic quality of classes and groups of classes.

    Args:
        counts: by category id; a class that is missing occurs nowhere.
        categories: ``id``, ``name`` and ``isthing`` of every class.

    Returns:
        ``All``, ``Things``, ``Stuff``: ``pq``, ``sq``, ``rq`` in [0, 1] (NaN for a group of which
        no class occurs) and ``n``, the number of classes that occur; ``per_class``: the same
        without ``n`` by class name, NaN for a class that does not occur.
    """
    figures = {c["id"]: _class_figures(counts.get(c["id"], np.zeros(4))) for c in categories}
    things = {c["id"] for c in categories if c["isthing"]}
    members = {"All": set(figures), "Things": things, "Stuff": set(figures) - things}
    result: dict[str, Any] = {}
    for group in GROUPS:
        table = np.array([figures[id_] for id_ in members[group]]).reshape(-1, 3)
        table = table[~np.isnan(table[:, 0])]
        means = table.mean(0) if len(table) else np.full(3, np.nan)
        result[group] = {**_named(means), "n": len(table)}
    result["per_class"] = {c["name"]: _named(figures[c["id"]]) for c in categories}
    return result


def _class_figures(counts: np.ndarray) -> tuple[float, float, float]:
    iou, tp, fp, fn = counts
    if not tp + fp + fn:
        return (np.nan,) * 3
    rq = tp / (tp + fp / 2 + fn / 2)
    sq = iou / tp if tp else 0.0
    return sq * rq, sq, rq


def _named(figures: Iterable[float]) -> dict[str, float]:
    return {key: float(value) for key, value in zip(("pq", "sq", "rq"), figures, strict=True)}


@dataclass(frozen=True)
class Segments:
    """The segments of one picture.

    Attributes:
        index: (h, w) uint16, 0 for void and i + 1 for segment i.
        categories: category id of each segment.
        crowd: whether a segment is a crowd.
    """

    index: np.ndarray
    categories: np.ndarray
    crowd: np.ndarray

    @classmethod
    def from_ids(cls, ids: np.ndarray, infos: Sequence[Mapping[str, Any]]) -> "Segments":
        """
        Args:
            ids: (h, w) segment ids in [0, 2^24), as in a panoptic PNG.
            infos: ``id``, ``category_id`` and possibly ``iscrowd`` of each segment.

        Raises:
            ValueError: the map has an id that no segment has.
        """
        lookup = np.zeros(1 << 24, np.uint16)  # of which only the pages in use cost anything
        lookup[[info["id"] for info in infos]] = np.arange(1, len(infos) + 1)
        index = lookup[ids]
        if unknown := np.unique(ids[(index == 0) & (ids != 0)]).tolist():
            raise ValueError(f"segment {unknown[0]} is in the PNG, but not in the json")
        return cls(
            index,
            np.array([info["category_id"] for info in infos], np.int64),
            np.array([info.get("iscrowd", 0) for info in infos], bool),
        )

    def __len__(self) -> int:
        return len(self.categories)


def overlaps(truth: np.ndarray, prediction: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Pixels that each value of one map shares with each of another: int64 of ``shape``."""
    joint = truth.astype(np.int32) * shape[1] + prediction
    return np.bincount(joint.ravel(), minlength=shape[0] * shape[1]).reshape(shape)


def count_matches(
    truth: Segments,
    prediction: Segments,
    boundaries: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[int, np.ndarray]:
    """The counts of one picture by category id, by panopticapi's rules.

    Args:
        boundaries: (h, w) bool, the pixels on the boundary of their true and of their predicted
            segment: match by the smaller of mask IoU and boundary IoU, which is Boundary PQ.
    """
    n, m = len(truth), len(prediction)
    shared = overlaps(truth.index, prediction.index, (n + 1, m + 1))
    iou = _ious(shared)
    if boundaries is not None:
        # Row n + 1 and column m + 1 take the inside of all segments; void stays void.
        edges = [
            np.where(boundary | (s.index == 0), s.index, len(s) + 1)
            for s, boundary in zip((truth, prediction), boundaries, strict=True)
        ]
        iou = np.minimum(iou, _ious(overlaps(*edges, (n + 2, m + 2)))[:n, :m])
    counts: defaultdict[int, np.ndarray] = defaultdict(lambda: np.zeros(len(COUNTS)))
    same = truth.categories[:, None] == prediction.categories
    matches = np.argwhere(same & ~truth.crowd[:, None] & (iou > 0.5)).tolist()
    for i, j in matches:
        counts[int(truth.categories[i])] += (iou[i, j], 1, 0, 0)
    for i in set(np.flatnonzero(~truth.crowd).tolist()) - {i for i, _ in matches}:
        counts[int(truth.categories[i])][FN] += 1
    crowds = {truth.categories[i]: i for i in np.flatnonzero(truth.crowd)}
    for j in set(range(m)) - {j for _, j in matches}:
        column = shared[:, j + 1]
        crowd = crowds.get(prediction.categories[j])
        ignored = column[0] + (column[crowd + 1] if crowd is not None else 0)
        if ignored <= column.sum() / 2:  # a segment mostly on void or crowd is no mistake
            counts[int(prediction.categories[j])][FP] += 1
    return dict(counts)


def sum_counts(pictures: Iterable[Mapping[int, np.ndarray]]) -> dict[int, np.ndarray]:
    """The counts of all pictures together."""
    total: defaultdict[int, np.ndarray] = defaultdict(lambda: np.zeros(len(COUNTS)))
    for counts in pictures:
        for id_, numbers in counts.items():
            total[id_] += numbers
    return dict(total)


def _ious(shared: np.ndarray) -> np.ndarray:
    """IoU of segments, without the pixels that are void in the truth: (n + 1, m + 1) -> (n, m)."""
    intersection = shared[1:, 1:]
    union = shared[1:].sum(1)[:, None] + shared[:, 1:].sum(0) - intersection - shared[0, 1:]
    return intersection / np.maximum(union, 1)
