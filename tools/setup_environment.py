"""Set up what Mask2Former needs: torch and torchvision, the packages, Detectron2, the compiled op.

    python tools/setup_environment.py venv    # into .venv in the checkout, made if missing
    python tools/setup_environment.py active  # into the environment of this Python
    python tools/setup_environment.py none    # install nothing: compile the op, link the packages

`make` calls it before each job; when nothing has changed since the last time it returns at once.
What works already is kept: a torch and torchvision that fit, any Detectron2, any OpenCV.

`none` is for a machine that cannot install. It leaves a folder, build/checkout, that makes both
packages importable: `PYTHONPATH=build/checkout python -m pytest tests`.

Standard library only.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LINKS = ROOT / "build" / "checkout"
STAMP = "mask2former-setup.json"
MARK = "made-by-mask2former-setup"
OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
OLDEST_TORCH = (2, 10)


def explain_old_python(version):
    """What to say about a Python that is too old."""
    minors = range(NEWEST_PYTHON[1], OLDEST_PYTHON[1] - 1, -1)
    found = [name for name in map("python3.{}".format, minors) if shutil.which(name)]
    return (
        "error: {} is Python {}.{}; Mask2Former needs Python 3.10 to 3.13.\n"
        "  What to do: {}add PYTHON={} to the make command"
    ).format(
        sys.executable,
        *version[:2],
        "" if found else "install one and ",
        (found + ["python3.12"])[0],
    )


# Before anything below that Python 3.6 to 3.9 would stumble over.
if sys.version_info < OLDEST_PYTHON:
    sys.exit(explain_old_python(sys.version_info))

# A change of one of these files, of the Python or of the compilers sets the environment up again.
INPUTS = ("pyproject.toml", "setup.py", "tools/setup_environment.py", "tools/install_detectron2.py")
MODULES = ("torch", "torchvision", "detectron2", "cv2", "hotcoco", "pytest", "mask2former_ops")

PAIR_PROBE = """
import json
pair = {}
try:
    import torch
    pair["torch"] = torch.__version__
    import torchvision
    pair["torchvision"] = torchvision.__version__
    kept = torchvision.ops.nms(torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2]]), torch.ones(2), 0.5)
    pair["error"] = None if len(kept) == 1 else "torchvision.ops.nms gives a wrong answer"
except Exception as error:
    pair["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
print(json.dumps(pair))
"""


REMEDIES = f"""\
  - replace both in this environment by the index's pair:
      {shlex.quote(sys.executable)} -m pip install --upgrade --force-reinstall torch torchvision
  - or leave it as it is and let make use an environment of its own, .venv in the checkout:
      make SETUP=venv"""


class SetupError(Exception):
    """The set-up cannot go on; the message says why and what to do."""


def say(text: str) -> None:
    print(text, flush=True)  # in order with the output of the commands that are run


def run(*command: str, **options) -> None:
    """Run a command whose output the user sees; raise SetupError if it fails."""
    if subprocess.run(command, cwd=ROOT, **options).returncode:
        raise SetupError(f"this command failed (its message stands above): {' '.join(command)}")


def pip_install(*arguments: str) -> None:
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", *arguments)


# --- .venv ----------------------------------------------------------------------------------------


def enter_venv() -> None:
    """Make .venv if there is none that works, and go on as its Python; does not return."""
    python = VENV / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists() or subprocess.run([str(python), "-c", ""]).returncode:
        say(f"making {VENV} with Python {sys.version.split()[0]}")
        try:
            run(sys.executable, "-m", "venv", str(VENV))
        except SetupError as error:
            hint = "On Debian and Ubuntu venv is a package of its own: apt install python3-venv"
            raise SetupError(f"{error}\n  {hint}") from None
        (VENV / MARK).touch()
    sys.exit(subprocess.run([str(python), __file__, "active"]).returncode)


def is_own_environment() -> bool:
    """Whether this Python is that of a .venv which this script made, and may mend."""
    return Path(sys.prefix).resolve() == VENV and (VENV / MARK).exists()


def stamp_path(mode: str) -> Path:
    """Where the state of the last set-up is kept."""
    if mode == "none":
        return LINKS / STAMP
    return (VENV if Path(sys.prefix).resolve() == VENV else ROOT / "build") / STAMP


# --- doing nothing twice ------------------------------------------------------------------------


def fingerprint(mode: str) -> str:
    """A hash of everything that the result of the set-up depends on."""
    sources = sorted(path for path in (ROOT / "ops" / "csrc").rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in [ROOT / name for name in INPUTS] + sources:
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    compilers = [shutil.which(os.environ.get("CXX", "c++")), shutil.which("nvcc")]
    digest.update(repr([mode, str(ROOT), sys.prefix, sys.version, compilers]).encode())
    return digest.hexdigest()


def libraries() -> list[str]:
    """The op's libraries that stand in ops/."""
    return sorted(p.name for p in (ROOT / "ops").iterdir() if p.suffix in (".so", ".dylib", ".dll"))


def is_up_to_date(stamp: Path, mode: str) -> bool:
    """Whether the last set-up of this kind still holds: same inputs, and nothing was removed."""
    try:
        last = json.loads(stamp.read_text())
    except (OSError, ValueError):
        return False
    modules = MODULES if mode == "active" else ()
    return (
        last.get("fingerprint") == fingerprint(mode)
        and last.get("libraries") == libraries()
        and all(util.find_spec(name) for name in modules)
    )


# --- the parts ----------------------------------------------------------------------------------


def probe_pair() -> dict:
    """The installed torch and torchvision: versions (absent if not importable), error or None."""
    result = subprocess.run([sys.executable, "-c", PAIR_PROBE], capture_output=True, text=True)
    try:
        return json.loads(result.stdout.splitlines()[-1])
    except (IndexError, ValueError):  # the import ended the process
        return {"error": f"importing them ends Python with status {result.returncode}"}


def distribution(name: str) -> str | None:
    """The installed version of a package, or None."""
    from importlib import metadata  # Python 3.8

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def release(version: str) -> tuple[int, ...]:
    """(2, 10) of "2.10.1+cu130"."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def explain_pair(pair: dict) -> str | None:
    """What is wrong with an installed torch and torchvision, or None."""
    torch = pair.get("torch")
    if torch and release(torch) < OLDEST_TORCH:
        return (
            f"torch {torch} is installed here, and Mask2Former needs 2.10 or newer: its op is "
            "built on LibTorch's stable ABI, which begins there."
        )
    if pair["error"]:
        return (
            f"torch {torch or distribution('torch') or '(missing)'} and torchvision "
            f"{pair.get('torchvision') or distribution('torchvision') or '(missing)'} do not work "
            f"together: {pair['error']}\n  Each torchvision is built for one torch, of the same "
            "release and from the same index (CPU or CUDA)."
        )
    return None


def install_pair(own: bool) -> None:
    """See that torch and torchvision are there and fit.

    Raises:
        SetupError: they do not fit, and this environment is not ours to mend.
    """
    torch, torchvision = distribution("torch"), distribution("torchvision")
    pair = probe_pair()
    problem = explain_pair(pair)
    if problem is None:
        say(f"torch {pair['torch']} and torchvision {pair['torchvision']} fit and are kept")
        return
    if torch is None and "torch" not in pair:
        say("installing torch and torchvision (some GB, a minute or two)")
        pip_install("torch>=2.10", "torchvision")
    elif torchvision is None and release(torch or pair["torch"]) >= OLDEST_TORCH:
        say(f"installing the torchvision that fits torch {torch}, which is kept")
        with tempfile.TemporaryDirectory() as name:
            constraint = Path(name) / "constraint.txt"
            constraint.write_text(f"torch=={torch}\n")
            pip_install("torchvision", "--constraint", str(constraint))
    elif own:
        say(f"{problem}\n  Replacing both in .venv by a pair that fits (a minute or two)")
        pip_install("--force-reinstall", "--no-deps", "torch>=2.10", "torchvision")
        pip_install("torch>=2.10", "torchvision")
    else:
        raise SetupError(f"{problem}\n  Nothing was changed. What to do, either\n{REMEDIES}")
    problem = explain_pair(probe_pair())
    if problem:
        raise SetupError(
            f"{problem}\n  pip has just installed this. What to do, either\n{REMEDIES}"
        )


def install_project() -> None:
    """Install this checkout in place, with the packages it names, and compile the op."""
    from importlib import metadata

    say("compiling the op and installing this checkout in place")
    pip_install("setuptools>=70.1", "ninja")
    pip_install("--no-build-isolation", "--no-deps", "--editable", str(ROOT))
    wanted = []
    for requirement in metadata.requires("mask2former") or []:
        specifier, _, marker = requirement.partition(";")
        if "extra ==" not in marker or '"dev"' in marker:
            wanted.append(specifier.strip())
    if util.find_spec("cv2") and not distribution("opencv-python-headless"):
        # opencv-python, -headless and -contrib all install cv2, and two of them break each other.
        say("cv2 is kept as it is, whatever pip may say about opencv-python-headless")
        wanted = [name for name in wanted if not name.startswith("opencv-python")]
    say("installing the packages that pyproject.toml names")
    pip_install(*wanted)


def link_packages() -> None:
    """Make both packages importable from LINKS, and compile the op in place; installs nothing."""
    pair = probe_pair()
    problem = explain_pair(pair)
    if problem:
        raise SetupError(f"{problem}\n  Nothing was changed. What to do, either\n{REMEDIES}")
    LINKS.mkdir(parents=True, exist_ok=True)
    for name, folder in (("mask2former", "mask2former"), ("mask2former_ops", "ops")):
        link = LINKS / name
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(ROOT / folder, LINKS), target_is_directory=True)
    say(f"compiling the op with torch {pair['torch']}")
    run(sys.executable, "setup.py", "-q", "build_ext", "--inplace")


def set_up(mode: str) -> None:
    """Do what is missing, say what was done, and end with a report on the result."""
    stamp = stamp_path(mode)
    if is_up_to_date(stamp, mode):
        return
    started = time.time()
    if mode == "none":
        link_packages()
    else:
        install_pair(is_own_environment())
        install_project()
        run(sys.executable, "tools/install_detectron2.py")
    stamp.parent.mkdir(parents=True, exist_ok=True)
    state = {"fingerprint": fingerprint(mode), "libraries": libraries()}
    stamp.write_text(json.dumps(state))
    environment = dict(os.environ)
    if mode == "none":
        paths = [str(LINKS), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    subprocess.run([sys.executable, "mask2former/doctor.py"], cwd=ROOT, env=environment)
    say(f"set up in {time.time() - started:.0f} s: {sys.executable}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=("venv", "active", "none"))
    mode = parser.parse_args().mode
    try:
        if sys.version_info[:2] > NEWEST_PYTHON:
            say("warning: this Python is newer than those that were tried, 3.10 to 3.13")
        if mode == "venv":
            enter_venv()
        else:
            set_up(mode)
    except SetupError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
