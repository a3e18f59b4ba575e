"""The training losses of Mask2Former (section 3.3): class, mask and dice, under deep supervision.

Shapes: L predictions, one before each layer of the decoder and one after the last; B pictures; Q
queries; K classes; C channels; N objects and T matched pairs of one picture (in all its
predictions); P sampled points.
"""

from collections.abc import Mapping, Sequence

import torch
from detectron2.projects.point_rend.point_features import point_sample
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F

from .matcher import HungarianMatcher, Matches, values_at

CERTAIN = 1e4  # a logit that no sampling of uncertain points prefers
PAIRS_AT_A_TIME = 64  # whose candidates for uncertain points are drawn: 300 kB for each pair


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
        self, outputs: Mapping[str, Tensor], targets: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """
        Args:
            outputs: ``pred_logits`` (L, B, Q, K + 1), ``mask_embeddings`` (L, B, Q, C) and
                ``mask_features`` (B, C, h, w), in the order of the decoder's layers; the product
                of the last two are the mask logits, which are formed for matched queries only.
            targets: per picture ``labels`` (N,) int64, ``masks`` (N, H, W) bool and, for all
                pictures or none, ``ignored`` (H, W) bool: pixels that no mask is charged for.

        Returns:
            Weighted ``loss_ce``, ``loss_mask``, ``loss_dice`` of the last prediction, and the same
            with ``_0``, ``_1``, ... of the ones before. A batch without objects has zero mask
            losses that still reach every parameter.
        """
        outputs = dict(outputs)
        if not self.deep_supervision:
            for name in ("pred_logits", "mask_embeddings"):
                outputs[name] = outputs[name][-1:]
        matches = self.matcher(outputs, targets)
        losses = {"loss_ce": self.loss_labels(outputs["pred_logits"], targets, matches)}
        losses |= self.loss_masks(outputs, targets, matches)
        suffixes = [f"_{i}" for i in range(len(outputs["pred_logits"]) - 1)] + [""]
        return {
            name + suffix: loss * self.weight_dict[name]
            for name, of_layers in losses.items()
            for suffix, loss in zip(suffixes, of_layers.unbind(), strict=True)
        }

    def loss_labels(
        self,
        class_logits: Tensor,
        targets: Sequence[Mapping[str, Tensor]],
        matches: Sequence[Matches],
    ) -> Tensor:
        """(L,) weighted cross-entropy of all queries; those without an object are "no object"."""
        classes = torch.full(
            class_logits.shape[:3], self.num_classes, dtype=torch.int64, device=class_logits.device
        )
        for picture, (target, match) in enumerate(zip(targets, matches, strict=True)):
            classes[match.layers, picture, match.queries] = target["labels"][match.objects]
        loss = F.cross_entropy(
            class_logits.flatten(0, 2).float(),
            classes.flatten(),
            weight=self.empty_weight,
            reduction="none",
        )
        weights = self.empty_weight[classes].flatten(1).sum(1)
        return loss.view(len(classes), -1).sum(1) / weights

    def loss_masks(
        self,
        outputs: Mapping[str, Tensor],
        targets: Sequence[Mapping[str, Tensor]],
        matches: Sequence[Matches],
    ) -> dict[str, Tensor]:
        """(L,) ``loss_mask`` and ``loss_dice``, each for an object on average."""
        embeddings, features = outputs["mask_embeddings"], outputs["mask_features"]
        nothing = embeddings[..., :0].float().sum((1, 2, 3))
        if not any(len(match.layers) for match in matches):
            nothing = nothing + features[:0].float().sum()  # a function of every parameter, still
        totals = dict.fromkeys(PAIR_LOSSES, nothing)  # (L,) each
        # All at once: the gradient of one picture's features would be zeros for all the others.
        of_pictures = zip(targets, matches, features.unbind(), strict=True)
        for picture, (target, match, maps) in enumerate(of_pictures):
            if not len(match.layers):
                continue
            matched = embeddings[match.layers, picture, match.queries]  # (T, C)
            mask_logits = torch.einsum("tc,chw->thw", matched, maps).float()
            sampled = self.sample_points(mask_logits, target, match, len(embeddings))
            for name, loss in PAIR_LOSSES.items():
                totals[name] = totals[name].index_add(0, match.layers, loss(*sampled))
        num_masks = self.average_objects(targets, features.device)
        return {name: total / num_masks for name, total in totals.items()}

    def average_objects(
        self, targets: Sequence[Mapping[str, Tensor]], device: torch.device
    ) -> Tensor:
        """Objects of a batch, on average over all workers: each charges its own share."""
        num_masks = torch.tensor(float(sum(len(t["labels"]) for t in targets)), device=device)
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(num_masks)
        return (num_masks / comm.get_world_size()).clamp(min=1)

    def sample_points(
        self,
        mask_logits: Tensor,
        target: Mapping[str, Tensor],
        match: Matches,
        num_predictions: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, masks and whether the point counts, for the pairs of one picture, (T, P) each.

        Ignored pixels are not sampled as the least certain ones, and where they are sampled at
        random do not count.
        """
        ignored = target.get("ignored")
        with torch.no_grad():
            uncertain = mask_logits
            if ignored is not None:
                small = F.interpolate(ignored[None, None].float(), mask_logits.shape[-2:]) > 0
                uncertain = mask_logits.masked_fill(small[0], CERTAIN)
            chunks = uncertain.split(PAIRS_AT_A_TIME)
            points = torch.cat([self.uncertain_points(chunk) for chunk in chunks])
            masks = masks_at(target["masks"], points, match, num_predictions)
        logits = point_sample(mask_logits[:, None], points, align_corners=False).squeeze(1)
        if ignored is None:
            return logits, masks, torch.ones_like(masks)
        counts = ~values_at(ignored[None], points.flatten(0, 1)[None]).view(masks.shape)
        return logits, masks, counts.float()

    def uncertain_points(self, mask_logits: Tensor) -> Tensor:
        """(T, h, w) logits -> (T, P, 2) points, x and y in [0, 1] (PointRend, section 3.1)."""
        num_pairs, device = len(mask_logits), mask_logits.device
        num_candidates = int(self.num_points * self.oversample_ratio)
        num_uncertain = int(self.num_points * self.importance_sample_ratio)
        candidates = torch.rand(num_pairs, num_candidates, 2, device=device)
        logits = point_sample(mask_logits[:, None], candidates, align_corners=False).squeeze(1)
        # Detectron2's function sorts what it takes, which costs as much as all the rest.
        chosen = logits.abs().topk(num_uncertain, dim=1, largest=False, sorted=False).indices
        uncertain = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
        others = torch.rand(num_pairs, self.num_points - num_uncertain, 2, device=device)
        return torch.cat([uncertain, others], dim=1)


def masks_at(masks: Tensor, points: Tensor, match: Matches, num_predictions: int) -> Tensor:
    """Bilinear values of the objects' masks, (N, H, W) bool, at the pairs' points, (T, P, 2).

    An object is sampled once, at the points of all its pairs: a copy of its mask for each of them,
    in float32, would fill gigabytes.
    """
    per_object = points.new_zeros(len(masks), num_predictions, *points.shape[1:])
    per_object[match.objects, match.layers] = points
    values = point_sample(masks[:, None].float(), per_object.flatten(1, 2), align_corners=False)
    return values.view(per_object.shape[:-1])[match.objects, match.layers]


def mask_cross_entropy_loss(logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """Binary cross-entropy of each pair, the mean over its points.

    Args:
        logits, targets: (T, P).
        counts: (T, P), 1 for points that count and 0 for others.

    Returns:
        (T,).
    """
    loss = F.binary_cross_entropy_with_logits(logits, targets, counts, reduction="none")
    return loss.sum(1) / counts.sum(1).clamp(min=1)


def dice_loss(logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """One minus the smoothed dice coefficient of each pair.

    Arguments and result as of :func:`mask_cross_entropy_loss`.
    """
    probabilities, targets = logits.sigmoid() * counts, targets * counts
    intersection = 2 * (probabilities * targets).sum(1)
    total = probabilities.sum(1) + targets.sum(1)
    return 1 - (intersection + 1) / (total + 1)


PAIR_LOSSES = {"loss_mask": mask_cross_entropy_loss, "loss_dice": dice_loss}
