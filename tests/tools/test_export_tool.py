"""tools/export.py: what it refuses, before it builds anything. Exports: tests/inference."""

import runpy
import sys
from pathlib import Path

import pytest

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
