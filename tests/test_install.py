"""The set-up scripts under tools/, without a download: what they change, refuse and keep."""

import importlib.machinery
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


detectron2_installer = load("install_detectron2")
environment = load("setup_environment")


# --- Detectron2: the textual updates --------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("interp=Image.LINEAR, fill=0", "interp=Image.BILINEAR, fill=0"),
        ("dtype=np.bool)", "dtype=bool)"),
        ("x.astype(np.int)", "x.astype(int)"),
        ("np.full(3, np.nan, dtype=np.float)", "np.full(3, np.nan, dtype=float)"),
        ("np.object, np.str", "object, str"),
    ],
)
def test_removed_names_are_replaced(old, new):
    assert detectron2_installer.update_text(old) == new


@pytest.mark.parametrize(
    "text",
    ["np.float32", "np.float64", "np.int64", "np.bool_", "np.str_", "np.object_", "np.integer"]
    + [
        "Image.BILINEAR",
        "Image.LINEAR_",
        "cv2.INTER_LINEAR",
        "mynp.int",
        "nn.Linear",
        "np.floating",
    ],
)
def test_other_names_stay(text):
    assert detectron2_installer.update_text(f"x = {text}\n") == f"x = {text}\n"


def test_update_sources_adds_the_stub_and_counts(tmp_path):
    package = tmp_path / "detectron2"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "old.py").write_text("a = np.bool\nb = Image.LINEAR\n")
    (package / "new.py").write_text("a = np.float32\n")
    assert detectron2_installer.update_sources(tmp_path) == 1
    assert (package / "old.py").read_text() == "a = bool\nb = Image.BILINEAR\n"
    assert (package / "new.py").read_text() == "a = np.float32\n"
    assert (package / "_C.py").exists()


# --- Detectron2: the hash -------------------------------------------------------------------------


def test_wrong_archive_is_refused_naming_both_hashes(tmp_path):
    archive = tmp_path / "pb1-detectron2-0.6.tar.gz"
    archive.write_bytes(b"abc")
    of_abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    with pytest.raises(detectron2_installer.InstallError) as caught:
        detectron2_installer.verify(archive)
    assert of_abc in str(caught.value)
    assert detectron2_installer.SHA256 in str(caught.value)
    detectron2_installer.verify(archive, of_abc)


def test_wrong_archive_is_not_unpacked(tmp_path, monkeypatch):
    def fetch(directory):
        with tarfile.open(directory / "pb1-detectron2-0.6.tar.gz", "w:gz") as tar:
            entry = tarfile.TarInfo("pb1-detectron2-0.6/setup.py")
            tar.addfile(entry, io.BytesIO())
        return directory / "pb1-detectron2-0.6.tar.gz"

    monkeypatch.setattr(detectron2_installer, "fetch", fetch)
    monkeypatch.setattr(detectron2_installer, "pip", lambda *_: pytest.fail("pip was called"))
    with pytest.raises(detectron2_installer.InstallError, match="sha256"):
        detectron2_installer.build_wheel(tmp_path / "wheels")
    assert not (tmp_path / "wheels").exists()


# --- Detectron2: the stub -------------------------------------------------------------------------


@pytest.fixture
def stub():
    module = types.ModuleType("detectron2._C")
    exec(detectron2_installer.STUB, module.__dict__)
    return module


def test_stub_operator_explains_itself(stub):
    with pytest.raises(ImportError, match=r"nms_rotated.*without them.*--from-source"):
        stub.nms_rotated  # noqa: B018


def test_stub_can_be_inspected(stub):
    assert not hasattr(stub, "__wrapped__")
    assert stub.has_cuda() is False
    assert "without compiled operators" in stub.get_compiler_version()
    assert "without compiled operators" in stub.get_cuda_version()


# --- Detectron2: what is there is kept ------------------------------------------------------------


def fake_detectron2(folder, body="", extension="_C.py"):
    package = folder / "detectron2"
    for name in ("", "data", "evaluation", "modeling"):
        (package / name).mkdir(parents=True) if name else package.mkdir()
        (package / name / "__init__.py").write_text("")
    (package / "__init__.py").write_text('__version__ = "0.6.1"\n')
    (package / "data" / "__init__.py").write_text(body)
    (package / extension).write_text("")


@pytest.fixture
def no_pip(monkeypatch):
    monkeypatch.setattr(detectron2_installer, "pip", lambda *_: pytest.fail("pip was called"))


def test_installed_detectron2_is_kept(tmp_path, monkeypatch, capsys, no_pip):
    fake_detectron2(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    detectron2_installer.install(from_source=None, force=False)
    assert "kept" in capsys.readouterr().out


def test_compiled_detectron2_is_recognised(tmp_path, monkeypatch):
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    fake_detectron2(tmp_path, extension=f"_C{suffix}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    state = detectron2_installer.installed()
    assert state["compiled"] is True
    assert state["version"] == "0.6.1"


def test_broken_detectron2_is_reported_not_replaced(tmp_path, monkeypatch, no_pip):
    fake_detectron2(tmp_path, body="raise AttributeError('no LINEAR')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(detectron2_installer.InstallError, match=r"no LINEAR(.|\n)*--force"):
        detectron2_installer.install(from_source=None, force=False)


# --- torch and torchvision ------------------------------------------------------------------------


@pytest.fixture
def pip_calls(monkeypatch):
    calls = []
    monkeypatch.setattr(environment, "pip_install", lambda *arguments: calls.append(arguments))
    return calls


def pretend(monkeypatch, *pairs):
    """Let the probe find these pairs, one after the other, installed as distributions, too."""
    probes = list(pairs)
    first = pairs[0]
    monkeypatch.setattr(environment, "probe_pair", lambda: probes.pop(0))
    monkeypatch.setattr(environment, "distribution", first.get)


WORKING = {"torch": "2.15.0", "torchvision": "0.29.2", "error": None}
OLD = {"torch": "2.4.0", "torchvision": "0.19.0", "error": None}
BROKEN = {
    "torch": "2.15.0+cpu",
    "torchvision": "0.29.2",
    "error": "RuntimeError: operator torchvision::nms does not exist",
}


@pytest.mark.parametrize("own", [True, False])
def test_working_pair_is_kept(monkeypatch, pip_calls, own):
    pretend(monkeypatch, WORKING)
    environment.install_pair(own)
    assert pip_calls == []


@pytest.mark.parametrize(("pair", "words"), [(OLD, "needs 2.10"), (BROKEN, "nms does not exist")])
def test_pair_of_another_environment_is_not_touched(monkeypatch, pip_calls, pair, words):
    pretend(monkeypatch, pair)
    with pytest.raises(environment.SetupError, match=words) as caught:
        environment.install_pair(own=False)
    assert pip_calls == []
    assert pair["torch"] in str(caught.value)
    assert "make SETUP=venv" in str(caught.value)


@pytest.mark.parametrize("pair", [OLD, BROKEN])
def test_pair_of_own_environment_is_mended(monkeypatch, pip_calls, pair):
    pretend(monkeypatch, pair, WORKING)
    environment.install_pair(own=True)
    assert "--force-reinstall" in pip_calls[0]


def test_pair_that_stays_broken_is_an_error(monkeypatch, pip_calls):
    pretend(monkeypatch, BROKEN, BROKEN)
    with pytest.raises(environment.SetupError, match="pip has just installed this"):
        environment.install_pair(own=True)


def test_nothing_installed(monkeypatch, pip_calls):
    pretend(monkeypatch, {"error": "ModuleNotFoundError: No module named 'torch'"}, WORKING)
    environment.install_pair(own=False)
    assert pip_calls == [("torch>=2.10", "torchvision")]


def test_lone_torch_is_kept(monkeypatch, pip_calls):
    lone = {"torch": "2.12.1", "error": "ModuleNotFoundError: No module named 'torchvision'"}
    pretend(monkeypatch, lone, {**WORKING, "torch": "2.12.1"})
    constraints = []

    def record(*arguments):
        constraints.append(Path(arguments[arguments.index("--constraint") + 1]).read_text())

    monkeypatch.setattr(environment, "pip_install", record)
    environment.install_pair(own=False)
    assert constraints == ["torch==2.12.1\n"]


def test_probe_sees_a_broken_torchvision(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("__version__ = '2.15.0'\n")
    (tmp_path / "torchvision.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pair = environment.probe_pair()
    assert pair["torch"] == "2.15.0"
    assert pair["error"] == "RuntimeError: operator torchvision::nms does not exist"


# --- Python, and doing nothing twice --------------------------------------------------------------


def test_old_python_is_told_of_one_that_fits(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    message = environment.explain_old_python((3, 9, 18))
    assert "is Python 3.9; Mask2Former needs Python 3.10 to 3.13" in message
    assert "install one and add PYTHON=python3.12" in message
    (tmp_path / "python3.11").touch(mode=0o755)
    assert "do: add PYTHON=python3.11" in environment.explain_old_python((3, 9, 18))


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with the files that the set-up depends on, set up a moment ago."""
    for name in environment.INPUTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "ops" / "csrc" / "cuda").mkdir(parents=True)
    (tmp_path / "ops" / "csrc" / "cuda" / "op.cu").write_text("// old")
    (tmp_path / "ops" / "op_cpu.so").write_text("")
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "MODULES", ("torch",))
    state = {"fingerprint": environment.fingerprint("active"), "libraries": ["op_cpu.so"]}
    (tmp_path / "stamp.json").write_text(json.dumps(state))
    return tmp_path


def test_set_up_is_not_repeated(checkout):
    assert environment.is_up_to_date(checkout / "stamp.json", "active")


def test_set_up_is_repeated_after_a_change(checkout, monkeypatch):
    stamp = checkout / "stamp.json"
    assert not environment.is_up_to_date(checkout / "missing.json", "active")
    assert not environment.is_up_to_date(stamp, "none")
    monkeypatch.setattr(environment, "MODULES", ("a_module_that_nobody_has",))
    assert not environment.is_up_to_date(stamp, "active")
    monkeypatch.setattr(environment, "MODULES", ())
    (checkout / "ops" / "op_cpu.so").unlink()
    assert not environment.is_up_to_date(stamp, "active")
    (checkout / "ops" / "op_cpu.so").write_text("")
    assert environment.is_up_to_date(stamp, "active")
    (checkout / "ops" / "csrc" / "cuda" / "op.cu").write_text("// new")
    assert not environment.is_up_to_date(stamp, "active")


# --- the whole ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["install_detectron2", "setup_environment"])
def test_scripts_need_the_standard_library_only(name):
    command = [sys.executable, "-I", "-S", str(ROOT / "tools" / f"{name}.py"), "--help"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout


def make(*arguments):
    # `make test` runs this test, too: none of its variables is to reach this make.
    environ = {"PATH": os.environ["PATH"]}
    command = ["make", "-n", "test", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@needs_make
@pytest.mark.parametrize(
    ("setup", "python"), [("venv", ".venv/bin/python"), ("none", '"/opt/my python"')]
)
def test_make_runs_the_python_of_the_environment(setup, python):
    assert make(f"SETUP={setup}", "PYTHON=/opt/my python").stdout.splitlines() == [
        f'"/opt/my python" tools/setup_environment.py {setup}',
        f"{python} -m pytest ",
    ]


@needs_make
def test_make_refuses_an_unknown_setup():
    result = make("SETUP=yes")
    assert result.returncode != 0
    assert "it must be venv, active or none" in result.stderr
