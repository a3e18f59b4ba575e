"""Semantic segmentation averaged over sizes and mirror images of a picture."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import DatasetMapperTTA
from fvcore.transforms import HFlipTransform
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .meta_arch import MaskFormer


class SemanticSegmentorWithTTA(nn.Module):
    """A :class:`MaskFormer` whose ``sem_seg`` is the mean over augmented inputs.

    ``TEST.AUG`` has the sizes of the shorter side, the most pixels of the longer one, and whether
    each is mirrored too. As published, the picture as the data loader resized it is augmented, and
    the mean is that of the class scores at the output's size.
    """

    @configurable
    def __init__(
        self,
        model: nn.Module,
        *,
        tta_mapper: Callable[[Mapping[str, Any]], Sequence[Mapping[str, Any]]],
    ) -> None:
        """
        Args:
            model: a MaskFormer, bare or inside DistributedDataParallel.
            tta_mapper: one input of the model -> its augmented inputs, each with its
                ``transforms``.
        """
        super().__init__()
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        if not isinstance(self.model, MaskFormer) or not self.model.semantic_on:
            raise ValueError(
                "TEST.AUG.ENABLED: test-time augmentation is for semantic segmentation with "
                "MaskFormer; set MODEL.MASK_FORMER.TEST.SEMANTIC_ON True, or TEST.AUG.ENABLED False"
            )
        self.tta_mapper = tta_mapper

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        return {"model": model, "tta_mapper": DatasetMapperTTA(cfg)}

    @torch.no_grad()
    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
        """As :meth:`MaskFormer.forward` in inference, with ``sem_seg`` (K, height, width) only."""
        with semantic_only(self.model):
            return [{"sem_seg": self._mean_scores(x)} for x in batched_inputs]

    def _mean_scores(self, x: Mapping[str, Any]) -> Tensor:
        height, width = x["image"].shape[-2:]
        augmented = self.tta_mapper({"height": height, "width": width, **x})
        total = None
        for inputs in augmented:
            scores = self.model([inputs])[0]["sem_seg"]
            if any(isinstance(t, HFlipTransform) for t in inputs["transforms"].transforms):
                scores = scores.flip(-1)
            total = scores if total is None else total.add_(scores)
        return total / len(augmented)


@contextmanager
def semantic_only(model: MaskFormer) -> Iterator[None]:
    """Inside the block the model makes no other segmentation, which would be thrown away."""
    before = model.instance_on, model.panoptic_on
    model.instance_on = model.panoptic_on = False
    try:
        yield
    finally:
        model.instance_on, model.panoptic_on = before
