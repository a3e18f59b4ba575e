"""From class and mask logits to segmentations (Mask2Former, section 3.3; MaskFormer, section 3.4).

Pure functions on tensors. Shapes: Q queries, K classes, (h, w) the mask logits, (H, W) the output.
``resize`` maps (n, h, w) mask logits to :class:`RowMaps` of (H, W): masks are selected first, so
only those that count are ever resized, and these only some rows at a time.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from mask2former_ops import mask_sums, weighted_sigmoids

from .row_maps import RowMaps

Resize = Callable[[Tensor], RowMaps]


def semantic_inference(class_logits: Tensor, mask_logits: RowMaps) -> RowMaps:
    """Scores of all classes at every pixel: the masks, weighted with their class probabilities.

    Args:
        class_logits: (Q, K + 1).
        mask_logits: Q maps.

    Returns:
        K maps, not normalised over the classes.
    """
    probabilities = class_logits.softmax(-1)[:, :-1].t()  # (K, Q)
    return mask_logits.map(
        lambda logits, out: weighted_sigmoids(probabilities, logits, out), len(probabilities)
    )


def semantic_labels(scores: Tensor) -> Tensor:
    """(K, H, W) scores -> (H, W) int64 classes; K, for none, where a single class is below 0.5."""
    return scores.argmax(0) if len(scores) > 1 else (scores[0] < 0.5).long()


def panoptic_inference(
    class_logits: Tensor,
    mask_logits: Tensor,
    resize: Resize,
    *,
    thing_ids: Collection[int],
    object_mask_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """One segment or none for every pixel.

    A pixel goes to the query with the largest product of class score and mask probability. A query
    whose mask keeps less than ``overlap_threshold`` of its area that way is dropped, and stuff of
    one class becomes one segment.

    Args:
        class_logits: (Q, K + 1).
        mask_logits: (Q, h, w).
        thing_ids: contiguous ids of the countable classes.
        object_mask_threshold: least class probability, in [0, 1].

    Returns:
        (H, W) int32 segment ids, 0 where there is none, and per segment ``id``, ``category_id``
        (contiguous), ``isthing``, ``score`` (class probability, in [0, 1]) and ``area`` (pixels).
    """
    num_classes = class_logits.shape[-1] - 1
    scores, labels = class_logits.softmax(-1).max(-1)
    keep = (labels != num_classes) & (scores > object_mask_threshold)
    scores, labels = scores[keep], labels[keep]
    owner, won, full, visible = _owners(scores, resize(mask_logits[keep]))

    segments: list[dict[str, Any]] = []
    stuff: dict[int, dict[str, Any]] = {}
    segment_of_query = [0] * (len(labels) + 1)
    for query, label in enumerate(labels.tolist()):
        if not visible[query] or won[query] / full[query] < overlap_threshold:
            continue
        segment = stuff.get(label)
        if segment is None:
            isthing = label in thing_ids
            segment = {
                "id": len(segments) + 1,
                "isthing": isthing,
                "category_id": label,
                "score": 0.0,
                "area": 0,
            }
            segments.append(segment)
            if not isthing:
                stuff[label] = segment
        segment["area"] += visible[query]
        segment_of_query[query] = segment["id"]
    _add_scores(segments, segment_of_query[:-1], scores.tolist())
    ids = torch.tensor(segment_of_query, dtype=torch.int32, device=owner.device)
    for rows in owner.split(1024):  # a huge map would be in memory three times
        rows.copy_(ids[rows])
    return owner, segments


def _owners(scores: Tensor, masks: RowMaps) -> tuple[Tensor, list[int], list[int], list[int]]:
    """Which of n queries each pixel belongs to.

    Args:
        scores: (n,) class probabilities.
        masks: n maps of logits.

    Returns:
        (H, W) int32 indices of queries, n where even the best one's mask is below 1/2; and for each
        query the pixels that it has the largest product of score and mask probability in, the
        pixels of its mask, and those in both.
    """
    n = masks.count
    owner = torch.full(masks.size, n, dtype=torch.int32, device=masks.device)
    if not n:
        return owner, [], [], []
    counts = torch.zeros(3, n, dtype=torch.int64, device=masks.device)
    for rows, logits in masks.bands():
        probabilities = logits.sigmoid()
        best = (scores[:, None, None] * probabilities).max(0).indices
        inside = probabilities.gather(0, best[None])[0] >= 0.5
        owner[rows] = torch.where(inside, best, n)
        won = torch.bincount(best.flatten(), minlength=n)
        visible = torch.bincount(owner[rows].flatten(), minlength=n + 1)[:n]
        # Of numbers: sums of bools take several times as long.
        inside = torch.ge(probabilities, 0.5, out=torch.empty_like(probabilities))
        full = inside.sum(2, dtype=torch.float32).long().sum(1)
        counts += torch.stack([won, full, visible])
    return owner, *counts.tolist()  # one copy to the host for all segments


def _add_scores(
    segments: list[dict[str, Any]], segment_of_query: list[int], scores: list[float]
) -> None:
    """A segment's score is that of its surest query."""
    for segment_id, score in zip(segment_of_query, scores, strict=True):
        if segment_id:
            segment = segments[segment_id - 1]
            segment["score"] = max(segment["score"], score)


def instance_inference(
    class_logits: Tensor,
    mask_logits: Tensor,
    resize: Resize,
    *,
    topk: int,
    thing_ids: Collection[int] | None = None,
    one_label_per_query: bool = False,
    score_threshold: float = 0.0,
) -> Instances:
    """The ``topk`` best pairs of query and class; one query may appear with several classes.

    Args:
        class_logits: (Q, K + 1).
        mask_logits: (Q, h, w).
        thing_ids: drop other classes (after the choice of the best, as published); None: keep all.
        one_label_per_query: a query counts with its best class only.
        score_threshold: drop instances that score less, in [0, 1].

    Returns:
        Instances of size (H, W) with ``pred_masks`` (n, H, W) bool, ``pred_boxes`` (tight around
        the masks, XYXY in pixels, zeros for an empty mask), ``pred_classes`` (n,) int64 and
        ``scores`` (n,): class probability times the mean mask probability inside the mask.
    """
    num_classes = class_logits.shape[1] - 1
    probabilities = class_logits.softmax(-1)[:, :-1]
    if one_label_per_query:
        probabilities, classes = probabilities.max(1)  # (Q,)
        scores, queries = probabilities.topk(min(topk, len(probabilities)), sorted=False)
        classes = classes[queries]
    else:
        probabilities = probabilities.flatten()  # (Q * K,)
        scores, best = probabilities.topk(min(topk, len(probabilities)), sorted=False)
        queries, classes = best.div(num_classes, rounding_mode="floor"), best % num_classes
    keep = scores >= score_threshold  # the mean mask probability only lowers them
    if thing_ids is not None:
        things = torch.zeros(num_classes, dtype=torch.bool, device=classes.device)
        things[list(thing_ids)] = True
        keep &= things[classes]
    scores, queries, classes = scores[keep], queries[keep], classes[keep]
    # A query stands for several instances, but its mask is the same.
    queries, mask_of_instance = queries.unique(return_inverse=True)
    logits = resize(mask_logits[queries])
    masks = torch.empty(len(classes), *logits.size, dtype=torch.bool, device=logits.device)
    areas, sums = 0, 0
    for rows, band in logits.bands():
        inside, area, probabilities = mask_sums(band)
        masks[:, rows] = inside[mask_of_instance]
        areas, sums = areas + area, sums + probabilities

    result = Instances(logits.size)
    result.pred_masks = masks
    result.pred_boxes = Boxes(boxes_of_masks(masks))
    result.scores = scores * (sums / (areas + 1e-6))[mask_of_instance]
    result.pred_classes = classes
    return result[result.scores >= score_threshold] if score_threshold else result


def boxes_of_masks(masks: Tensor) -> Tensor:
    """(n, H, W) bool -> (n, 4) float32 tight boxes, XYXY in pixel edges; zeros for empty masks."""
    if not len(masks):
        return torch.zeros(0, 4, device=masks.device)
    columns, rows = (masks.view(torch.uint8).amax(dim) for dim in (1, 2))  # (n, W), (n, H)
    # argmax finds the first of equal values.
    x0, y0 = columns.argmax(1), rows.argmax(1)
    x1, y1 = masks.shape[2] - columns.flip(1).argmax(1), masks.shape[1] - rows.flip(1).argmax(1)
    boxes = torch.stack([x0, y0, x1, y1], dim=1)
    return (boxes * columns.any(1, keepdim=True)).float()
