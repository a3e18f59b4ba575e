"""What is different on GPUs, against the same on the CPU or without it."""

import copy

import pytest
import torch
from detectron2.modeling import build_model

from mask2former.data import build_train_loader
from mask2former.modeling import cuda_graphs
from mask2former.modeling.fusion import prepare_for_inference
from mask2former.modeling.row_maps import RowMaps

pytestmark = pytest.mark.gpu


def close(actual, expected, tolerance=1e-3):  # convolutions in TF32
    assert actual.shape == expected.shape
    if expected.numel():
        assert (actual.cpu() - expected.cpu()).abs().max() <= tolerance * expected.abs().max()


@torch.no_grad()
def test_predictions_are_those_of_the_cpu(tiny_cfg):
    model = build_model(tiny_cfg).eval()
    images = [torch.rand(3, 64, 96) * 255]
    with torch.backends.cudnn.flags(allow_tf32=False):
        (actual,) = copy.deepcopy(model).cuda().predict(images)
    (expected,) = model.predict(images)
    close(actual.class_logits, expected.class_logits)
    close(actual.mask_logits, expected.mask_logits)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_cuda_graphs(tiny_cfg, monkeypatch, precision):
    """Sizes in turn, more of them than graphs are kept; recorded in inference mode or not."""
    monkeypatch.setattr(cuda_graphs, "MOST_GRAPHS", 2)
    tiny_cfg.MODEL.DEVICE = "cuda"
    tiny_cfg.TEST.PRECISION = precision
    model = build_model(tiny_cfg).eval()
    prepare_for_inference(model)
    graphs = copy.deepcopy(model)
    prepare_for_inference(graphs, "cuda-graph")
    for i, size in enumerate([(64, 96), (96, 64), (64, 96), (64, 64), (64, 96), (96, 64)]):
        images = [torch.rand(3, *size) * 255]
        with torch.inference_mode(i % 2 == 0), torch.no_grad():
            (actual,), (expected,) = graphs.predict(images), model.predict(images)
        close(actual.class_logits, expected.class_logits, 1e-5)
        close(actual.mask_logits, expected.mask_logits, 1e-5)


@torch.no_grad()
def test_segmentations_are_those_of_the_cpu(tiny_cfg):
    model = build_model(tiny_cfg).eval()
    tasks = ("semantic_on", "instance_on", "panoptic_on")
    for task in tasks:
        setattr(model, task, True)
    model.object_mask_threshold = 0.0
    inputs = [{"image": torch.rand(3, 64, 96) * 255, "height": 100, "width": 131}]
    (prediction,) = model.predict([inputs[0]["image"]])
    expected = model.inference(prediction, (100, 131))
    actual = model.inference(prediction.to("cuda"), (100, 131))
    close(actual["sem_seg"], expected["sem_seg"])
    same = actual["panoptic_seg"][0].cpu() == expected["panoptic_seg"][0]
    assert same.float().mean() > 0.999
    ours, theirs = actual["instances"], expected["instances"]
    close(ours.scores.sort().values, theirs.scores.sort().values)
    ours, theirs = (x.pred_masks.sum().item() for x in (ours, theirs))
    assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("count", [5, 0])
def test_rows_are_resized_as_on_the_cpu(count):
    maps = torch.randn(count, 40, 60)
    actual, expected = (RowMaps.of(m).resize((77, 101)).whole() for m in (maps.cuda(), maps))
    close(actual, expected, 1e-5)


def test_a_training_step(sample_cfg):
    """Losses are finite, and every parameter that is trained has a gradient."""
    sample_cfg.MODEL.DEVICE = "cuda"
    model = build_model(sample_cfg).train()
    losses = model(next(iter(build_train_loader(sample_cfg))))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
