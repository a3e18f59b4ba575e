"""The report on the installation: what it says about environments that are and are not in order."""

import subprocess
import sys

import pytest
import torch

import mask2former_ops
from mask2former import doctor
from mask2former.doctor import Facts, Gpu, advise

COMPILED = ("compiled", "ops/op.so", "op.so is loaded")
FALLBACK = ("pytorch", None, "op.so is missing: its build failed")
H100 = Gpu("H100", (9, 0))


def facts(**changes):
    """An environment in order, with a GPU, changed in one respect."""
    versions = dict.fromkeys(doctor.DISTRIBUTIONS, "1.0") | {"torch": "2.15.0+cu132"}
    found = {
        "versions": versions,
        "torch_cuda": "13.2",
        "cuda_available": True,
        "gpus": [H100],
        "driver": "580.65",
        "compiler": "c++ 12.2.0",
        "nvcc": "13.0",
        "backends": {"cpu": COMPILED, "cuda": COMPILED},
    }
    return Facts(**(found | changes))


def without_gpu(**changes):
    return facts(gpus=[], driver=None, cuda_available=False, **changes)


def test_nothing_to_say_about_an_environment_in_order():
    assert advise(facts()) == []
    assert advise(without_gpu(nvcc=None, backends={"cpu": COMPILED, "cuda": FALLBACK})) == []


@pytest.mark.parametrize(
    ("found", "problem", "remedy"),
    [
        (facts(versions={"torch": "2.9.1"}), "torch 2.9.1 is too old", "install --upgrade"),
        (facts(nms="operator torchvision::nms does not exist"), "do not fit", "torch torchvision"),
        (facts(nvcc="12.8"), "nvcc is of CUDA 12.8, torch of CUDA 13.2", "toolkit of CUDA 13.2"),
        (facts(gpus=[Gpu("T4", (7, 5))]), "compute capability 7.5", "TORCH_CUDA_ARCH_LIST=7.5"),
        (
            facts(gpus=[], cuda_available=False, torch_cuda=None),
            "built for the CPU only",
            "install a torch",
        ),
        (facts(gpus=[], cuda_available=False), "driver 580.65 may be too old", "update the driver"),
        (
            without_gpu(compiler=None, backends={"cpu": FALLBACK}),
            "on cpu, many times slower: op.so is missing",
            "install a C++17 compiler",
        ),
        (
            facts(nvcc=None, backends={"cpu": COMPILED, "cuda": FALLBACK}),
            "on cuda, many times slower",
            "install the toolkit of CUDA 13.2",
        ),
        (
            facts(failures={"detectron2": "no module", "mask2former": "no module"}),
            "`import detectron2` fails",
            "tools/install_detectron2.py",
        ),
        (
            facts(failures={"cv2": "ImportError: libGL.so.1: cannot open shared object file"}),
            "`import cv2` fails: ImportError: libGL",
            "opencv-python-headless",
        ),
        (facts(failures={"mask2former_ops": "no"}), "`import mask2former_ops`", "-isolation ."),
    ],
)
def test_each_problem_has_its_remedy(found, problem, remedy):
    (line,) = advise(found)
    first, _, rest = line.partition("\n")
    assert problem in first
    assert remedy in rest


def test_report_agrees_with_this_environment(capsys):
    status = doctor.main()
    output = capsys.readouterr().out
    rows = dict(line.split("  ", 1) for line in output.split("\n\n")[0].splitlines())
    assert torch.__version__ in rows["torch"]
    for device in ("cpu", "cuda"):
        assert rows[f"op on {device}"].split()[0] == mask2former_ops.backend(device).name
    assert ("All is well." in output) == (status == 0)


def test_runs_where_nothing_is_installed():
    result = subprocess.run(
        [sys.executable, "-I", "-S", doctor.__file__], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr == ""
    for name in ("torch", "detectron2", "numpy"):
        assert f"`import {name}` fails" in result.stdout
    assert "make setup" in result.stdout


def test_an_import_that_fails_names_the_doctor(tmp_path):
    (tmp_path / "detectron2.py").write_text("raise ImportError('broken')\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import mask2former"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 1
    assert "broken; to see what is missing, run: python" in process.stderr
    assert "doctor.py" in process.stderr
