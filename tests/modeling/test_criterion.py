import math

import pytest
import torch
from torch.nn import functional as F
from training_outputs import training_outputs

from mask2former.modeling.criterion import SetCriterion, dice_loss, mask_cross_entropy_loss
from mask2former.modeling.matcher import HungarianMatcher

NUM_CLASSES = 3
NO_OBJECT_WEIGHT = 0.1


def make_criterion(**changes):
    settings = {
        "num_classes": NUM_CLASSES,
        "matcher": HungarianMatcher(cost_class=2.0, cost_mask=5.0, cost_dice=5.0, num_points=256),
        "weight_dict": {"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 5.0},
        "eos_coef": NO_OBJECT_WEIGHT,
        "deep_supervision": True,
        "num_points": 256,
        "oversample_ratio": 3.0,
        "importance_sample_ratio": 0.75,
    }
    return SetCriterion(**(settings | changes))


def constant_case():
    """One picture, one object that fills it, two queries with constant masks."""
    class_logits = torch.tensor([[[0.5, 1.5, -1.0, 0.0], [-1.0, 0.0, 0.3, 2.0]]])
    mask_logits = torch.stack([torch.full((8, 8), 2.0), torch.full((8, 8), -2.0)])[None]
    target = {"labels": torch.tensor([1]), "masks": torch.ones(1, 16, 16, dtype=torch.bool)}
    return training_outputs(class_logits[None], mask_logits[None]), [target]


def inner_points(self, logits):
    """Points away from the border, where zero padding takes part in bilinear sampling."""
    return 0.25 + 0.5 * torch.rand(len(logits), 256, 2)


@pytest.fixture
def _inner(monkeypatch):
    monkeypatch.setattr(SetCriterion, "uncertain_points", inner_points)


@pytest.mark.usefixtures("_inner")
def test_hand_worked_losses():
    outputs, targets = constant_case()
    losses = make_criterion()(outputs, targets)
    # Query 0 is matched: class 1; query 1 is "no object" (class 3), at a tenth of the weight.
    log_p = outputs["pred_logits"][0, 0].log_softmax(-1)
    loss_ce = -(log_p[0, 1] + NO_OBJECT_WEIGHT * log_p[1, 3]) / (1 + NO_OBJECT_WEIGHT)
    torch.testing.assert_close(losses["loss_ce"], 2.0 * loss_ce)
    # All points: logit 2, target 1.
    assert losses["loss_mask"].item() == pytest.approx(5.0 * math.log(1 + math.exp(-2)), rel=1e-5)
    p = 1 / (1 + math.exp(-2))
    dice = 1 - (2 * 256 * p + 1) / (256 * p + 256 + 1)
    assert losses["loss_dice"].item() == pytest.approx(5.0 * dice, rel=1e-5)


def test_pair_losses_equal_their_definitions():
    logits = torch.randn(4, 50, dtype=torch.float64)
    targets = torch.rand(4, 50, dtype=torch.float64).round()
    counts = torch.ones_like(targets)
    expected = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
    torch.testing.assert_close(mask_cross_entropy_loss(logits, targets, counts), expected)
    p = logits.sigmoid()
    dice = [
        1 - (2 * (p[i] @ targets[i]) + 1) / (p[i].sum() + targets[i].sum() + 1) for i in range(4)
    ]
    torch.testing.assert_close(dice_loss(logits, targets, counts), torch.stack(dice))


def test_names_and_deep_supervision():
    outputs, targets = constant_case()
    for name in ("pred_logits", "mask_embeddings"):
        outputs[name] = outputs[name].repeat(3, 1, 1, 1)
    losses = make_criterion()(outputs, targets)
    names = {"loss_ce", "loss_mask", "loss_dice"}
    assert set(losses) == names | {f"{n}_{i}" for n in names for i in (0, 1)}
    torch.testing.assert_close(losses["loss_ce_0"], losses["loss_ce"])
    assert set(make_criterion(deep_supervision=False)(outputs, targets)) == names


def test_no_objects_still_reach_the_parameters():
    outputs, targets = constant_case()
    for output in outputs.values():
        output.requires_grad_()
    targets = [{"labels": targets[0]["labels"][:0], "masks": targets[0]["masks"][:0]}]
    losses = make_criterion()(outputs, targets)
    assert losses["loss_mask"] == losses["loss_dice"] == 0
    log_p = outputs["pred_logits"].log_softmax(-1)
    torch.testing.assert_close(losses["loss_ce"], -2.0 * log_p[0, 0, :, 3].mean())
    sum(losses.values()).backward()
    for name in ("mask_embeddings", "mask_features"):
        assert torch.equal(outputs[name].grad, torch.zeros_like(outputs[name]))


def test_a_batch_with_an_empty_picture_counts_its_objects_once():
    outputs, targets = constant_case()
    single = make_criterion()(outputs, targets)
    outputs = {
        "pred_logits": outputs["pred_logits"].repeat(1, 2, 1, 1),
        "mask_embeddings": outputs["mask_embeddings"].repeat(1, 2, 1, 1),
        "mask_features": outputs["mask_features"].repeat(2, 1, 1, 1),
    }
    empty = {"labels": targets[0]["labels"][:0], "masks": targets[0]["masks"][:0]}
    both = make_criterion()(outputs, [targets[0], empty])
    # The mask losses are per object, and there still is one.
    torch.testing.assert_close(both["loss_mask"], single["loss_mask"], rtol=0.2, atol=0)


def test_points_that_do_not_count():
    logits, targets = torch.randn(2, 4, 50, dtype=torch.float64)
    targets = targets.sigmoid().round()
    counts = torch.ones_like(targets)
    counts[:, 20:] = 0
    for loss in (mask_cross_entropy_loss, dice_loss):
        expected = loss(logits[:, :20], targets[:, :20], counts[:, :20])
        torch.testing.assert_close(loss(logits, targets, counts), expected)


def test_ignored_pixels_have_no_gradient_and_do_not_change_the_matching():
    criterion = SetCriterion(
        num_classes=2,
        matcher=HungarianMatcher(cost_class=1.0, cost_mask=1.0, cost_dice=1.0, num_points=400),
        weight_dict={"loss_ce": 1.0, "loss_mask": 1.0, "loss_dice": 1.0},
        eos_coef=0.1,
        deep_supervision=False,
        num_points=400,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
    )
    ignored = torch.zeros(32, 32, dtype=torch.bool)
    ignored[:, 16:] = True
    masks = torch.rand(2, 32, 32) > 0.5
    target = {"labels": torch.tensor([0, 1]), "masks": masks, "ignored": ignored}
    losses, gradients = [], []
    for noise in (0.0, 3.0):
        torch.manual_seed(1)
        logits = torch.randn(1, 5, 32, 32)
        logits[..., 17:] += noise * torch.randn(1, 5, 32, 15)  # one column off: points are bilinear
        logits.requires_grad_()
        outputs = training_outputs(torch.zeros(1, 1, 5, 3), logits[None])
        torch.manual_seed(2)
        loss = criterion(outputs, [target])
        losses.append(loss)
        (gradient,) = torch.autograd.grad(loss["loss_mask"] + loss["loss_dice"], logits)
        gradients.append(gradient)
    torch.testing.assert_close(losses[0], losses[1])
    assert gradients[0][..., 17:].abs().max() == 0 < gradients[0][..., :16].abs().max()


def test_the_least_certain_points_are_sampled():
    """With importance sampling alone, the loss is that of the uncertain band."""

    def loss(importance_sample_ratio):
        criterion = SetCriterion(
            num_classes=1,
            matcher=HungarianMatcher(cost_class=1.0, cost_mask=1.0, cost_dice=1.0, num_points=50),
            weight_dict={"loss_ce": 1.0, "loss_mask": 1.0, "loss_dice": 1.0},
            eos_coef=0.1,
            deep_supervision=False,
            num_points=200,
            oversample_ratio=8.0,
            importance_sample_ratio=importance_sample_ratio,
        )
        logits = torch.full((1, 1, 32, 32), -20.0)
        logits[..., 12:20] = 0.0  # undecided on a quarter of the picture
        masks = torch.zeros(1, 32, 32, dtype=torch.bool)
        outputs = training_outputs(torch.zeros(1, 1, 1, 2), logits[None])
        target = {"labels": torch.tensor([0]), "masks": masks}
        return criterion(outputs, [target])["loss_mask"].item()

    assert abs(loss(1.0) - math.log(2)) < 1e-3
    assert abs(loss(0.0) - math.log(2) / 4) < 0.1


def test_each_layer_is_charged_for_its_own_prediction():
    criterion = SetCriterion(
        num_classes=1,
        matcher=HungarianMatcher(cost_class=1.0, cost_mask=1.0, cost_dice=1.0, num_points=50),
        weight_dict={"loss_ce": 1.0, "loss_mask": 1.0, "loss_dice": 1.0},
        eos_coef=0.1,
        deep_supervision=True,
        num_points=5000,
        oversample_ratio=1.0,
        importance_sample_ratio=0.0,
    )

    logits = torch.tensor([10.0, -10.0, 0.0]).view(3, 1, 1, 1)
    outputs = training_outputs(
        torch.cat([logits, torch.zeros_like(logits)], dim=-1),
        logits[..., None].expand(-1, -1, -1, 16, 16),
    )
    target = {"labels": torch.tensor([0]), "masks": torch.ones(1, 16, 16, dtype=torch.bool)}
    losses = criterion(outputs, [target])
    for name in ("loss_ce", "loss_mask"):
        assert losses[f"{name}_0"] < 0.3 and losses[f"{name}_1"] > 9
        assert abs(losses[name].item() - math.log(2)) < 1e-4


def test_more_objects_than_queries():
    """Objects that no query is left for are charged for nothing; the others at their own masks."""
    masks = torch.zeros(3, 16, 16, dtype=torch.bool)
    masks[0, :8], masks[1, 8:], masks[2, :, :8] = True, True, True
    target = {"labels": torch.tensor([0, 1, 2]), "masks": masks}
    objects = torch.tensor([[2, 0], [1, 2]])  # that the queries of two predictions know
    logits = masks[objects].float().mul(40).sub(20)[:, None]
    class_logits = 20 * F.one_hot(objects, NUM_CLASSES + 1).float()[:, None]
    criterion = make_criterion(importance_sample_ratio=0.0)  # few points at the blurred borders
    right = criterion(training_outputs(class_logits, logits), [target])
    wrong = criterion(training_outputs(class_logits, -logits), [target])
    for name in ("loss_mask", "loss_dice", "loss_mask_0", "loss_dice_0"):
        assert right[name] < 0.2 * wrong[name]
    assert right["loss_ce"] < 1e-3 and right["loss_ce_0"] < 1e-3
