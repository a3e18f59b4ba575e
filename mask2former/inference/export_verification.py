"""An exported model beside the model itself, on the same pictures: differences and times."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..modeling import MaskFormer
from ..modeling.postprocessing import boxes_of_masks, semantic_labels
from .export import OUTPUTS, require

TOLERANCE = 1e-3  # of a share or a relative difference
Runner = Callable[[Tensor], Sequence[Tensor]]


@dataclass
class Comparison:
    """Of one batch of pictures.

    Attributes:
        shape: (B, C, H, W).
        differences: by name. Logits: the largest difference, of the largest value; scores: the
            largest difference; masks, labels, segments, ...: the share that differs.
        found: segments, labels, instances or queries of the model, that nothing agrees by absence.
        seconds: for the batch, the exported model and the model itself.
    """

    shape: tuple[int, ...]
    differences: dict[str, float]
    found: int
    seconds: tuple[float, float]

    @property
    def agrees(self) -> bool:
        return all(value <= TOLERANCE for value in self.differences.values())  # NaN does not


@torch.no_grad()
def compare(
    model: MaskFormer, task: str, run: Runner, shapes: Sequence[tuple[int, int, int]]
) -> Iterator[Comparison]:
    """Run both on random pictures of each shape (B, H, W), twice: the second time counts."""
    for batch, *size in shapes:
        images = random_pictures(model, batch, (size[0], size[1]))
        exported, seconds = _timed(run, images)
        outputs, eager_seconds = _timed(lambda x: _eager(model, x), images)
        exported = dict(zip(OUTPUTS[task], exported, strict=True))
        differences, found = _COMPARE[task](exported, *outputs)
        yield Comparison(tuple(images.shape), differences, found, (seconds, eager_seconds))


def random_pictures(model: MaskFormer, batch: int, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) of coloured clouds, in the units of ``model``'s pictures; always the same."""
    generator = torch.Generator().manual_seed(0)
    clouds = torch.randn(batch, len(model.pixel_mean), 6, 8, generator=generator)
    clouds = F.interpolate(clouds, size, mode="bilinear").to(model.device)
    return model.pixel_mean + 1.5 * model.pixel_std * clouds


def onnx_runner(path: Path) -> Runner:
    """ONNX Runtime on the CPU, with as many threads as torch."""
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: [
        torch.from_numpy(output) for output in session.run(None, {"images": images.cpu().numpy()})
    ]


def program_runner(path: Path) -> Runner:
    """A ``.pt2`` file, read back."""
    return torch.export.load(path).module()


def _timed(function: Callable[[Tensor], Any], images: Tensor) -> tuple[Any, float]:
    function(images)
    start = time.perf_counter()
    output = function(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return output, time.perf_counter() - start


def _eager(model: MaskFormer, images: Tensor) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """What the model makes of the pictures, and its logits."""
    logits: dict[str, Tensor] = {}
    hook = model.sem_seg_head.register_forward_hook(lambda _, __, output: logits.update(output))
    try:
        return model([{"image": image} for image in images]), logits
    finally:
        hook.remove()


def _share(a: Tensor, b: Tensor) -> float:
    return (a.cpu() != b.cpu()).double().mean().item()


def _largest(a: Tensor, b: Tensor) -> float:
    return (a.cpu() - b.cpu()).abs().max().item()


def _compare_raw(
    exported: dict[str, Tensor], results: list[dict[str, Any]], logits: dict[str, Tensor]
) -> tuple[dict[str, float], int]:
    differences = {}
    for name, key in (("class_logits", "pred_logits"), ("mask_logits", "pred_masks")):
        differences[name] = _largest(exported[name], logits[key]) / logits[key].abs().max().item()
    return differences, logits["pred_logits"].shape[1]


def _compare_semantic(
    exported: dict[str, Tensor], results: list[dict[str, Any]], logits: dict[str, Tensor]
) -> tuple[dict[str, float], int]:
    labels = torch.stack([semantic_labels(result["sem_seg"]) for result in results])
    return {"labels": _share(exported["labels"], labels)}, len(labels.unique())


def _compare_panoptic(
    exported: dict[str, Tensor], results: list[dict[str, Any]], logits: dict[str, Tensor]
) -> tuple[dict[str, float], int]:
    ids = torch.stack([result["panoptic_seg"][0] for result in results])
    found = wrong = 0
    largest = 0.0
    for i, result in enumerate(results):
        segments = result["panoptic_seg"][1]
        found += len(segments)
        theirs = panoptic_segments(*(exported[name][i] for name in OUTPUTS["panoptic"]))
        wrong += abs(len(theirs) - len(segments))
        for a, b in zip(theirs, segments):
            wrong += (a["id"], a["category_id"]) != (b["id"], b["category_id"])
            largest = max(largest, abs(a["score"] - b["score"]))
    shares = {"pixels": _share(exported["segment_ids"], ids), "segments": wrong / max(found, 1)}
    return {**shares, "scores": largest}, found


def panoptic_segments(
    segment_ids: Tensor, query_segments: Tensor, query_classes: Tensor, query_scores: Tensor
) -> list[dict[str, Any]]:
    """The segments of one picture: ``id``, ``category_id``, ``score``, ``area``, in order."""
    segments: dict[int, dict[str, Any]] = {}
    areas = segment_ids.flatten().bincount().tolist()
    queries = (query_segments, query_classes, query_scores)
    for segment, category, score in zip(*(output.tolist() for output in queries)):
        if segment:
            known = segments.setdefault(
                segment,
                {"id": segment, "category_id": category, "score": 0.0, "area": areas[segment]},
            )
            known["score"] = max(known["score"], score)
    return [segments[i] for i in sorted(segments)]


def _compare_instance(
    exported: dict[str, Tensor], results: list[dict[str, Any]], logits: dict[str, Tensor]
) -> tuple[dict[str, float], int]:
    differences = dict.fromkeys(("masks", "boxes", "scores", "classes"), 0.0)
    found = 0
    for i, result in enumerate(results):
        ours = result["instances"]
        found += len(ours)
        keep = exported["scores"][i] > 0  # the model drops stuff and empty masks have no score
        theirs = {name: exported[name][i][keep] for name in OUTPUTS["instance"]}
        ours = ours[ours.scores > 0]
        if len(ours) != int(keep.sum()):
            return dict.fromkeys(differences, 1.0), found
        if not len(ours):
            continue
        order = _in_order(theirs["classes"], theirs["scores"])
        theirs = {name: value[order] for name, value in theirs.items()}
        ours = ours[_in_order(ours.pred_classes, ours.scores)]
        for name, value in (
            ("masks", _share(theirs["masks"], ours.pred_masks)),
            ("boxes", _share(theirs["boxes"], boxes_of_masks(theirs["masks"]))),
            ("scores", _largest(theirs["scores"], ours.scores)),
            ("classes", _share(theirs["classes"], ours.pred_classes)),
        ):
            differences[name] = max(differences[name], value)
    return differences, found


def _in_order(classes: Tensor, scores: Tensor) -> Tensor:
    """Indices by class and, within a class, falling score."""
    by_score = scores.argsort(descending=True, stable=True)
    return by_score[classes[by_score].argsort(stable=True)]


_COMPARE = {
    "raw": _compare_raw,
    "semantic": _compare_semantic,
    "panoptic": _compare_panoptic,
    "instance": _compare_instance,
}
