"""Install Detectron2 into the environment of the Python that runs this script.

An installed Detectron2 is kept. Otherwise Detectron2 0.6 is installed without its compiled
operators, of which Mask2Former needs none: its Python files come from the package index
(`pb1-detectron2`, published as source only), are checked against a fixed SHA-256 and updated for
today's numpy and Pillow.

    python tools/install_detectron2.py                    # keep what is there, or install 0.6
    python tools/install_detectron2.py --from-source      # main, compiled, from its repository
    python tools/install_detectron2.py --from-source DIR  # ... from a checkout or another git URL
    python tools/install_detectron2.py --wheel-only DIR   # write the wheel of 0.6 into DIR, no more

Standard library only, so that it runs before anything is installed.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

REQUIREMENT = "pb1-detectron2==0.6"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
UPSTREAM = "git+https://github.com/facebookresearch/detectron2.git"

# Names that numpy 1.24 and Pillow 10 removed, and what they stood for.
UPDATES = (
    (re.compile(r"\bImage\.LINEAR\b"), "Image.BILINEAR"),
    (re.compile(r"\bnp\.(bool|int|float|object|str)\b"), r"\1"),
)

# Detectron2's evaluators import _C at module level, and its environment report, which each training
# run logs, asks _C for two versions: both have to work where no operator is ever called.
STUB = '''\
"""Stands in for Detectron2's compiled operators, which this installation does not have."""


def get_compiler_version():
    return "none (installed without compiled operators)"


def get_cuda_version():
    return "none (installed without compiled operators)"


def has_cuda():
    return False


def __getattr__(name):
    if name.startswith("__"):  # inspect, copy and pickle ask for these and expect an AttributeError
        raise AttributeError(name)
    raise ImportError(
        f"detectron2._C.{name} is one of Detectron2's compiled operators, and this Detectron2 was "
        "installed without them. Mask2Former needs none of them; for a model that does, install "
        "Detectron2 from its repository: python tools/install_detectron2.py --force --from-source"
    )
'''

# Takes the place of Detectron2's setup.py, which imports torch, pins a formatter and installs a
# top-level package named `tools`. The requirements are those that Detectron2's modules import.
SETUP = """\
from setuptools import find_packages, setup

projects = {
    "detectron2.projects.point_rend": "projects/PointRend/point_rend",
    "detectron2.projects.deeplab": "projects/DeepLab/deeplab",
    "detectron2.projects.panoptic_deeplab": "projects/Panoptic-DeepLab/panoptic_deeplab",
}
setup(
    name="pb1-detectron2",
    version="0.6",
    description="Detectron2 0.6 without compiled operators, updated for current numpy and Pillow",
    url="https://github.com/facebookresearch/detectron2",
    packages=find_packages(include=["detectron2", "detectron2.*"]) + list(projects),
    package_dir=projects,
    package_data={"detectron2.model_zoo": ["configs/**/*.yaml", "configs/**/*.py"]},
    python_requires=">=3.7",
    install_requires=[
        "Pillow>=7.1", "numpy", "matplotlib", "pycocotools>=2.0.2", "termcolor>=1.1",
        "yacs>=0.1.8", "tabulate", "cloudpickle", "tqdm>4.29.0", "tensorboard",
        "fvcore>=0.1.5,<0.1.6", "iopath>=0.1.7", "omegaconf>=2.1", "hydra-core>=1.1",
    ],
)
"""


class InstallError(Exception):
    """The installation cannot go on; the message says why and what to do."""


def pip(*arguments: str) -> None:
    """Run this Python's pip, showing only its warnings and errors.

    Raises:
        InstallError: pip failed.
    """
    command = [sys.executable, "-m", "pip", arguments[0], "--quiet", *arguments[1:]]
    if subprocess.run(command).returncode:
        raise InstallError(f"this command failed (its message stands above): {' '.join(command)}")


def index_options() -> list[str]:
    """pip's configured package index as options of unearth, which reads no pip.conf."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    shown = subprocess.run(command, capture_output=True, text=True).stdout
    urls = re.findall(r"^\S+\.index-url='(.*)'$", shown, re.MULTILINE)
    return ["--index-url", urls[0]] if urls else []  # environment variables are listed first


def fetch(directory: Path) -> Path:
    """Download the source archive of Detectron2 0.6 and return its path.

    pip itself refuses this archive, because an optional extra of it names a URL; unearth only
    downloads.
    """
    helper = directory / "unearth"
    pip("install", "--target", str(helper), "unearth")
    command = [sys.executable, "-m", "unearth", *index_options(), "--no-binary"]
    result = subprocess.run(
        [*command, "--download", str(directory), REQUIREMENT],
        env={**os.environ, "PYTHONPATH": str(helper)},
        capture_output=True,
        text=True,
    )
    archives = list(directory.glob("*.tar.gz"))
    if result.returncode or len(archives) != 1:
        raise InstallError(
            f"could not download {REQUIREMENT} from the package index: "
            f"{(result.stderr or result.stdout).strip()[-2000:]}\n"
            "If the repository is within reach: python tools/install_detectron2.py --from-source"
        )
    return archives[0]


def verify(archive: Path, expected: str = SHA256) -> None:
    """Raise InstallError unless the SHA-256 of the file is the expected one."""
    actual = hashlib.sha256(archive.read_bytes()).hexdigest()
    if actual != expected:
        raise InstallError(
            f"{archive.name} is not the file this script was written for, and was not installed.\n"
            f"  expected sha256 {expected}\n  actual   sha256 {actual}"
        )


def update_text(text: str) -> str:
    """Replace the names that numpy and Pillow removed; everything else stays as it is."""
    for pattern, replacement in UPDATES:
        text = pattern.sub(replacement, text)
    return text


def update_sources(root: Path) -> int:
    """Make an unpacked Detectron2 0.6 installable today; return how many files were rewritten."""
    changed = 0
    for path in sorted(root.rglob("*.py")):
        old = path.read_text(encoding="utf-8")
        new = update_text(old)
        if new != old:
            path.write_text(new, encoding="utf-8")
            changed += 1
    (root / "detectron2" / "_C.py").write_text(STUB, encoding="utf-8")
    (root / "setup.py").write_text(SETUP, encoding="utf-8")
    return changed


def build_wheel(destination: Path) -> Path:
    """Fetch, verify and update Detectron2 0.6; write its wheel (py3-none-any) into a directory."""
    with tempfile.TemporaryDirectory(prefix="detectron2-") as name:
        directory = Path(name)
        archive = fetch(directory)
        verify(archive)
        print(f"  fetched {archive.name}, sha256 as expected")
        with tarfile.open(archive) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # from 3.10.12 on
            tar.extractall(directory)
        source = directory / archive.name[: -len(".tar.gz")]
        changed = update_sources(source)
        print(f"  updated {changed} files for current numpy and Pillow, added detectron2/_C.py")
        built = directory / "wheel"
        pip("wheel", "--use-pep517", "--no-deps", "--wheel-dir", str(built), str(source))
        (wheel,) = built.glob("*.whl")
        destination.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(wheel, destination))


def installed() -> dict | None:
    """Describe the installed Detectron2, or return None if there is none.

    The keys are version, path, compiled (bool) and error (why it fails to import, or None). A fresh
    Python is asked, which sees what an earlier step has just installed.
    """
    code = """
import json, sys
from importlib.util import find_spec
try:
    import detectron2
except ModuleNotFoundError:
    sys.exit()
state = {"version": getattr(detectron2, "__version__", "?"), "path": detectron2.__path__[0]}
state["error"] = None
extension = find_spec("detectron2._C")
state["compiled"] = extension is not None and not extension.origin.endswith(".py")
if find_spec("torch"):
    try:
        import detectron2.data, detectron2.evaluation, detectron2.modeling
    except Exception as error:
        state["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(state))
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1]) if output.strip() else None


def report(state: dict) -> None:
    """Print one line about the installed Detectron2; raise InstallError if it fails to import."""
    kind = "with compiled operators" if state["compiled"] else "without compiled operators"
    print(f"Detectron2 {state['version']}, {kind}: {state['path']}")
    if state["error"]:
        raise InstallError(
            f"this Detectron2 does not import: {state['error']}\nTo replace it: "
            f"{sys.executable} tools/install_detectron2.py --force [--from-source]"
        )


def install(from_source: str | None, force: bool) -> None:
    """Install Detectron2 unless there is one; say what was done.

    Args:
        from_source: git URL or directory of Detectron2's repository; None for 0.6 from the index.
        force: replace an installed Detectron2.
    """
    state = installed()
    if state and not force:
        print("Detectron2 is installed already and is kept.")
        report(state)
        return
    if find_spec("torch") is None:
        raise InstallError("Detectron2 needs torch: pip install torch torchvision first")
    replace = ["--force-reinstall", "--no-deps"] if state else []
    if from_source:
        local = Path(from_source).exists() or from_source.startswith("git+")
        source = from_source if local else f"git+{from_source}"
        print(f"Detectron2: building from {source} (some minutes)")
        pip("install", "--no-build-isolation", *replace, source)
    else:
        print("Detectron2: installing 0.6 from the package index, without compiled operators")
        with tempfile.TemporaryDirectory(prefix="detectron2-wheel-") as name:
            pip("install", *replace, str(build_wheel(Path(name))))
    state = installed()
    if state is None:
        raise InstallError("pip succeeded, but `import detectron2` still fails")
    report(state)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--from-source",
        nargs="?",
        const=UPSTREAM,
        metavar="URL_OR_DIR",
        help=f"build main with its compiled operators, from its repository (default {UPSTREAM})",
    )
    parser.add_argument(
        "--wheel-only", type=Path, metavar="DIR", help="write the wheel of 0.6 here"
    )
    parser.add_argument("--force", action="store_true", help="replace an installed Detectron2")
    arguments = parser.parse_args()
    try:
        if arguments.wheel_only:
            print(build_wheel(arguments.wheel_only))
        else:
            install(arguments.from_source, arguments.force)
    except InstallError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
