"""Semantic segmentation: IoU and accuracy from counts of pixels, boundary IoU, PQ.

Shapes: (h, w) label maps of K classes, 0 to K - 1. The counts of a picture are int64 of shape
(K + 1, K + 2): row p, column t holds the pixels of predicted class p and true class t. Row K: no
class predicted. Column K: the pixel is known to be of no class. Column K + 1: ignored.

One class is a case of its own. No other class could win a pixel, so a score below 0.5 predicts
none; and every pixel that is not of the class is its background, the ignored ones included, as
training takes them for it, too. To leave pixels out, give the background a class of its own.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..data.formats import files_by_stem
from ..data.picture import read_label_map
from ..errors import DatasetError
from .boundary import boundary_pixels
from .quality import COUNTS, overlaps, panoptic_figures
from .report import percent_table

MEANS = ("mIoU", "fwIoU", "mACC", "pACC")
SUFFIXES = {".png", ".tif", ".tiff", ".bmp"}


class SemanticCounts:
    """What label maps have in common with the truth, summed over pictures."""

    def __init__(self, num_classes: int, *, ignore: int, boundary: bool = False) -> None:
        """
        Args:
            num_classes: K.
            ignore: the value of pixels that do not count.
            boundary: count boundaries, too.
        """
        self.num_classes, self.ignore, self.boundary = num_classes, ignore, boundary
        k = num_classes
        self.pixels = np.zeros((k + 1, k + 2), np.int64)
        self.edges = np.zeros((2, k), np.int64)  # intersection and union of boundaries
        self.quality = np.zeros((k, len(COUNTS)))  # of classes as segments, see .quality

    def add(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count a picture.

        Args:
            truth: (h, w) integers, 0 to K - 1 or ``ignore``; with one class, any but 0 is
                background.
            prediction: (h, w) integers, 0 to K - 1; K or ``ignore`` for no class.

        Raises:
            ValueError: the sizes differ, or there is another value.
        """
        if truth.shape != prediction.shape:
            raise ValueError(f"is of size {prediction.shape}, the truth of size {truth.shape}")
        k = self.num_classes
        if k == 1:
            truth = (truth != 0).astype(np.uint16)
        else:
            truth = _classes(truth, k, {self.ignore: k + 1}, "the truth")
        prediction = _classes(prediction, k, {self.ignore: k, k: k}, "the prediction")
        pixels = overlaps(prediction, truth, self.pixels.shape)
        self.pixels += pixels
        self.quality += _quality(pixels)
        if self.boundary:
            self.edges += self._edges(truth, prediction)

    def merge(self, other: "SemanticCounts") -> None:
        """Add the counts of other pictures."""
        self.pixels += other.pixels
        self.edges += other.edges
        self.quality += other.quality

    def _edges(self, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
        k = self.num_classes
        valid = truth != k + 1
        true = np.where(valid & boundary_pixels(truth), truth, k + 1)
        predicted = np.where(valid & boundary_pixels(prediction), prediction, k + 1)
        shared = overlaps(true, predicted, (k + 2, k + 2))
        intersection = shared.diagonal()
        union = shared.sum(0) + shared.sum(1) - intersection
        return np.stack([intersection, union])[:, :k]

    def figures(self, names: Sequence[str]) -> dict[str, Any]:
        """
        Args:
            names: of the K classes.

        Returns:
            In [0, 1] ``mIoU``, ``fwIoU`` (weighted with the classes' true sizes), ``mACC``,
            ``pACC`` (of all pixels), with boundaries
            ``BoundaryIoU``, and ``per_class``: ``IoU``, ``ACC`` (and ``BoundaryIoU``) by class
            name. Classes that neither truth nor prediction have are NaN, and in no mean.
        """
        pixels, k = self.pixels[:, :-1], self.num_classes  # without the ignored
        hits, true = pixels.diagonal()[:k], pixels.sum(0)[:k]
        per_class = {
            "IoU": _divide(hits, true + pixels.sum(1)[:k] - hits),
            "ACC": _divide(hits, true),
        }
        result = {
            "mIoU": _mean(per_class["IoU"]),
            "fwIoU": float(_divide(np.nansum(per_class["IoU"] * true), true.sum())),
            "mACC": _mean(per_class["ACC"]),
            "pACC": float(_divide(np.trace(pixels), pixels.sum())),
        }
        if self.boundary:
            per_class["BoundaryIoU"] = _divide(*self.edges)
            result["BoundaryIoU"] = _mean(per_class["BoundaryIoU"])
        result["per_class"] = {
            name: {key: float(values[i]) for key, values in per_class.items()}
            for i, name in enumerate(names)
        }
        return result


def quality_of_classes(counts: SemanticCounts, names: Sequence[str]) -> dict[str, Any]:
    """Panoptic quality of a semantic segmentation: each class of a picture is one segment.

    As :func:`.quality.panoptic_figures`; all classes are stuff.
    """
    categories = [{"id": i, "name": name, "isthing": 0} for i, name in enumerate(names)]
    return panoptic_figures(dict(enumerate(counts.quality)), categories)


def semantic_table(result: Mapping[str, Any], *, per_class: bool = True) -> str:
    """The figures of :class:`SemanticCounts`, in percent."""
    means = [key for key in result if key != "per_class"]
    tables = [percent_table({"all": result}, means)]
    if per_class and len(result["per_class"]) > 1:
        columns = list(next(iter(result["per_class"].values())))
        tables.append(percent_table(result["per_class"], columns, first="class"))
    return "\n\n".join(tables)


def count_folders(
    gt_folder: str | os.PathLike,
    pred_folder: str | os.PathLike,
    *,
    num_classes: int,
    ignore: int = 255,
    boundary: bool = False,
) -> SemanticCounts:
    """Count the label maps of two folders, which belong together by path without the suffix.

    Raises:
        DatasetError: a prediction is missing, or a file is no label map of these classes.
    """
    truths, predictions = _label_maps(gt_folder), _label_maps(pred_folder)
    if missing := sorted(truths.keys() - predictions.keys()):
        raise DatasetError(
            f"{pred_folder} has no prediction for {len(missing)} label maps of {gt_folder}, the "
            f"first being {truths[missing[0]]}; predict them too, or remove them"
        )

    def count(name: str) -> SemanticCounts:
        one = SemanticCounts(num_classes, ignore=ignore, boundary=boundary)
        try:
            one.add(*(read_label_map(files[name]) for files in (truths, predictions)))
        except ValueError as error:
            if isinstance(error, DatasetError):
                raise
            where = f"{predictions[name]}, compared with {truths[name]}"
            raise DatasetError(f"{where}: {error}") from error
        return one

    total = SemanticCounts(num_classes, ignore=ignore, boundary=boundary)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for one in pool.map(count, sorted(truths)):
            total.merge(one)
    return total


def _label_maps(folder: str | os.PathLike) -> dict[str, str]:
    found = files_by_stem(folder, SUFFIXES)
    if not found:
        raise DatasetError(f"{folder} has no label maps ({', '.join(sorted(SUFFIXES))})")
    return found


def _classes(labels: np.ndarray, k: int, special: Mapping[int, int], where: str) -> np.ndarray:
    """A label map with its ``special`` values replaced, (h, w) uint16; others must be below k."""
    if labels.ndim != 2 or (labels < 0).any():
        raise ValueError(f"{where} is no label map of one channel and no negative value")
    wrong = np.iinfo(np.uint16).max
    table = np.full(max(int(labels.max(initial=0)), k, *special) + 1, wrong, np.uint16)
    table[:k] = np.arange(k)
    for value, replacement in special.items():
        table[value] = replacement
    classes = table[labels]
    if (classes == wrong).any():
        value = labels[classes == wrong].min()
        raise ValueError(
            f"{where} has value {value}, which is neither one of {k} classes (0 to {k - 1}) nor "
            "the ignored value; correct the file, the number of classes or the ignored value"
        )
    return classes


def _quality(pixels: np.ndarray) -> np.ndarray:
    """Counts of panoptic quality, (K, 4), if each class of a picture is one segment."""
    k = len(pixels) - 1
    void = pixels[:k, k + 1]
    area, true, hits = pixels[:k].sum(1), pixels[:, :k].sum(0), pixels.diagonal()[:k]
    iou = np.nan_to_num(_divide(hits, area + true - hits - void))
    tp = iou > 0.5
    fp = (area > 0) & ~tp & (void <= area / 2)
    return np.stack([iou * tp, tp, fp, (true > 0) & ~tp], axis=1)


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, NaN where the denominator is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(denominator) > 0, np.divide(numerator, denominator), np.nan)


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")
