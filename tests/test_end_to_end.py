"""The tools as a user runs them, on a tiny model and a few pictures."""

import json
import logging
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a tool as ``python tools/...`` would, in this process; returns what it printed."""

    def run(tool, *arguments, status=0):
        monkeypatch.setattr(sys, "argv", [tool, *map(str, arguments)])
        # Detectron2's log handlers keep the stream of the first run, which pytest has closed since.
        monkeypatch.setattr(logging, "raiseExceptions", False)
        capsys.readouterr()
        try:
            runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        stdout, stderr = capsys.readouterr()
        assert code == status, stderr[-3000:]
        return stdout, stderr

    return run


@pytest.fixture
def config_file(sample_cfg, tmp_path):
    """A short training run: 6 iterations, a checkpoint after every second one."""
    sample_cfg.SOLVER.MAX_ITER = 6
    sample_cfg.SOLVER.CHECKPOINT_PERIOD = 2
    sample_cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    sample_cfg.SOLVER.WARMUP_ITERS = 0
    path = tmp_path / "config.yaml"
    path.write_text(sample_cfg.dump())
    return path


def learning_rates(output):
    lines = (output / "metrics.json").read_text().splitlines()
    return {r["iteration"]: r["lr"] for r in map(json.loads, lines) if "lr" in r}


def test_train_evaluate_and_segment(run, config_file, sample_root, tmp_path):
    output = tmp_path / "output"
    weights = output / "model_final.pth"
    run("train_net.py", "--config-file", config_file, "SOLVER.MAX_ITER", "2")
    assert "model_final.pth" in {p.name for p in output.iterdir()}
    assert any(p.name.startswith("events.out.tfevents") for p in output.iterdir())

    figures = tmp_path / "figures.json"
    run(
        "eval.py",
        "checkpoint",
        "--config-file",
        config_file,
        "--weights",
        weights,
        "--output-dir",
        tmp_path / "eval",
        "--output",
        figures,
        "--boundary",
        "TEST.IMS_PER_BATCH",
        "2",
    )
    results = json.loads(figures.read_text())
    assert {"panoptic_seg", "segm", "bbox", "sem_seg", "boundary"} <= set(results)
    kept = json.loads((tmp_path / "eval" / "inference" / "sample_val" / "results.json").read_text())
    assert kept["results"] == results and kept["pictures"] == 4
    assert {"model", "post-processing", "scoring"} <= set(kept["seconds"])
    assert 0 <= results["panoptic_seg"]["PQ"] <= 100

    # A folder with a picture that cannot be read, and a colour-mapped one that can.
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    source = sorted((sample_root / "val").iterdir())[0]
    (pictures / "broken.jpg").write_bytes(source.read_bytes()[:500])
    Image.open(source).convert("P").save(pictures / "palette.png")
    stdout, stderr = run(
        "demo.py", "--config-file", config_file, "--input", pictures, source, "--output",
        tmp_path / "demo", "--confidence-threshold", "0", "--opts", "MODEL.WEIGHTS", weights,
        status=1,
    )  # fmt: skip
    assert "2 of 3 pictures segmented" in stdout
    assert "broken.jpg cannot be read as a picture" in stderr
    demo = tmp_path / "demo"
    assert {source.stem + ".png", "palette.png"} <= {p.name for p in demo.iterdir()}
    size = Image.open(source).size
    assert Image.open(demo / "panoptic" / "palette.png").size == size
    assert Image.open(demo / "semantic" / "palette.png").size == size
    images = json.loads((demo / "images.json").read_text())
    assert [image["file_name"] for image in images] == ["palette.png", source.name]
    annotations = json.loads((demo / "panoptic.json").read_text())["annotations"]
    assert [a["file_name"] for a in annotations] == ["palette.png", source.stem + ".png"]
    assert json.loads((demo / "instances.json").read_text())

    # No score reaches 1: nothing is left, neither instances nor segments.
    run("demo.py", "--config-file", config_file, "--input", source, "--output", tmp_path / "none",
        "--confidence-threshold", "1", "--opts", "MODEL.WEIGHTS", weights)  # fmt: skip
    assert json.loads((tmp_path / "none" / "instances.json").read_text()) == []
    assert not np.asarray(Image.open(tmp_path / "none" / "panoptic" / f"{source.stem}.png")).any()


def test_a_killed_run_resumes_where_it_was(run, config_file, tmp_path):
    output = tmp_path / "output"
    run("train_net.py", "--config-file", config_file, "OUTPUT_DIR", tmp_path / "whole")
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, ROOT / "tools" / "train_net.py", "--config-file", config_file],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdout=log,
            stderr=log,
        )
        while not (output / "last_checkpoint").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    assert (output / "last_checkpoint").exists(), (tmp_path / "log").read_text()[-3000:]
    assert not (output / "model_final.pth").exists(), "it was too fast to be killed"
    checkpoint = (output / "last_checkpoint").read_text()  # model_0000001.pth or a later one
    iteration = int(checkpoint.removesuffix(".pth").rpartition("_")[2])
    run("train_net.py", "--config-file", config_file, "--resume")
    assert f"Starting training from iteration {iteration + 1}" in (output / "log.txt").read_text()
    assert (output / "model_final.pth").exists()
    whole, resumed = learning_rates(tmp_path / "whole"), learning_rates(output)
    assert resumed[5] == pytest.approx(whole[5])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config-file", "nowhere.yaml"], "error: config file nowhere.yaml does not exist"),
        (["--num-gpus", "99"], "error: --num-gpus 99, but torch"),
        (["SOLVER.MAX_ITR", "3"], "unknown key SOLVER.MAX_ITR; did you mean SOLVER.MAX_ITER?"),
        (["MODEL.WEIGHTS", "gone.pth"], "error: MODEL.WEIGHTS gone.pth does not exist"),
        (["--eval-only"], "error: there is nothing to evaluate: set MODEL.WEIGHTS"),
    ],
)
def test_mistakes_get_one_line(run, config_file, arguments, message):
    if "--config-file" not in arguments:
        arguments = ["--config-file", config_file, *arguments]
    _, stderr = run("train_net.py", *arguments, status=2)
    assert message in stderr
    assert "Traceback" not in stderr
