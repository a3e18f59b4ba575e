"""Bipartite matching of queries and ground-truth objects (Mask2Former, section 3.3)."""

from collections.abc import Mapping, Sequence

import torch
from detectron2.projects.point_rend.point_features import point_sample
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

# Stands for a cost that overflowed; small enough that sums of it stay exact in float64.
LARGE_COST = 1e6


class HungarianMatcher(nn.Module):
    """The cheapest one-to-one assignment, by class probability, mask cross-entropy and dice.

    Masks are compared at ``num_points`` random points, the same for all pairs of a picture.
    """

    def __init__(
        self, *, cost_class: float, cost_mask: float, cost_dice: float, num_points: int
    ) -> None:
        super().__init__()
        if not (cost_class or cost_mask or cost_dice):
            raise ValueError("at least one matching cost must be non-zero")
        self.cost_class = cost_class
        self.cost_mask = cost_mask
        self.cost_dice = cost_dice
        self.num_points = num_points

    @torch.no_grad()
    def forward(
        self, outputs: Mapping[str, Tensor], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[tuple[Tensor, Tensor]]:
        """
        Args:
            outputs: ``pred_logits`` (B, Q, K + 1) and ``pred_masks`` (B, Q, h, w).
            targets: per picture ``labels`` (N,) int64 in [0, K) and ``masks`` (N, H, W), bool or
                0/1, over the same part of the picture as ``pred_masks``; optionally ``ignored``
                (H, W) bool, where masks are not compared.

        Returns:
            Per picture the matched query indices and object indices, both (min(Q, N),) int64 on
            the CPU.
        """
        # fp16 overflows in these sums; half-precision probabilities tie.
        device_type = outputs["pred_logits"].device.type
        with torch.autocast(device_type=device_type, enabled=False):
            costs = [
                self.costs(
                    logits.float(),
                    masks.float(),
                    target["labels"],
                    target["masks"],
                    target.get("ignored"),
                )
                for logits, masks, target in zip(
                    outputs["pred_logits"], outputs["pred_masks"], targets, strict=True
                )
            ]
        matches = []
        for cost in costs:
            queries, objects = linear_sum_assignment(cost.cpu().numpy())
            matches.append((torch.as_tensor(queries), torch.as_tensor(objects)))
        return matches

    def costs(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        labels: Tensor,
        masks: Tensor,
        ignored: Tensor | None = None,
    ) -> Tensor:
        """(Q, K + 1), (Q, h, w), (N,), (N, H, W) and (H, W) -> finite costs (Q, N)."""
        points = torch.rand(1, self.num_points, 2, device=mask_logits.device)
        if ignored is not None:
            points = points[:, ~values_at(ignored[None], points)[0]]
        predicted = point_sample(mask_logits[None], points, align_corners=False)[0]  # (Q, P)
        if len(labels):
            actual = point_sample(masks[None].to(predicted), points, align_corners=False)[0]
        else:  # grid_sample takes no map without channels
            actual = predicted.new_zeros(0, predicted.shape[1])
        cost = (
            -self.cost_class * class_logits.softmax(-1)[:, labels]
            + self.cost_mask * mask_cross_entropy_cost(predicted, actual)
            + self.cost_dice * dice_cost(predicted, actual)
        )
        return cost.nan_to_num(nan=LARGE_COST, posinf=LARGE_COST, neginf=-LARGE_COST)


def mask_cross_entropy_cost(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy of every pair: (Q, P) logits, (N, P) in [0, 1] -> (Q, N).

    The cross-entropy is ``softplus(x) - x t``, so its sum over points is one product of matrices.
    """
    total = F.softplus(logits).sum(1, keepdim=True) - logits @ targets.t()
    return total / max(logits.shape[1], 1)


def dice_cost(logits: Tensor, targets: Tensor) -> Tensor:
    """One minus the smoothed dice coefficient of every pair: (Q, P), (N, P) -> (Q, N)."""
    probabilities = logits.sigmoid()
    intersection = 2 * (probabilities @ targets.t())
    total = probabilities.sum(1, keepdim=True) + targets.sum(1)
    return 1 - (intersection + 1) / (total + 1)


def values_at(maps: Tensor, points: Tensor) -> Tensor:
    """Values of the pixels that points lie in: (n, H, W), (n, P, 2) x and y in [0, 1] -> (n, P)."""
    height, width = maps.shape[1:]
    x = (points[..., 0] * width).long().clamp(max=width - 1)
    y = (points[..., 1] * height).long().clamp(max=height - 1)
    return maps.flatten(1).gather(1, y * width + x)
