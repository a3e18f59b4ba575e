"""tools/eval.py on saved predictions, as a user runs it; test_end_to_end.py has checkpoints."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mask2former.errors import DatasetError

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"there is no {SHARED}")


def run(*arguments, status=0):
    """Standard output and error of the tool, which must exit with ``status``."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    result = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "eval.py"), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == status, result.stderr[-3000:]
    return result.stdout, result.stderr


@pytest.fixture
def tool(monkeypatch, capsys):
    """The tool within this process, which spares importing torch: returns standard output."""
    spec = importlib.util.spec_from_file_location("eval_tool", ROOT / "tools" / "eval.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["eval.py", *map(str, arguments)])
        module.main()
        return capsys.readouterr().out

    return call


@needs_shared_data
def test_panoptic(tmp_path):
    """The numbers of panopticapi, with the folders of the PNG files found beside the json files."""
    coco, output = SHARED / "coco", tmp_path / "new" / "pq.json"
    stdout, _ = run(
        "panoptic", "--gt", coco / "annotations" / "panoptic_val2017.json",
        "--pred", coco / "pred_shift8" / "predictions.json", "--output", output,
    )  # fmt: skip
    figures = json.loads(output.read_text())
    expected = json.loads((coco / "EXPECTED_PQ.json").read_text())["shift8"]
    for group in ("All", "Things", "Stuff"):
        assert figures[group] == pytest.approx(expected[group], abs=1e-6)
    for text in ("54.538", "38.958", "73.040", str(output)):
        assert text in stdout


@needs_shared_data
def test_instances(tmp_path, tool):
    """The table that COCO publishes with these results."""
    folder, output = SHARED / "coco_eval_val2014_100", tmp_path / "ap.json"
    expected = {
        "segm": {"AP": 0.319545, "AP50": 0.562288, "AP75": 0.298927},
        "bbox": {"AP": 0.504581},
    }
    # A process for one of them is enough.
    for iou_type, call in (("segm", lambda *args: run(*args)[0]), ("bbox", tool)):
        results = folder / f"instances_val2014_fake{iou_type}100_results.json"
        stdout = call(
            "instances", "--gt", folder / "instances_val2014_100.json", "--pred", results,
            "--iou-type", iou_type, "--output", output,
        )  # fmt: skip
        figures = json.loads(output.read_text())
        known = expected[iou_type]
        assert {key: figures[key] for key in known} == pytest.approx(known, abs=1e-6)
        assert len(figures) == 12 and all(name in stdout for name in figures)


def test_mistakes_get_one_line(tmp_path):
    gone = tmp_path / "gone.json"
    stdout, stderr = run("panoptic", "--gt", gone, "--pred", gone, status=2)
    assert stderr.splitlines()[-1] == f"error: {gone} does not exist"
    assert "Traceback" not in stderr and not stdout


def test_mistakes_are_named(tool, sample_root, tmp_path):
    """The file, the picture and what to do about it."""
    truth = sample_root / "annotations" / "panoptic_val.json"
    pred = tmp_path / "pred.json"
    content = json.loads(truth.read_text())
    missing = content["annotations"].pop()["image_id"]
    pred.write_text(json.dumps(content))
    files = ("--gt", truth, "--pred", pred)
    with pytest.raises(DatasetError, match=rf"PNG files of {pred} .*{tmp_path / 'pred'} .*--pred"):
        tool("panoptic", *files)
    shutil.copytree(truth.with_suffix(""), tmp_path / "pred")
    message = rf"{pred} has no prediction for 1 pictures .* image id {missing}; predict them too"
    with pytest.raises(DatasetError, match=message):
        tool("panoptic", *files)
    with pytest.raises(DatasetError, match=rf"{pred} is no COCO results json"):
        tool("instances", *files)
