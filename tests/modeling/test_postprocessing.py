"""Hand-worked cases: 2 x 4 pixels, classes 0 and 1 are things, 2 and 3 stuff, 4 is "no object"."""

import pytest
import torch

from mask2former.modeling.postprocessing import (
    boxes_of_masks,
    instance_inference,
    panoptic_inference,
    semantic_inference,
    semantic_labels,
)
from mask2former.modeling.row_maps import RowMaps

THINGS = {0, 1}


def class_logits(*rows):
    """Rows of probabilities over the five classes, as logits."""
    return torch.tensor(rows).clamp(min=1e-9).log()


def mask_logits(*rows):
    """Strings of two rows of four pixels: # is probability 0.9, . is 0.1."""
    p = torch.tensor([[0.9 if c == "#" else 0.1 for c in row.replace(" ", "")] for row in rows])
    return p.logit().view(-1, 2, 4)


def panoptic(classes, masks, *, score=0.5, overlap=0.5):
    return panoptic_inference(
        classes,
        masks,
        RowMaps.of,
        thing_ids=THINGS,
        object_mask_threshold=score,
        overlap_threshold=overlap,
    )


CERTAIN = {c: [1.0 if i == c else 0.0 for i in range(5)] for c in range(5)}


def test_semantic_scores():
    classes = class_logits([0.5, 0.0, 0.3, 0.0, 0.2], [0.0, 0.0, 0.6, 0.0, 0.4])
    scores = semantic_inference(classes, RowMaps.of(mask_logits("#... ....", ".##. ...."))).whole()
    assert scores.shape == (4, 2, 4)
    assert scores[0, 0, 0].item() == pytest.approx(0.5 * 0.9, abs=1e-6)
    assert scores[2, 0, 0].item() == pytest.approx(0.3 * 0.9 + 0.6 * 0.1, abs=1e-6)
    assert scores[2, 0, 1].item() == pytest.approx(0.3 * 0.1 + 0.6 * 0.9, abs=1e-6)


def test_panoptic_two_things_of_one_class_stay_apart():
    ids, segments = panoptic(
        class_logits(CERTAIN[0], CERTAIN[0]), mask_logits("##.. ##..", "...# ...#")
    )
    assert ids.tolist() == [[1, 1, 0, 2], [1, 1, 0, 2]]
    assert ids.dtype == torch.int32
    assert [(s["id"], s["category_id"], s["isthing"], s["area"]) for s in segments] == [
        (1, 0, True, 4),
        (2, 0, True, 2),
    ]


def test_panoptic_stuff_of_one_class_is_one_segment():
    ids, segments = panoptic(
        class_logits(CERTAIN[2], [0.0, 0.2, 0.8, 0.0, 0.0]), mask_logits("##.. ##..", "...# ...#")
    )
    assert ids.tolist() == [[1, 1, 0, 1], [1, 1, 0, 1]]
    (segment,) = segments
    assert segment["area"] == 6
    assert segment["isthing"] is False
    assert segment["score"] == pytest.approx(1.0)


def test_panoptic_drops_no_object_and_uncertain_queries():
    classes = class_logits(CERTAIN[4], [0.45, 0.3, 0.25, 0.0, 0.0], CERTAIN[1])
    ids, segments = panoptic(classes, mask_logits("#### ....", "##.. ....", ".... ..##"))
    assert ids.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1]]
    assert [s["category_id"] for s in segments] == [1]


def test_panoptic_overlap_rule():
    # Query 0 wins the shared pixels; query 1 keeps 2 of its 6, a third.
    classes = class_logits(CERTAIN[0], [0.1, 0.9, 0.0, 0.0, 0.0])
    masks = mask_logits("##.. ##..", "##.# ##.#")
    ids, segments = panoptic(classes, masks, overlap=0.5)
    assert len(segments) == 1
    assert ids.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]
    ids, segments = panoptic(classes, masks, overlap=0.3)
    assert [s["area"] for s in segments] == [4, 2]
    assert ids.tolist() == [[1, 1, 0, 2], [1, 1, 0, 2]]


def test_panoptic_nothing_kept():
    ids, segments = panoptic(class_logits(CERTAIN[4]), mask_logits("#### ####"))
    assert ids.tolist() == [[0] * 4] * 2
    assert segments == []


def test_panoptic_areas_at_the_border_and_without_numbers():
    """A probability of 1/2 belongs to the mask, one a little below and NaN do not."""
    masks = mask_logits("##.. ....")
    masks[0, 0, 2:] = torch.tensor([0.0, -1e-3])
    ids, segments = panoptic(class_logits(CERTAIN[0]), masks)
    assert ids.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]] and segments[0]["area"] == 3
    masks[0, 1, 0] = float("nan")
    ids, segments = panoptic(class_logits(CERTAIN[0]), masks)
    assert ids.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]] and segments[0]["area"] == 3


def test_instance_scores_count_what_is_just_inside():
    masks = torch.full((1, 2, 4), -1.0)
    masks[0, 0, :2] = 1e-8
    instances = instance_inference(
        class_logits(CERTAIN[0]), masks, RowMaps.of, topk=1, thing_ids=THINGS
    )
    assert instances.pred_masks.sum() == 2
    assert instances.scores.item() == pytest.approx(0.5, abs=1e-5)


def test_instance_scores_boxes_and_repeats():
    classes = class_logits([0.6, 0.3, 0.0, 0.0, 0.1], [0.0, 0.0, 0.2, 0.0, 0.8])
    masks = mask_logits("##.. #...", "..## ....")
    result = instance_inference(classes, masks, RowMaps.of, topk=3)
    order = result.scores.argsort(descending=True)
    result = result[order]
    # The same query twice, with its two classes; then the other one.
    assert result.pred_classes.tolist() == [0, 1, 2]
    expected = torch.tensor([0.6, 0.3, 0.2]) * 0.9  # mean probability inside the mask: 0.9
    torch.testing.assert_close(result.scores, expected, atol=1e-5, rtol=0)
    assert result.pred_boxes.tensor.tolist() == [[0, 0, 2, 2], [0, 0, 2, 2], [2, 0, 4, 1]]
    assert result.pred_masks.dtype == torch.bool


def test_instance_keeps_things_only_after_the_choice():
    classes = class_logits([0.1, 0.0, 0.9, 0.0, 0.0], [0.2, 0.0, 0.8, 0.0, 0.0])
    masks = mask_logits("##.. #...", "..## ....")
    assert len(instance_inference(classes, masks, RowMaps.of, topk=2, thing_ids=THINGS)) == 0
    result = instance_inference(classes, masks, RowMaps.of, topk=3, thing_ids=THINGS)
    assert result.pred_classes.tolist() == [0]


def test_instance_topk_larger_than_all_pairs():
    result = instance_inference(
        class_logits(CERTAIN[0]), mask_logits("#... ...."), RowMaps.of, topk=100
    )
    assert len(result) == 4


def test_boxes_of_masks():
    masks = torch.zeros(3, 5, 7, dtype=torch.bool)
    masks[0, 1:3, 2:6] = True
    masks[1, 4, 6] = True
    assert boxes_of_masks(masks).tolist() == [[2, 1, 6, 3], [6, 4, 7, 5], [0, 0, 0, 0]]
    assert boxes_of_masks(masks[:0]).shape == (0, 4)


def test_a_single_class_can_lose():
    scores = torch.tensor([[[0.7, 0.3]]])
    assert semantic_labels(scores).tolist() == [[0, 1]]  # 1: none
    assert semantic_labels(torch.cat([scores, 1 - scores])).tolist() == [[0, 1]]
    assert semantic_labels(torch.cat([scores, scores + 0.1])).tolist() == [[1, 1]]
