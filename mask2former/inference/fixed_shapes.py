"""Segmentations of a batch, without shapes that depend on values: what an exported graph can hold.

The same results as :mod:`mask2former.modeling.postprocessing`, which selects queries first and goes
through the masks in bands. Here nothing is selected: what does not count has a score, a segment or
a mask of 0. Shapes: B pictures, Q queries, K classes, (h, w) the mask logits, (H, W) the output;
``resize`` maps (B, n, h, w) mask logits to (B, n, H, W).
"""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

Resize = Callable[[Tensor], Tensor]


def semantic(class_logits: Tensor, mask_logits: Tensor, resize: Resize) -> tuple[Tensor]:
    """Labels (B, H, W) int32, as :func:`~mask2former.modeling.postprocessing.semantic_labels`."""
    probabilities = class_logits.softmax(-1)[..., :-1].transpose(1, 2)  # (B, K, Q)
    masks = resize(mask_logits).sigmoid()
    scores = (probabilities @ masks.flatten(2)).unflatten(2, masks.shape[2:])
    labels = scores.argmax(1) if scores.shape[1] > 1 else scores[:, 0] < 0.5
    return (labels.int(),)


def instance(
    class_logits: Tensor,
    mask_logits: Tensor,
    resize: Resize,
    *,
    topk: int,
    thing_ids: Collection[int] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The N = ``topk`` best pairs of query and class, the surest first.

    Args:
        thing_ids: other classes get the score 0; None: none does.

    Returns:
        masks (B, N, H, W) bool; boxes (B, N, 4), tight around the masks, XYXY in pixels, zeros for
        an empty mask; scores (B, N): class probability times the mean mask probability inside the
        mask; classes (B, N) int32.
    """
    num_queries, num_classes = class_logits.shape[1], class_logits.shape[2] - 1
    probabilities = class_logits.softmax(-1)[..., :-1].flatten(1)  # (B, Q * K)
    scores, best = probabilities.topk(min(topk, num_queries * num_classes))
    queries, classes = best // num_classes, best % num_classes
    if thing_ids is not None:
        things = torch.tensor([i in thing_ids for i in range(num_classes)], device=scores.device)
        scores = scores * things[classes]
    picture = torch.arange(queries.shape[0], device=queries.device)[:, None]
    logits = resize(mask_logits[picture, queries])
    masks = logits > 0
    inside = masks.to(logits.dtype)
    quality = (inside * logits.sigmoid()).sum((2, 3)) / (inside.sum((2, 3)) + 1e-6)
    return masks, _boxes(inside), scores * quality, classes.int()


def _boxes(inside: Tensor) -> Tensor:
    """(B, N, H, W) of 0 and 1 -> (B, N, 4) tight boxes, XYXY in pixel edges."""
    low, high = [], []
    for occupied in (inside.amax(2), inside.amax(3)):  # (B, N, W), (B, N, H)
        length = occupied.shape[2]
        position = torch.arange(length, device=inside.device)
        # Distances from the far end and from the near end: 0 counts as no pixel at all.
        high.append((occupied * (position + 1)).amax(2))
        low.append(occupied.amax(2) * length - (occupied * (length - position)).amax(2))
    return torch.stack([*low, *high], dim=2)


def panoptic(
    class_logits: Tensor,
    mask_logits: Tensor,
    resize: Resize,
    *,
    thing_ids: Collection[int],
    object_mask_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One segment or none for every pixel, numbered from 1 on in the order of their first queries.

    Returns:
        ids (B, H, W) int32 of segments, 0 where there is none; of each query, (B, Q): the segment
        that it is or is a part of, int32, 0 for none; its class, int32; its class probability.
        Queries of one segment share its class; the segment's score is the largest of theirs.
    """
    num_queries, num_classes = class_logits.shape[1], class_logits.shape[2] - 1
    scores, classes = class_logits.softmax(-1).max(-1)  # (B, Q)
    keep = (classes != num_classes) & (scores > object_mask_threshold)
    probabilities = resize(mask_logits).sigmoid()
    product = scores[..., None, None] * probabilities
    owner = torch.where(keep[..., None, None], product, -1).argmax(1, keepdim=True)  # (B, 1, H, W)
    inside = probabilities.gather(1, owner).flatten(1) >= 0.5
    owner = owner.flatten(1)  # (B, H * W), like inside

    nothing = torch.zeros_like(classes)
    won = nothing.scatter_add(1, owner, torch.ones_like(owner))
    visible = nothing.scatter_add(1, owner, inside.to(owner.dtype))
    full = (probabilities >= 0.5).sum((2, 3), dtype=torch.int32)
    share = won.double() / full.clamp(min=1)
    keep = keep & (visible > 0) & (share >= overlap_threshold)

    # Stuff of one class is one segment, that of its first query; a thing is its own first.
    stuff = torch.tensor([i not in thing_ids for i in range(num_classes + 1)], device=keep.device)
    query = torch.arange(num_queries, device=classes.device)
    same = (classes[:, :, None] == classes[:, None, :]) & stuff[classes][:, :, None]
    same = (same | (query[:, None] == query)) & keep[:, None, :]
    first = same.int().argmax(2)  # (B, Q)
    number = (keep & (first == query)).int().cumsum(1)
    segments = torch.where(keep, number.gather(1, first), 0)
    ids = torch.where(inside, segments.gather(1, owner), 0)
    return (
        ids.unflatten(1, probabilities.shape[2:]).int(),
        segments.int(),
        classes.int(),
        scores,
    )
