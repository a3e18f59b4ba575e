"""Exported graphs agree with the model, at other sizes and batches than they were traced with."""

import importlib.util
import json
import sys

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn
from torch.nn import functional as F

from mask2former.errors import ConfigError, UserError
from mask2former.inference import export, fixed_shapes
from mask2former.inference.export_verification import (
    compare,
    onnx_runner,
    panoptic_segments,
    program_runner,
)
from mask2former.modeling.postprocessing import boxes_of_masks, panoptic_inference
from mask2former.modeling.row_maps import RowMaps

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(n) is None for n in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx, onnxscript and onnxruntime: pip install mask2former[export]",
)
# One picture and several; with padding and without; one window of Swin's and several.
SHAPES = [(1, 64, 64), (3, 97, 131), (1, 224, 200)]


class Head(nn.Module):
    """Logits of six queries from the pictures themselves, in place of a network."""

    def __init__(self, num_classes):
        super().__init__()
        self.masks = nn.Conv2d(3, 6, 1)
        self.classes = nn.Linear(3, 6 * (num_classes + 1))
        nn.init.normal_(self.masks.weight, std=3)
        nn.init.normal_(self.classes.bias, std=3)

    def forward(self, pictures):
        small = F.avg_pool2d(pictures, 4)
        classes = self.classes(small.mean((2, 3))).unflatten(1, (6, -1))
        return {"pred_logits": classes, "pred_masks": self.masks(small)}


@pytest.fixture
def stubbed(tiny_cfg):
    """A model for all tasks with a :class:`Head`; its classes from 5 on are stuff."""
    model = build_model(tiny_cfg).eval()
    model.backbone, model.sem_seg_head = nn.Identity(), Head(num_classes=9)
    model.thing_ids = frozenset(range(5))
    model.object_mask_threshold, model.overlap_threshold = 0.1, 0.3
    return model


def assert_agrees(model, task, run, shapes=SHAPES):
    for result in compare(model, task, run, shapes):
        assert result.found, result
        assert result.agrees, result


@pytest.mark.parametrize("task", export.OUTPUTS)
def test_program_of_each_task(stubbed, task, tmp_path):
    program = export.export_program(stubbed, task)
    export.save_program(program, tmp_path / "model.pt2", {})
    assert_agrees(stubbed, task, program_runner(tmp_path / "model.pt2"))


@needs_onnx
@pytest.mark.parametrize("task", export.OUTPUTS)
def test_onnx_of_each_task(stubbed, task, tmp_path):
    path = tmp_path / "model.onnx"
    export.save_onnx(export.export_program(stubbed, task), path, {"task": task}, task=task)
    assert_agrees(stubbed, task, onnx_runner(path))
    import onnx

    model = onnx.load(path)
    assert {entry.domain for entry in model.opset_import} == {""}
    assert {node.domain for node in model.graph.node} == {""}
    assert [output.name for output in model.graph.output] == list(export.OUTPUTS[task])
    assert {entry.key: entry.value for entry in model.metadata_props} == {"task": task}
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dimensions] == ["batch", 3, "height", "width"]


def small_network(cfg):
    """What exports fastest and still has every kind of layer."""
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.MASK_FORMER.DEC_LAYERS = 3
    cfg.MODEL.SWIN.EMBED_DIM = 12
    cfg.MODEL.SWIN.DEPTHS, cfg.MODEL.SWIN.NUM_HEADS = [2, 1, 1, 1], [1, 2, 2, 2]
    model = build_model(cfg).eval()
    with torch.no_grad():
        model.sem_seg_head.predictor.class_embed.weight.mul_(20)
    model.overlap_threshold = 0.0
    return model


@pytest.mark.parametrize("backbone", ["build_resnet_backbone", "D2SwinTransformer"])
def test_network(tiny_cfg, backbone, tmp_path):
    tiny_cfg.MODEL.BACKBONE.NAME = backbone
    model = small_network(tiny_cfg)
    program = export.export_program(model, "panoptic")
    assert_agrees(model, "panoptic", program.module())
    operators = {str(node.target) for node in program.graph.nodes}
    assert not any("mask2former" in name for name in operators)
    if not needs_onnx.args[0]:
        path = tmp_path / "model.onnx"
        export.save_onnx(program, path, {}, task="panoptic", optimize=False)
        assert_agrees(model, "panoptic", onnx_runner(path))
