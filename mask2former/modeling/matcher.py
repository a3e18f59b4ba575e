"""Bipartite matching of queries and ground-truth objects (Mask2Former, section 3.3).

Shapes: L predictions, one before each layer of the decoder and one after the last; B pictures; Q
queries; K classes; C channels; N objects of one picture; P points.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from detectron2.projects.point_rend.point_features import point_sample
from torch import Tensor, nn
from torch.nn import functional as F

from .linear import linear

# Stands for a cost that overflowed; small enough that sums of it stay exact in float64.
LARGE_COST = 1e6


class Matches(NamedTuple):
    """The pairs of one picture, in all predictions; (T,) int64 each, on the model's device."""

    layers: Tensor  # the number of the prediction, in [0, L)
    queries: Tensor
    objects: Tensor


class HungarianMatcher(nn.Module):
    """The cheapest one-to-one assignment, by class probability, mask cross-entropy and dice.

    Masks are compared at ``num_points`` random points, the same for all pairs of a picture and for
    all of its predictions.
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
    ) -> list[Matches]:
        """
        Args:
            outputs: ``pred_logits`` (L, B, Q, K + 1), ``mask_embeddings`` (L, B, Q, C) and
                ``mask_features`` (B, C, h, w), whose product with them are the mask logits.
            targets: per picture ``labels`` (N,) int64 in [0, K) and ``masks`` (N, H, W), bool or
                0/1, over the same part of the picture as ``mask_features``; optionally
                ``ignored`` (H, W) bool, where masks are not compared.

        Returns:
            Of each picture the matches, min(Q, N) for each prediction, in the order of these.
        """
        logits, features = outputs["pred_logits"], outputs["mask_features"]
        # fp16 overflows in these sums; half-precision probabilities tie.
        with torch.autocast(device_type=logits.device.type, enabled=False):
            costs = [
                self.costs(
                    logits[:, b].float(),
                    outputs["mask_embeddings"][:, b].float(),
                    features[b].float(),
                    target,
                )
                for b, target in enumerate(targets)
            ]
        return _assign(costs)

    def costs(
        self,
        class_logits: Tensor,
        mask_embeddings: Tensor,
        mask_features: Tensor,
        target: Mapping[str, Tensor],
    ) -> Tensor:
        """(L, Q, K + 1), (L, Q, C), (C, h, w) and one picture's target -> finite (L, Q, N)."""
        labels, masks, ignored = target["labels"], target["masks"], target.get("ignored")
        points = torch.rand(1, self.num_points, 2, device=mask_features.device)
        if ignored is not None:
            points = points[:, ~values_at(ignored[None], points)[0]]
        # Sampling commutes with the product: C maps are sampled, and not Q in every layer.
        features = point_sample(mask_features[None], points, align_corners=False)[0]  # (C, P)
        if len(labels):
            actual = point_sample(masks[None].to(features), points, align_corners=False)[0]
        else:  # grid_sample takes no map without channels
            actual = features.new_zeros(0, features.shape[1])
        costs = []
        for logits, embeddings in zip(class_logits, mask_embeddings, strict=True):
            predicted = linear(embeddings, features.t())  # (Q, P)
            costs.append(
                -self.cost_class * logits.softmax(-1)[:, labels]
                + self.cost_mask * mask_cross_entropy_cost(predicted, actual)
                + self.cost_dice * dice_cost(predicted, actual)
            )
        return torch.stack(costs).nan_to_num(nan=LARGE_COST, posinf=LARGE_COST, neginf=-LARGE_COST)


def _assign(costs: Sequence[Tensor]) -> list[Matches]:
    """Solve (L, Q, N) costs of each picture, with one copy from their device and one to it."""
    from scipy.optimize import linear_sum_assignment  # 36 MB that a model in use does without

    device = costs[0].device
    flat = torch.cat([cost.flatten() for cost in costs]).cpu()
    pairs, counts = [], []
    for cost, values in zip(costs, flat.split([cost.numel() for cost in costs]), strict=True):
        values = values.view(cost.shape).numpy()
        solved = [np.stack(linear_sum_assignment(layer)) for layer in values]  # (2, pairs) each
        layers = np.repeat(np.arange(len(solved)), [pair.shape[1] for pair in solved])
        pairs.append(np.concatenate([layers[None], np.concatenate(solved, axis=1)]))
        counts.append(len(layers))
    on_device = torch.from_numpy(np.concatenate(pairs, axis=1)).to(device)
    return [Matches(*picture) for picture in on_device.split(counts, dim=1)]


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
