"""Report on the installation: versions, the op's libraries, and what to do about what is wrong.

    python -m mask2former.doctor
    python mask2former/doctor.py    # where `import mask2former` itself fails

The exit status is 0 if all is well and 1 if something needs attention. At import this module needs
the standard library only, since it has to run where torch or Detectron2 are missing or broken.
"""

import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path

OLDEST_TORCH = (2, 10)
OLDEST_CAPABILITY = (8, 0)  # what the CUDA library is compiled for by default: 8.0, and 9.0 up

# What Mask2Former cannot do without: each module with the distribution that brings it.
DISTRIBUTIONS = {
    "torch": "torch",
    "torchvision": "torchvision",
    "detectron2": "detectron2",
    "numpy": "numpy",
    "scipy": "scipy",
    "cv2": "opencv-python-headless",
    "PIL": "Pillow",
    "pycocotools": "pycocotools",
    "hotcoco": "hotcoco",
    "fvcore": "fvcore",
    "mask2former_ops": "mask2former",
    "mask2former": "mask2former",
}
PAIR = "python -m pip install --upgrade --force-reinstall torch torchvision"
REBUILD = "python -m pip install --no-build-isolation --force-reinstall --no-deps"
# What to do about a module that does not import, if not `pip install` of its distribution.
REMEDIES = {
    "torch": PAIR,
    "torchvision": PAIR,
    "detectron2": "python tools/install_detectron2.py",
    "cv2": "python -m pip install --force-reinstall opencv-python-headless",  # needs no libGL
    "mask2former_ops": "python -m pip install --no-build-isolation .  (in a checkout)",
    "mask2former": "python -m pip install --no-build-isolation .  (in a checkout)",
}


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: tuple[int, int]


@dataclass
class Facts:
    """What was found. A version is None where a module is missing or fails to import."""

    versions: dict[str, str | None] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)  # module -> why it does not import
    nms: str | None = None  # why torchvision's operators do not work
    torch_cuda: str | None = None  # the CUDA version torch was built with
    cuda_available: bool = False
    gpus: list[Gpu] = field(default_factory=list)
    driver: str | None = None  # version of the NVIDIA driver
    compiler: str | None = None  # first line of the C++ compiler's --version
    nvcc: str | None = None  # release, "13.0"
    detectron2_compiled: bool = False
    # device type -> ("compiled" or "pytorch", file or None, why)
    backends: dict[str, tuple[str, Path | None, str]] = field(default_factory=dict)


# --- finding out --------------------------------------------------------------------------------


def output_of(*command: str) -> str | None:
    """What a command prints, or None if it is not there or fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def import_module(facts: Facts, name: str) -> object | None:
    """Import a module and note its version, or why it cannot be imported."""
    facts.versions.setdefault(name, None)
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a broken extension raises anything from OSError to SystemError
        facts.failures[name] = f"{type(error).__name__}: {error}"
        return None
    version = getattr(module, "__version__", None)
    if version is None:
        try:
            version = metadata.version(DISTRIBUTIONS[name])
        except metadata.PackageNotFoundError:
            version = f"not installed, found in {next(iter(module.__path__))}"
    facts.versions[name] = str(version)
    return module


def examine_torch(facts: Facts, torch, torchvision) -> None:
    facts.torch_cuda = torch.version.cuda
    facts.cuda_available = torch.cuda.is_available()
    if facts.cuda_available:
        for index in range(torch.cuda.device_count()):
            capability = torch.cuda.get_device_capability(index)
            facts.gpus.append(Gpu(torch.cuda.get_device_name(index), capability))
    if torchvision is not None:
        try:
            torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
        except Exception as error:
            facts.nms = str(error).splitlines()[0]


def examine_tools(facts: Facts) -> None:
    """The compilers and the driver."""
    version = output_of(os.environ.get("CXX", "c++"), "--version")
    facts.compiler = version.splitlines()[0] if version else None
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    found = re.search(
        r"release ([\d.]+)",
        output_of(shutil.which("nvcc") or os.path.join(home, "bin", "nvcc"), "--version") or "",
    )
    facts.nvcc = found.group(1) if found else None
    query = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    facts.driver = query.splitlines()[0] if query else None


def examine() -> Facts:
    """Look at the environment of this Python."""
    facts = Facts()
    examine_tools(facts)
    modules = {name: import_module(facts, name) for name in DISTRIBUTIONS}
    if modules["torch"] is not None:
        examine_torch(facts, modules["torch"], modules["torchvision"])
    if modules["detectron2"] is not None:
        extension = util.find_spec("detectron2._C")
        facts.detectron2_compiled = extension is not None and not extension.origin.endswith(".py")
        try:
            importlib.import_module("detectron2.data")
            importlib.import_module("detectron2.modeling")
        except Exception as error:
            facts.failures["detectron2"] = f"{type(error).__name__}: {error}"
    if modules["mask2former_ops"] is not None:
        for device in ("cpu", "cuda"):
            facts.backends[device] = tuple(modules["mask2former_ops"].backend(device))
    return facts


# --- judging ------------------------------------------------------------------------------------


def release(version: str) -> tuple[int, ...]:
    """(2, 10) of "2.10.1+cu130"."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def advise_on_modules(facts: Facts) -> list[str]:
    """What to do about modules that are missing, or that do not import."""
    ours = {"mask2former", "mask2former_ops"}
    advice = []
    for name, failure in facts.failures.items():
        if name in ours and facts.failures.keys() - ours:
            continue  # a consequence of the others
        remedy = REMEDIES.get(name, f"python -m pip install --upgrade {DISTRIBUTIONS[name]}")
        advice.append(f"`import {name}` fails: {failure}\n    {remedy}")
    return advice


def advise_on_torch(facts: Facts) -> list[str]:
    torch = facts.versions.get("torch")
    advice = []
    if torch and release(torch) < OLDEST_TORCH:
        advice.append(f"torch {torch} is too old: the op needs torch 2.10 or newer\n    {PAIR}")
    if facts.nms:
        advice.append(
            f"torch {torch} and torchvision {facts.versions['torchvision']} do not fit: {facts.nms}"
            f"; each torchvision is built for one torch, from the same index\n    {PAIR}"
        )
    if torch and facts.driver and not facts.cuda_available:
        if facts.torch_cuda:
            why = f"driver {facts.driver} may be too old for torch's CUDA {facts.torch_cuda}"
        else:
            why = "this torch is built for the CPU only"
        advice.append(
            f"there is an NVIDIA driver, but torch does not see a GPU: {why}\n"
            "    update the driver, or install a torch that is built for its CUDA version"
        )
    return advice


def advise_on_op(facts: Facts) -> list[str]:
    """The op's libraries: the CPU's always, CUDA's where there is a GPU."""
    advice = []
    for device, (name, _, reason) in facts.backends.items():
        if name == "compiled" or (device == "cuda" and not facts.gpus):
            continue
        remedy = f"{REBUILD} -v -e .  (in a checkout; it shows the compiler's messages)"
        if facts.compiler is None:
            remedy = "install a C++17 compiler (apt install g++), then\n    " + remedy
        elif device == "cuda" and facts.nvcc is None:
            remedy = f"install the toolkit of CUDA {facts.torch_cuda} (nvcc), then\n    {remedy}"
        advice.append(
            f"the op runs in plain PyTorch on {device}, many times slower: {reason}\n    {remedy}"
        )
    toolkits = [version for version in (facts.nvcc, facts.torch_cuda) if version]
    if facts.gpus and len({release(version)[0] for version in toolkits}) > 1:
        advice.append(
            f"nvcc is of CUDA {facts.nvcc}, torch of CUDA {facts.torch_cuda}: the op's CUDA "
            "library has to be compiled with torch's major version\n"
            f"    install the toolkit of CUDA {facts.torch_cuda}, set CUDA_HOME to it, "
            f"then {REBUILD} -e ."
        )
    for gpu in facts.gpus:
        if gpu.capability < OLDEST_CAPABILITY:
            capability = "{}.{}".format(*gpu.capability)
            advice.append(
                f"{gpu.name} has compute capability {capability}, and the op's CUDA library is "
                "compiled for 8.0 and newer by default\n"
                f"    TORCH_CUDA_ARCH_LIST={capability} {REBUILD} -e ."
            )
    return advice


def advise(facts: Facts) -> list[str]:
    """What needs attention, each with its remedy on a line of its own; empty if all is well."""
    return advise_on_modules(facts) + advise_on_torch(facts) + advise_on_op(facts)


# --- saying so ----------------------------------------------------------------------------------


def describe(facts: Facts) -> list[tuple[str, str]]:
    """The rows of the report: (name, value)."""
    rows = [("Python", f"{platform.python_version()}  {sys.executable}")]
    for name in DISTRIBUTIONS:
        value = facts.versions.get(name)
        if value and name == "torch":
            value += f"  (CUDA {facts.torch_cuda})" if facts.torch_cuda else "  (CPU only)"
        elif value and name == "detectron2":
            value += "  with" + ("" if facts.detectron2_compiled else "out") + " compiled operators"
        rows.append((name, value or "does not import"))
    gpus = [f"{gpu.name} ({'{}.{}'.format(*gpu.capability)})" for gpu in facts.gpus]
    rows += [
        ("GPU", ", ".join(gpus) or "none"),
        ("NVIDIA driver", facts.driver or "none"),
        ("C++ compiler", facts.compiler or "none"),
        ("nvcc", facts.nvcc or "none"),
    ]
    for device, (name, library, reason) in facts.backends.items():
        rows.append((f"op on {device}", f"{name}  {library or reason}"))
    return rows


def main() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # deprecations inside packages; what matters is in the report
        facts = examine()
    rows = describe(facts)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}")
    advice = advise(facts)
    print(f"\n{len(advice)} to attend to:" if advice else "\nAll is well.")
    for line in advice:
        print(f"- {line}")
    if facts.failures:
        print("In a checkout, `make setup` installs everything into an environment of its own.")
    return 1 if advice else 0


if __name__ == "__main__":
    # Run by its path, this folder stands first on sys.path, and its modules' names are common ones.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != here]
    sys.exit(main())
