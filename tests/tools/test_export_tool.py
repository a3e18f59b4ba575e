"""tools/export.py: what it refuses, and what it writes about classes. Exports: tests/inference."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from mask2former.inference import export

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "quickstart.yaml"


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run the tool; its exit status and what it wrote to stderr."""

    def run(**options):
        options = {"task": "panoptic", "format": "onnx", "output": "model.onnx"} | options
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["export.py", f"--config-file={CONFIG}", *arguments])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(ROOT / "tools" / "export.py"), run_name="__main__")
        assert not list(tmp_path.iterdir())
        return exit_.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "--weights model_final.pth"),
        ({"weights": "a.pth", "output": "model.pt2"}, "--format onnx is written as .onnx"),
        ({"weights": "a.pth", "opset": 11}, "--opset 11: 18 is the least"),
        ({"weights": "a.pth", "sizes": "20x30"}, "33 is the least"),
    ],
)
def test_what_is_wrong_is_told(run, options, message):
    code, error = run(**options)
    assert code == 2 and message in error


def test_missing_packages(run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, error = run(weights="a.pth")
    assert code == 2
    assert "error: this needs onnx and onnxscript and onnxruntime: pip install onnx" in error


def test_the_checkpoint_names_the_classes(tiny_cfg, tmp_path, monkeypatch):
    """Where the data set is elsewhere."""
    tiny_cfg.DATASETS.CATALOG = "gone.yaml"
    tiny_cfg.DATASETS.TRAIN = tiny_cfg.DATASETS.TEST = ("gone",)
    tiny_cfg.MODEL.DEVICE = "cpu"
    (tmp_path / "config.yaml").write_text(tiny_cfg.dump())
    names = [f"nut {i}" for i in range(tiny_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)]
    tiny_cfg.DATASETS.TRAIN = tiny_cfg.DATASETS.TEST = ()
    weights = {"model": build_model(tiny_cfg).state_dict()}
    torch.save(weights | {"class_names": names, "thing_ids": [0, 2]}, tmp_path / "model.pth")
    written = {}
    monkeypatch.setattr(export, "export_program", lambda *_, **__: None)
    monkeypatch.setattr(
        export, "save_program", lambda program, path, metadata: written.update(metadata)
    )
    arguments = "--config-file config.yaml --weights model.pth --task panoptic --format pt2"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["export.py", *arguments.split(), "-o", "model.pt2", "--no-verify"]
    )
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(ROOT / "tools" / "export.py"), run_name="__main__")
    assert exit_.value.code == 0
    assert json.loads(written["classes"]) == names and json.loads(written["thing_ids"]) == [0, 2]
