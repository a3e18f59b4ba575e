import itertools

import pytest
import torch
from torch.nn import functional as F
from training_outputs import training_outputs

from mask2former.modeling.matcher import HungarianMatcher, dice_cost, mask_cross_entropy_cost


def make_matcher(**changes):
    costs = {"cost_class": 2.0, "cost_mask": 5.0, "cost_dice": 5.0, "num_points": 512}
    return HungarianMatcher(**(costs | changes))


def test_costs_equal_their_definitions():
    logits = torch.randn(4, 30, dtype=torch.float64)
    targets = torch.rand(3, 30, dtype=torch.float64).round()
    bce, dice = mask_cross_entropy_cost(logits, targets), dice_cost(logits, targets)
    for q, n in itertools.product(range(4), range(3)):
        expected = F.binary_cross_entropy_with_logits(logits[q], targets[n])
        torch.testing.assert_close(bce[q, n], expected)
        p = logits[q].sigmoid()
        expected = 1 - (2 * (p * targets[n]).sum() + 1) / (p.sum() + targets[n].sum() + 1)
        torch.testing.assert_close(dice[q, n], expected)


def two_objects():
    """Left half of class 1, right half of class 0, and queries that predict them."""
    masks = torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[0, :, :8] = True
    masks[1, :, 8:] = True
    target = {"labels": torch.tensor([1, 0]), "masks": masks}
    mask_logits = torch.full((3, 16, 16), -8.0)
    mask_logits[2, :, :8] = 8.0  # query 2 sees object 0
    mask_logits[0, :, 8:] = 8.0  # query 0 sees object 1
    class_logits = torch.zeros(3, 4)
    class_logits[2, 1] = class_logits[0, 0] = 5.0
    return training_outputs(class_logits[None, None], mask_logits[None, None]), [target]


def test_finds_the_obvious_assignment():
    outputs, targets = two_objects()
    ((_, queries, objects),) = make_matcher()(outputs, targets)
    assert sorted(zip(queries.tolist(), objects.tolist())) == [(0, 1), (2, 0)]


def test_class_alone_decides_between_equal_masks():
    outputs, targets = two_objects()
    outputs["mask_features"].zero_()
    ((_, queries, objects),) = make_matcher()(outputs, targets)
    assert sorted(zip(queries.tolist(), objects.tolist())) == [(0, 1), (2, 0)]


def test_more_objects_than_queries():
    outputs, targets = two_objects()
    for name in ("pred_logits", "mask_embeddings"):
        outputs[name] = outputs[name][:, :, 2:]  # one query
    ((_, queries, objects),) = make_matcher()(outputs, targets)
    assert (queries.tolist(), objects.tolist()) == ([0], [0])


def test_no_objects():
    outputs, targets = two_objects()
    targets = [{"labels": targets[0]["labels"][:0], "masks": targets[0]["masks"][:0]}]
    ((_, queries, objects),) = make_matcher()(outputs, targets)
    assert len(queries) == len(objects) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_costs_that_are_not_finite_do_not_crash(bad):
    outputs, targets = two_objects()
    outputs["mask_embeddings"][0, 0, 0] = bad  # it knew object 1: now it is as bad as any
    outputs["pred_logits"][0, 0, 1] = bad
    ((_, queries, objects),) = make_matcher()(outputs, targets)
    assert (2, 0) in zip(queries.tolist(), objects.tolist())
    assert sorted(objects.tolist()) == [0, 1]


def test_all_costs_zero_is_refused():
    with pytest.raises(ValueError, match="non-zero"):
        make_matcher(cost_class=0, cost_mask=0, cost_dice=0)


def test_every_prediction_of_every_picture_is_matched_for_itself():
    """Two predictions (the second has its queries turned round) of two pictures (one is empty)."""
    outputs, (target,) = two_objects()
    empty = {"labels": target["labels"][:0], "masks": target["masks"][:0]}
    outputs = {
        name: torch.cat([outputs[name], outputs[name].flip(2)]).repeat(1, 3, 1, 1)
        for name in ("pred_logits", "mask_embeddings")
    } | {"mask_features": outputs["mask_features"].repeat(3, 1, 1, 1)}
    matches = make_matcher()(outputs, [target, empty, target])
    assert len(matches[1].layers) == 0
    for match in (matches[0], matches[2]):
        triples = sorted(zip(*(indices.tolist() for indices in match)))
        assert triples == [(0, 0, 1), (0, 2, 0), (1, 0, 0), (1, 2, 1)]
