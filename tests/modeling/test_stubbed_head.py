"""The meta architecture around a head whose outputs are known."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import nn


class Head(nn.Module):
    """Returns what it is told, and keeps what it was given."""

    def __init__(self, class_logits, mask_logits):
        super().__init__()
        self.outputs = {"pred_logits": class_logits, "pred_masks": mask_logits}

    def forward(self, features):
        return self.outputs


class Backbone(nn.Module):
    def forward(self, pictures):
        self.pictures = pictures
        return {}


@pytest.fixture
def build(tiny_cfg):
    def build(class_logits, mask_logits, **test):
        tiny_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = class_logits.shape[-1] - 1
        for key, value in test.items():
            tiny_cfg.MODEL.MASK_FORMER.TEST[key] = value
        model = build_model(tiny_cfg).eval()
        model.sem_seg_head, model.backbone = Head(class_logits, mask_logits), Backbone()
        return model

    return build


def sure(*classes, num_classes=3):
    """(1, Q, K + 1) logits of queries that are sure of their class."""
    return 20 * nn.functional.one_hot(torch.tensor([classes]), num_classes + 1).float()


def half(where, size=16):
    """A mask of the logits' size that fills one half."""
    mask = torch.full((size, size), -20.0)
    mask[:, : size // 2] = 20.0
    return {"left": mask, "right": mask.flip(1), "top": mask.t(), "bottom": mask.flip(1).t()}[where]


def test_pictures_are_normalised_then_padded_with_zeros(build):
    model = build(sure(0), half("left")[None, None])
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    model([{"image": image}])
    given = model.backbone.pictures
    assert given.shape == (1, 3, 64, 64)
    mean = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
    std = torch.tensor([58.395, 57.12, 57.375])[:, None, None]
    torch.testing.assert_close(given[0, :, :40, :50], (image - mean) / std)
    assert given[0, :, 40:].abs().max() == given[0, :, :, 50:].abs().max() == 0


@pytest.mark.parametrize("before", [False, True])
def test_what_lies_in_the_padding_is_cut_off(build, before):
    """A 64 x 32 picture in a 64 x 64 batch: the right half is padding."""
    masks = torch.stack([half("right"), half("top")])[None].expand(2, -1, -1, -1)
    classes = sure(1, 2).expand(2, -1, -1)
    model = build(classes, masks, SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE=before)
    model.sem_seg_postprocess_before_inference = before
    narrow = {"image": torch.zeros(3, 64, 32), "height": 128, "width": 64}
    output, _ = model([narrow, {"image": torch.zeros(3, 64, 64)}])
    scores = output["sem_seg"]
    assert scores.shape == (3, 128, 64)
    assert scores[1, :, :56].max() < 0.01  # but for the blur of the edge
    assert scores[2, :60].min() > 0.99 and scores[2, 68:].max() < 0.01
    ids, (segment,) = output["panoptic_seg"]
    assert (segment["category_id"], segment["id"]) == (2, 1)
    assert abs(segment["area"] - 64 * 64) <= 2 * 64
    assert (ids[:60] == 1).all() and not ids[68:].any()
    best = output["instances"][int(output["instances"].scores.argmax())]
    assert best.pred_classes.tolist() == [2]
    x0, y0, x1, y1 = best.pred_boxes.tensor[0].tolist()
    assert (x0, y0, x1) == (0, 0, 64) and abs(y1 - 64) <= 2


def test_the_two_orders_of_resizing_differ_as_they_should(build, tiny_cfg):
    """Before: sigmoid of resized logits. After: resized sigmoid, linear across the edge."""
    steep = half("left")[None, None]
    inputs = [{"image": torch.zeros(3, 64, 64)}]
    switched_off = {"PANOPTIC_ON": False, "INSTANCE_ON": False}
    edge = {}
    for before in (False, True):
        test = {**switched_off, "SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": before}
        model = build(sure(0), steep, **test)
        inputs = [{"image": torch.zeros(3, 32, 32), "height": 128, "width": 128}]
        model.sem_seg_head.outputs["pred_masks"] = steep
        (output,) = model(inputs)
        edge[before] = output["sem_seg"][0, 64]
    # Of a map resized in one go from 32 to 128 the sigmoid is steep, its interpolation is not.
    rise = {before: ((row > 0.05) & (row < 0.95)).sum().item() for before, row in edge.items()}
    assert rise[True] < rise[False]


def test_stuff_is_no_instance_of_a_panoptic_model(build):
    masks = torch.stack([half("left"), half("right")])[None]
    model = build(sure(0, 2), masks)
    model.thing_ids = frozenset([2])
    (output,) = model([{"image": torch.zeros(3, 64, 64)}])
    assert set(output["instances"].pred_classes.tolist()) == {2}
    kinds = {s["category_id"]: s["isthing"] for s in output["panoptic_seg"][1]}
    assert kinds == {0: False, 2: True}
    model.panoptic_on = False
    (output,) = model([{"image": torch.zeros(3, 64, 64)}])
    assert {0, 2} <= set(output["instances"].pred_classes.tolist())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_the_scores_of_float32(build, dtype):
    masks = torch.randn(1, 2, 16, 16).to(dtype)
    classes = torch.randn(1, 2, 4).to(dtype)
    inputs = [{"image": torch.zeros(3, 64, 64), "height": 400, "width": 400}]
    scores = [
        build(classes.to(t), masks.to(t))(inputs)[0]["instances"].scores.sort().values
        for t in (dtype, torch.float32)
    ]
    torch.testing.assert_close(*scores)


def test_targets_are_padded_at_the_right_and_bottom(build):
    model = build(sure(0), half("left")[None, None])
    instances = Instances((40, 50))
    instances.gt_classes = torch.tensor([1])
    instances.gt_masks = torch.ones(1, 40, 50, dtype=torch.bool)
    x = {"image": torch.zeros(3, 40, 50), "instances": instances}
    x["ignored"] = torch.zeros(40, 50, dtype=torch.bool)
    batch = type("Batch", (), {"tensor": torch.zeros(1, 3, 64, 96)})
    (target,) = model.prepare_targets([x], batch)
    expected = torch.zeros(1, 64, 96, dtype=torch.bool)
    expected[:, :40, :50] = True
    assert torch.equal(target["masks"], expected)
    assert torch.equal(target["ignored"], ~expected[0])
