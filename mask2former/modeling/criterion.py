"""The training losses of Mask2Former (section 3.3): class, mask and dice, under deep supervision.

Shapes: B pictures, Q queries, K classes, N objects of one picture, T matched pairs of the batch,
P sampled points.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.projects.point_rend.point_features import (
    get_uncertain_point_coords_with_randomness,
    point_sample,
)
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F

from .matcher import HungarianMatcher, values_at

CERTAIN = 1e4  # a logit that no sampling of uncertain points prefers


class SetCriterion(nn.Module):
    """Match the queries of every prediction with the objects, then charge what differs."""

    def __init__(
        self,
        *,
        num_classes: int,
        matcher: HungarianMatcher,
        weight_dict: Mapping[str, float],
        eos_coef: float,
        deep_supervision: bool,
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
    ) -> None:
        """
        Args:
            num_classes: K, without the "no object" class.
            weight_dict: factors of ``loss_ce``, ``loss_mask`` and ``loss_dice``.
            eos_coef: weight of the "no object" class in the classification loss.
            deep_supervision: charge the auxiliary predictions too.
            num_points: P; ``importance_sample_ratio`` of them are the least certain out of
                ``oversample_ratio * num_points`` random ones (PointRend, section 3.1).
        """
        super().__init__()
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = dict(weight_dict)
        self.deep_supervision = deep_supervision
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = eos_coef
        self.register_buffer("empty_weight", empty_weight)

    def forward(
        self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """
        Args:
            outputs: ``pred_logits`` (B, Q, K + 1), ``pred_masks`` (B, Q, h, w) and
                ``aux_outputs``, a list of such dicts in the order of the decoder's layers.
            targets: per picture ``labels`` (N,) int64, ``masks`` (N, H, W) bool and, for all
                pictures or none, ``ignored`` (H, W) bool: pixels that no mask is charged for.

        Returns:
            Weighted ``loss_ce``, ``loss_mask``, ``loss_dice`` of the last prediction, and the same
            with ``_0``, ``_1``, ... of the auxiliary ones. A batch without objects has zero mask
            losses that still reach every parameter.
        """
        # Objects a picture has, on average over all workers: each charges its own share.
        num_masks = torch.tensor(
            float(sum(len(target["labels"]) for target in targets)),
            device=outputs["pred_logits"].device,
        )
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(num_masks)
        num_masks = (num_masks / comm.get_world_size()).clamp(min=1)

        predictions = {"": outputs}
        if self.deep_supervision:
            predictions |= {f"_{i}": aux for i, aux in enumerate(outputs["aux_outputs"])}
        losses = {}
        for suffix, prediction in predictions.items():
            for name, loss in self.losses(prediction, targets, num_masks).items():
                losses[name + suffix] = loss * self.weight_dict[name]
        return losses

    def losses(
        self,
        prediction: Mapping[str, Tensor],
        targets: Sequence[Mapping[str, Tensor]],
        num_masks: Tensor,
    ) -> dict[str, Tensor]:
        """The three losses of one prediction, not weighted."""
        matches = self.matcher(prediction, targets)
        device = prediction["pred_logits"].device
        pictures = torch.cat([torch.full_like(q, b) for b, (q, _) in enumerate(matches)])
        queries = torch.cat([q for q, _ in matches])
        pictures, queries = pictures.to(device), queries.to(device)  # (T,) each
        objects = [o.to(device) for _, o in matches]
        labels = torch.cat([t["labels"][o] for t, o in zip(targets, objects, strict=True)])
        masks = torch.cat([t["masks"][o] for t, o in zip(targets, objects, strict=True)])
        loss_ce = self.loss_labels(prediction["pred_logits"], pictures, queries, labels)
        mask_logits = prediction["pred_masks"][pictures, queries]  # (T, h, w)
        ignored = None
        if "ignored" in targets[0]:
            ignored = torch.stack([target["ignored"] for target in targets])[pictures]
        loss_mask, loss_dice = self.loss_masks(mask_logits, masks, num_masks, ignored)
        return {"loss_ce": loss_ce, "loss_mask": loss_mask, "loss_dice": loss_dice}

    def loss_labels(
        self, class_logits: Tensor, pictures: Tensor, queries: Tensor, labels: Tensor
    ) -> Tensor:
        """Weighted cross-entropy of all queries; those without an object are "no object"."""
        classes = torch.full(
            class_logits.shape[:2], self.num_classes, dtype=torch.int64, device=class_logits.device
        )
        classes[pictures, queries] = labels
        return F.cross_entropy(
            class_logits.float().transpose(1, 2), classes, weight=self.empty_weight
        )

    def loss_masks(
        self, mask_logits: Tensor, masks: Tensor, num_masks: Tensor, ignored: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mask and dice loss of matched pairs, (T, h, w) logits and (T, H, W) bool masks.

        Args:
            ignored: (T, H, W) bool; these pixels are not sampled as the least certain ones, and
                where they are sampled at random do not count.
        """
        if not len(masks):
            zero = mask_logits.sum()  # of nothing, but connected to the graph
            return zero, zero
        mask_logits = mask_logits[:, None].float()
        with torch.no_grad():
            uncertain = mask_logits
            if ignored is not None:
                small = F.interpolate(ignored[:, None].float(), mask_logits.shape[-2:]) > 0
                uncertain = mask_logits.masked_fill(small, CERTAIN)
            points = get_uncertain_point_coords_with_randomness(
                uncertain,
                lambda logits: -logits.abs(),
                self.num_points,
                self.oversample_ratio,
                self.importance_sample_ratio,
            )
            targets = point_sample(masks[:, None].to(mask_logits), points, align_corners=False)
        logits = point_sample(mask_logits, points, align_corners=False).squeeze(1)
        targets = targets.squeeze(1)  # (T, P)
        counts = (
            torch.ones_like(targets) if ignored is None else (~values_at(ignored, points)).float()
        )
        return (
            mask_cross_entropy_loss(logits, targets, num_masks, counts),
            dice_loss(logits, targets, num_masks, counts),
        )


def mask_cross_entropy_loss(
    logits: Tensor, targets: Tensor, num_masks: Tensor, counts: Tensor
) -> Tensor:
    """Binary cross-entropy, the mean over points, summed over pairs, divided by ``num_masks``.

    Args:
        logits, targets: (T, P).
        counts: (T, P), 1 for points that count and 0 for others.
    """
    loss = F.binary_cross_entropy_with_logits(logits, targets, counts, reduction="none")
    return (loss.sum(1) / counts.sum(1).clamp(min=1)).sum() / num_masks


def dice_loss(logits: Tensor, targets: Tensor, num_masks: Tensor, counts: Tensor) -> Tensor:
    """One minus the smoothed dice coefficient, summed over pairs, divided by ``num_masks``.

    Arguments as of :func:`mask_cross_entropy_loss`.
    """
    probabilities, targets = logits.sigmoid() * counts, targets * counts
    intersection = 2 * (probabilities * targets).sum(1)
    total = probabilities.sum(1) + targets.sum(1)
    return (1 - (intersection + 1) / (total + 1)).sum() / num_masks
