"""From class and mask logits to segmentations (Mask2Former, section 3.3; MaskFormer, section 3.4).

Pure functions on tensors. Shapes: Q queries, K classes, (h, w) the mask logits, (H, W) the output.
Every function that needs masks at the output's size takes ``resize``, which maps (n, h, w) logits
to (n, H, W): masks are selected first, so only those that count are ever resized.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

Resize = Callable[[Tensor], Tensor]


def semantic_inference(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Scores of all classes at every pixel: the masks, weighted with their class probabilities.

    Args:
        class_logits: (Q, K + 1).
        mask_logits: (Q, H, W).

    Returns:
        (K, H, W), not normalised over the classes.
    """
    probabilities = class_logits.softmax(-1)[:, :-1]
    return torch.einsum("qk,qhw->khw", probabilities, mask_logits.sigmoid())


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
    masks = resize(mask_logits[keep]).sigmoid()  # (n, H, W)
    if not len(masks):
        return torch.zeros(masks.shape[-2:], dtype=torch.int32, device=masks.device), []

    owner = (scores[:, None, None] * masks).argmax(0)  # (H, W)
    inside = masks.gather(0, owner[None])[0] >= 0.5
    n = len(masks)
    won = torch.bincount(owner.flatten(), minlength=n)
    full = (masks >= 0.5).flatten(1).sum(1)
    visible = torch.bincount(owner[inside], minlength=n)
    # One copy to the host for all segments.
    counts = torch.stack([labels, won, full, visible]).tolist()

    segments: list[dict[str, Any]] = []
    stuff: dict[int, dict[str, Any]] = {}
    segment_of_query = [0] * n
    for query, (label, won_area, full_area, area) in enumerate(zip(*counts, strict=True)):
        if not area or won_area / full_area < overlap_threshold:
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
        segment["area"] += area
        segment_of_query[query] = segment["id"]
    _add_scores(segments, segment_of_query, scores.tolist())
    lookup = torch.tensor(segment_of_query, dtype=torch.int32, device=owner.device)
    return lookup[owner] * inside, segments


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
) -> Instances:
    """The ``topk`` best pairs of query and class; one query may appear with several classes.

    Args:
        class_logits: (Q, K + 1).
        mask_logits: (Q, h, w).
        thing_ids: drop other classes (after the choice of the best, as published); None: keep all.

    Returns:
        Instances of size (H, W) with ``pred_masks`` (n, H, W) bool, ``pred_boxes`` (tight around
        the masks, XYXY in pixels, zeros for an empty mask), ``pred_classes`` (n,) int64 and
        ``scores`` (n,): class probability times the mean mask probability inside the mask.
    """
    num_queries, num_classes = class_logits.shape[0], class_logits.shape[1] - 1
    probabilities = class_logits.softmax(-1)[:, :-1].flatten()  # (Q * K,)
    scores, best = probabilities.topk(min(topk, num_queries * num_classes), sorted=False)
    queries = best.div(num_classes, rounding_mode="floor")
    classes = best % num_classes
    if thing_ids is not None:
        things = torch.zeros(num_classes, dtype=torch.bool, device=classes.device)
        things[list(thing_ids)] = True
        keep = things[classes]
        scores, queries, classes = scores[keep], queries[keep], classes[keep]
    logits = resize(mask_logits[queries])  # (n, H, W)
    masks = logits > 0
    area = masks.flatten(1).sum(1)
    mask_scores = (logits.sigmoid() * masks).flatten(1).sum(1) / (area + 1e-6)

    result = Instances(tuple(logits.shape[-2:]))
    result.pred_masks = masks
    result.pred_boxes = Boxes(boxes_of_masks(masks))
    result.scores = scores * mask_scores
    result.pred_classes = classes
    return result


def boxes_of_masks(masks: Tensor) -> Tensor:
    """(n, H, W) bool -> (n, 4) float32 tight boxes, XYXY in pixel edges; zeros for empty masks."""
    columns, rows = masks.any(dim=1).int(), masks.any(dim=2).int()  # (n, W), (n, H)
    if not len(masks):
        return torch.zeros(0, 4, device=masks.device)
    # argmax finds the first of equal values.
    x0, y0 = columns.argmax(1), rows.argmax(1)
    x1, y1 = masks.shape[2] - columns.flip(1).argmax(1), masks.shape[1] - rows.flip(1).argmax(1)
    boxes = torch.stack([x0, y0, x1, y1], dim=1)
    return (boxes * columns.any(1, keepdim=True)).float()
