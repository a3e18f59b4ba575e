"""``benchmark.py postprocessing``: from class and mask logits to segmentations.

Beside it the published order of work: all masks at the size of the picture first, then a loop over
segments. A fifth of the queries are sure of a class. Memory is what lives at once besides the
inputs, the results included.
"""

import argparse
import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.analysis import PeakMemory
from mask2former.errors import positive
from mask2former.modeling.postprocessing import (
    instance_inference,
    panoptic_inference,
    semantic_inference,
)
from mask2former.modeling.row_maps import RowMaps

from . import Report, add_common_arguments, measure

THRESHOLD = 0.8  # of scores and of overlaps, as in the published COCO configs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=positive, nargs=2, default=(800, 1216), metavar=("H", "W"))
    parser.add_argument("--queries", type=positive, default=100)
    parser.add_argument("--classes", type=positive, default=133)
    parser.add_argument("--things", type=positive, default=80)
    parser.add_argument("--device", default="cpu")
    add_common_arguments(parser, repeats=5)


@torch.no_grad()
def run(args: argparse.Namespace, report: Report) -> None:
    logits = make_logits(args)
    size, things = tuple(args.size), range(args.things)

    def resize(masks: Tensor) -> RowMaps:
        return RowMaps.of(masks).resize(size)

    def full(masks: Tensor) -> Tensor:
        return F.interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0]

    topk = {"topk": args.queries, "thing_ids": things}
    limits = {"object_mask_threshold": THRESHOLD, "overlap_threshold": THRESHOLD}
    tasks: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "panoptic": (
            lambda: panoptic_inference(*logits, resize, thing_ids=things, **limits),
            lambda: plain_panoptic(logits[0], full(logits[1]), things),
        ),
        "instance": (
            lambda: instance_inference(*logits, resize, **topk),
            lambda: plain_instance(logits[0], full(logits[1]), args.queries, things),
        ),
        "semantic": (
            lambda: semantic_inference(logits[0], resize(logits[1])).whole(),
            lambda: plain_semantic(logits[0], full(logits[1])),
        ),
    }
    rows = []
    for name, functions in tasks.items():
        ours, theirs = (measure(function, args.repeats, args.device) for function in functions)
        memory, published_memory = (peak_megabytes(function) for function in functions)
        rows.append(
            {
                "": name,
                "ms": ours,
                "published ms": theirs,
                "ratio": theirs.median / ours.median,
                "MB": memory,
                "published MB": published_memory,
                "share": memory / published_memory,
            }
        )
    report.machine(args.device)
    print(f"{args.queries} queries, {size[0]} x {size[1]}; medians of {args.repeats}")
    report.table("postprocessing", rows, floats=("", "", "", ".1f", ".0f", ".0f", ".2f"))
    report_agreement(tasks, report)


def make_logits(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """(Q, K + 1) and (Q, H / 4, W / 4): cones at random places, a twentieth of the picture each."""
    torch.manual_seed(0)
    classes = torch.randn(args.queries, args.classes + 1)
    classes[:, -1] += 12
    sure = torch.randperm(args.queries)[: args.queries // 5]
    classes[sure, -1] -= 12
    classes[sure, torch.randint(args.classes, sure.shape)] += 12
    height, width = (side // 4 for side in args.size)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centres = torch.rand(args.queries, 2, 1, 1) * torch.tensor([height, width])[:, None, None]
    distance = torch.hypot(y - centres[:, 0], x - centres[:, 1])
    masks = 8 * (1 - distance / (height * width / 20 / math.pi) ** 0.5)
    return classes.to(args.device), masks.to(args.device)


def peak_megabytes(function: Callable[[], object]) -> float:
    memory = PeakMemory()
    with memory:
        function()
    return memory.peak_bytes / 1e6


def report_agreement(
    tasks: dict[str, tuple[Callable[[], Any], Callable[[], Any]]], report: Report
) -> None:
    (ids, segments), (plain_ids, plain_segments) = (f() for f in tasks["panoptic"])
    instances, (plain_masks, plain_scores) = (f() for f in tasks["instance"])
    scores, plain_scores_of_classes = (f() for f in tasks["semantic"])
    report.figures(
        "{segments} and {published_segments} segments, the same at {same_pixels:.6f} of the "
        "pixels; instance masks the same at {same_masks:.6f}, scores within {score_error:.0e}; "
        "semantic scores within {semantic_error:.0e}",
        segments=len(segments),
        published_segments=len(plain_segments),
        same_pixels=(ids == plain_ids).float().mean().item(),
        same_masks=(instances.pred_masks == plain_masks).float().mean().item(),
        score_error=(instances.scores - plain_scores).abs().max().item(),
        semantic_error=(scores - plain_scores_of_classes).abs().max().item(),
    )


def published_order(
    model: nn.Module,
    class_logits: Tensor,
    mask_logits: Tensor,
    padded_size: tuple[int, int],
    size: tuple[int, int],
) -> list[Any]:
    """The segmentations that a MaskFormer makes of one picture's logits, by the plain functions."""
    masks = F.interpolate(mask_logits[None], padded_size, mode="bilinear", align_corners=False)[0]
    masks = masks[:, : size[0], : size[1]]
    results: list[Any] = []
    if model.semantic_on:
        results.append(plain_semantic(class_logits, masks))
    if model.panoptic_on:
        results.append(plain_panoptic(class_logits, masks, model.thing_ids))
    if model.instance_on:
        things = model.thing_ids if model.panoptic_on else range(class_logits.shape[1] - 1)
        results.append(plain_instance(class_logits, masks, model.test_topk_per_image, things))
    return results


def plain_semantic(class_logits: Tensor, masks: Tensor) -> Tensor:
    return torch.einsum("qc,qhw->chw", class_logits.softmax(-1)[:, :-1], masks.sigmoid())


def plain_panoptic(
    class_logits: Tensor, masks: Tensor, things: Collection[int]
) -> tuple[Tensor, list[dict[str, Any]]]:
    scores, labels = class_logits.softmax(-1).max(-1)
    masks = masks.sigmoid()
    keep = (labels != class_logits.shape[1] - 1) & (scores > THRESHOLD)
    scores, labels, masks = scores[keep], labels[keep], masks[keep]
    ids = torch.zeros(masks.shape[1:], dtype=torch.int32, device=masks.device)
    segments: list[dict[str, Any]] = []
    if not len(masks):
        return ids, segments
    owner = (scores[:, None, None] * masks).argmax(0)
    stuff: dict[int, int] = {}
    for query, label in enumerate(labels.tolist()):
        won, whole = owner == query, masks[query] >= 0.5
        visible = won & whole
        if not visible.any() or won.sum().item() / whole.sum().item() < THRESHOLD:
            continue
        if label in stuff:
            ids[visible] = stuff[label]
            continue
        segments.append({"id": len(segments) + 1, "category_id": label})
        ids[visible] = len(segments)
        if label not in things:
            stuff[label] = len(segments)
    return ids, segments


def plain_instance(
    class_logits: Tensor, masks: Tensor, topk: int, things: Collection[int]
) -> tuple[Tensor, Tensor]:
    num_classes = class_logits.shape[1] - 1
    scores, best = class_logits.softmax(-1)[:, :-1].flatten().topk(topk, sorted=False)
    masks, labels = masks[best // num_classes], best % num_classes
    keep = torch.tensor([label in things for label in labels.tolist()], device=masks.device)
    scores, masks = scores[keep], masks[keep]
    binary = (masks > 0).float()
    inside = (masks.sigmoid().flatten(1) * binary.flatten(1)).sum(1)
    return binary.bool(), scores * inside / (binary.flatten(1).sum(1) + 1e-6)
