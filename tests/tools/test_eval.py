"""tools/eval.py on saved predictions, as a user runs it; test_end_to_end.py has checkpoints."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.errors import ConfigError, DatasetError

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
    for iou_type in ("segm", "bbox"):
        results = folder / f"instances_val2014_fake{iou_type}100_results.json"
        stdout = tool(
            "instances", "--gt", folder / "instances_val2014_100.json", "--pred", results,
            "--iou-type", iou_type, "--output", output,
        )  # fmt: skip
        figures = json.loads(output.read_text())
        known = expected[iou_type]
        assert {key: figures[key] for key in known} == pytest.approx(known, abs=1e-6)
        names = set(figures) - {"per_class"}
        assert len(names) == 12 and all(name in stdout for name in names)


@needs_shared_data
def test_boundaries(tmp_path, tool):
    """More figures, of which those before are the same."""
    coco, output = SHARED / "coco", tmp_path / "out.json"
    truth = coco / "annotations" / "panoptic_val2017.json"
    tool("panoptic", "--gt", truth, "--pred", coco / "pred_shift8" / "predictions.json",
         "--boundary", "--output", output)  # fmt: skip
    figures = json.loads(output.read_text())
    assert figures["All"]["pq"] == pytest.approx(0.5453826589, abs=1e-6)
    assert 0 < figures["boundary"]["All"]["pq"] < figures["All"]["pq"]
    folder = SHARED / "coco_eval_val2014_100"
    stdout = tool(
        "instances", "--gt", folder / "instances_val2014_100.json",
        "--pred", folder / "instances_val2014_fakesegm100_results.json",
        "--boundary", "--per-class", "--output", output,
    )  # fmt: skip
    figures = json.loads(output.read_text())
    assert figures["AP"] == pytest.approx(0.319545, abs=1e-6)
    assert 0 < figures["boundary"]["AP"] < figures["AP"] and "giraffe" in stdout


# deeplab2's panoptic_quality_test.py: grey value of an instance -> class, and class colours.
TEAM = {0: 0, 47: 1, 97: 1, 133: 1, 150: 1, 174: 1, 198: 2, 215: 1, 244: 1, 255: 1}
TRUTH = {
    "team": ("team_gt_instance.png", TEAM),
    "bird": ("bird_gt.png", {92: 5, 176: 3, 255: 4}),
    "cat": ("cat_gt.png", {0: 0, 255: 6}),
}
CLASSES = [
    ("person", 1, [0, 0, 255]),
    ("bear", 1, [255, 0, 0]),
    ("tree", 0, [0, 255, 0]),
    ("bird", 1, [255, 0, 255]),
    ("sky", 0, [0, 255, 255]),
    ("cat", 1, [255, 255, 0]),
]


@needs_shared_data
@pytest.mark.parametrize(
    "pictures, expected",
    [
        (["team"], (0.62156284, 0.64664984, 0.96666667)),
        (["bird", "cat", "team"], (0.76855499, 0.7769174, 0.98888892)),
    ],
)
def test_masks(tmp_path, tool, pictures, expected):
    """deeplab2's numbers, which it computes in float32."""
    folder = SHARED / "deeplab2_pq" / "evaluation" / "testdata"
    keys = ("name", "isthing", "color")
    description = {
        "categories": [
            {"id": i, **dict(zip(keys, values))} for i, values in enumerate(CLASSES, start=1)
        ],
        "void": 0,
        "pictures": [
            {
                "truth": {
                    "instances": str(folder / TRUTH[name][0]),
                    "classes": dict(TRUTH[name][1]),
                },
                "prediction": {
                    "instances": str(folder / f"{name}_pred_instance.png"),
                    "classes": str(folder / f"{name}_pred_class.png"),
                },
            }
            for name in pictures
        ],
    }
    path, output = tmp_path / "masks.json", tmp_path / "pq.json"
    path.write_text(json.dumps(description))
    tool("masks", "--description", path, "--output", output)
    figures = json.loads(output.read_text())["All"]
    assert [figures[key] for key in ("pq", "sq", "rq")] == pytest.approx(expected, abs=1e-6)
    del description["pictures"][0]["truth"]["classes"][255]
    path.write_text(json.dumps(description))
    with pytest.raises(DatasetError, match=r"_gt.*\.png has value 255 .*no class"):
        tool("masks", "--description", path)


def test_semantic(tmp_path, tool):
    """Class 0: 3 of 4 pixels and one too many; class 1: 2 of 3 and one too many."""
    maps = {"gt": [[0, 0, 1, 1], [0, 0, 1, 255]], "pred": [[0, 1, 1, 1], [0, 0, 0, 1]]}
    for folder, labels in maps.items():
        (tmp_path / folder).mkdir()
        Image.fromarray(np.array(labels, np.uint8)).save(tmp_path / folder / "a.png")
    output = tmp_path / "out.json"
    stdout = tool(
        "semantic", "--gt", tmp_path / "gt", "--pred", tmp_path / "pred", "--num-classes", 2,
        "--pq", "--boundary", "--per-class", "--output", output,
    )  # fmt: skip
    figures = json.loads(output.read_text())
    assert figures["mIoU"] == pytest.approx((3 / 5 + 1 / 2) / 2)
    assert figures["pq"]["per_class"] == {
        "0": pytest.approx({"pq": 3 / 5, "sq": 3 / 5, "rq": 1}),
        "1": {"pq": 0, "sq": 0, "rq": 0},
    }
    assert figures["pq"]["Things"]["pq"] is None  # there is none
    assert "55.000" in stdout and "BoundaryIoU" in stdout


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


@pytest.mark.parametrize(
    "key, option", [("MODEL.WEIGHTS", "--weights"), ("OUTPUT_DIR", "--output-dir")]
)
def test_overrides_of_options_are_refused(tool, key, option):
    with pytest.raises(ConfigError, match=rf"{key} among the overrides .* use {option}"):
        tool("checkpoint", "--config-file", "x.yaml", "--weights", "x.pth", key, "y")
