"""Exported graphs agree with the model, at other sizes and batches than they were traced with."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from torch import fx, nn
from torch.nn import functional as F

import mask2former_ops
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

ROOT = Path(__file__).resolve().parents[2]
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
    cfg.MODEL.MASK_FORMER.DEC_LAYERS = 2
    cfg.MODEL.SWIN.EMBED_DIM = 12
    cfg.MODEL.SWIN.DEPTHS, cfg.MODEL.SWIN.NUM_HEADS = [2, 1, 1, 1], [1, 2, 2, 2]
    model = build_model(cfg).eval()
    with torch.no_grad():
        model.sem_seg_head.predictor.class_embed.weight.mul_(20)
    model.overlap_threshold = 0.0
    return model


def operators(program):
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, fx.GraphModule)]
    return {str(node.target) for graph in graphs for node in graph.nodes}


@needs_onnx
def test_swin_in_onnx(tiny_cfg, tmp_path):
    tiny_cfg.MODEL.BACKBONE.NAME = "D2SwinTransformer"
    model = small_network(tiny_cfg)
    program = export.export_program(model, "panoptic")
    assert "aten.grid_sampler.default" in operators(program)
    assert not any("mask2former" in name for name in operators(program))
    path = tmp_path / "model.onnx"
    export.save_onnx(program, path, {}, task="panoptic", optimize=False)
    assert_agrees(model, "panoptic", onnx_runner(path))


@pytest.mark.skipif(
    mask2former_ops.backend("cpu").name != "compiled", reason="needs the compiled operator"
)
def test_resnet_with_the_compiled_operator(tiny_cfg):
    model = small_network(tiny_cfg)
    program = export.export_program(model, "instance", compiled_op=True)
    assert any("mask2former" in name for name in operators(program))
    assert_agrees(model, "instance", program.module())


@pytest.mark.parametrize("thing_ids", [(), (0, 2), range(5)])
def test_panoptic_segments_are_those_of_panoptic_inference(thing_ids):
    """With merged stuff, dropped queries, pixels of none and a picture without any segment."""
    class_logits = 3 * torch.randn(4, 12, 6)
    class_logits[-1, :, -1] = 50
    mask_logits = 4 * F.interpolate(torch.randn(4, 12, 3, 4), (17, 23), mode="bilinear") - 2
    options = {"object_mask_threshold": 0.4, "overlap_threshold": 0.5, "thing_ids": thing_ids}
    outputs = fixed_shapes.panoptic(class_logits, mask_logits, lambda masks: masks, **options)
    found = 0
    for i in range(4):
        ids, segments = panoptic_inference(class_logits[i], mask_logits[i], RowMaps.of, **options)
        assert torch.equal(outputs[0][i], ids)
        ours = panoptic_segments(*(output[i] for output in outputs))
        keys = ("id", "category_id", "area")
        assert [[s[k] for k in keys] for s in ours] == [[s[k] for k in keys] for s in segments]
        assert [s["score"] for s in ours] == pytest.approx([s["score"] for s in segments])
        found += len(segments)
    assert found >= 6 and not segments


def test_one_class_semantics_has_a_label_for_none():
    class_logits = torch.tensor([[[20.0, 0.0]]])
    mask_logits = torch.tensor([[[[9.0, -9.0]]]])
    (labels,) = fixed_shapes.semantic(class_logits, mask_logits, lambda masks: masks)
    assert labels.tolist() == [[[0, 1]]]


def test_instances_have_tight_boxes_and_stuff_has_no_score():
    class_logits = torch.full((1, 3, 3), -20.0)
    class_logits[0, [0, 1, 2], [0, 1, 0]] = 20.0  # query 1 is stuff
    mask_logits = torch.full((1, 3, 8, 10), -9.0)
    mask_logits[0, 0, 2:5, 3:9] = 9.0
    mask_logits[0, 1, :, 0] = 9.0  # query 2 is empty
    masks, boxes, scores, classes = fixed_shapes.instance(
        class_logits, mask_logits, lambda masks: masks, topk=3, thing_ids=[0]
    )
    assert torch.equal(boxes[0], boxes_of_masks(masks[0]))
    assert {tuple(box) for box in boxes[0].tolist()} >= {(3, 2, 9, 5), (0, 0, 0, 0)}
    sure = masks[0].sum((1, 2)) == 18
    assert scores[0][sure].item() == pytest.approx(1, abs=1e-3)
    assert not scores[0][~sure].any() and classes[0][sure].item() == 0


def test_missing_packages_are_named_with_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install onnx onnxscript"):
        export.require("onnx", "onnxscript")


def test_config_that_cannot_be_exported_as_asked(tiny_cfg, stubbed):
    export.check_task(tiny_cfg, "instance")
    tiny_cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = False
    with pytest.raises(ConfigError, match="TEST.INSTANCE_ON True"):
        export.check_task(tiny_cfg, "instance")
    tiny_cfg.TEST.PRECISION = "bfloat16"
    with pytest.raises(ConfigError, match="TEST.PRECISION"):
        export.check_task(tiny_cfg, "raw")
    stubbed.size_divisibility = 0
    with pytest.raises(ConfigError, match="SIZE_DIVISIBILITY"):
        export.export_program(stubbed, "raw")


def test_a_wrong_export_is_found(stubbed):
    for task in export.OUTPUTS:
        right = export.ExportableModel(stubbed, task)
        assert_agrees(stubbed, task, right)
        wrong = nn.Sequential(nn.ReflectionPad2d((1, -1, 0, 0)), right)
        assert not any(result.agrees for result in compare(stubbed, task, wrong, SHAPES)), task


def test_cityscapes_instances_are_called_after_things(tiny_cfg):
    """Its sets list the names of all classes, too."""
    tiny_cfg.DATASETS.TEST = ("cityscapes_fine_instance_seg_val",)
    tiny_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 8
    metadata = export.metadata_for_export(tiny_cfg, "instance")
    assert json.loads(metadata["classes"])[:2] == ["person", "rider"]
    assert len(json.loads(metadata["classes"])) == 8


@needs_onnx
@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_example_without_torch(tiny_cfg, stubbed, task, tmp_path):
    metadata = export.metadata_for_export(tiny_cfg, task)
    program = export.export_program(stubbed, task)
    export.save_onnx(program, tmp_path / "model.onnx", metadata, task=task, optimize=False)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    picture = Image.fromarray(pixels).resize((70, 50), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "picture.png")
    without = "import sys; sys.modules.update(torch=None, detectron2=None, mask2former=None); "
    run = "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    arguments = ["model.onnx", "picture.png", "-o", "out", "--threshold", "0.1"]
    subprocess.run(
        [sys.executable, "-c", without + run, str(ROOT / "tools" / "onnx_example.py"), *arguments],
        cwd=tmp_path,
        check=True,
    )
    segments = json.loads((tmp_path / "out" / "picture.json").read_text())
    ids = np.asarray(Image.open(tmp_path / "out" / "picture_ids.png"))
    assert segments and ids.shape == (50, 70)
    for segment in segments:
        assert segment["category"] == f"class {segment['category_id']}"
        assert segment["area"] == (ids == segment["id"]).sum()
    if task == "instance":
        rows, columns = np.nonzero(ids == segment["id"])  # the surest, wholly in sight
        there = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(segment["box"], there, atol=1)
    assert Image.open(tmp_path / "out" / "picture.png").size == (70, 50)


@needs_onnx
def test_pictures_of_the_example(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import onnx_example

    line = Image.new("RGB", (4000, 1))
    metadata = {"shortest_side": "800", "longest_side": "1333", "input_format": "RGB"}
    assert onnx_example.preprocess(line, metadata).shape == (1, 3, 1, 1333)
    Image.fromarray(np.full((4, 5), 3000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(SystemExit, match=r"deep\.png has more than 8 bits"):
        onnx_example.read(tmp_path / "deep.png")
    line.save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(SystemExit, match=r"bomb\.png cannot be read as a picture"):
        onnx_example.read(tmp_path / "bomb.png")


@needs_onnx
def test_example_names_what_it_cannot_read(tmp_path):
    (tmp_path / "model.onnx").write_text("no model")
    tool = [
        sys.executable,
        str(ROOT / "tools" / "onnx_example.py"),
        "model.onnx",
        "a.png",
        "-o",
        "o",
    ]
    run = subprocess.run(tool, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "error: model.onnx cannot be read as an ONNX model" in run.stderr
