"""Which implementation serves which device, and why."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

_PACKAGE = Path(__file__).resolve().parent
NEWEST = "winograd_conv2d"  # of the operators; a library without it was built before
_SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
_REMEDY = (
    "Multi-scale deformable attention runs in plain PyTorch: the same results, many times slower; "
    "on CPUs, convolutions and post-processing are slower too. "
    "To compile it, install a C++17 compiler (for CUDA also the CUDA toolkit of PyTorch's version) "
    "and reinstall with `pip install --no-build-isolation --force-reinstall --no-deps mask2former` "
    "(in a checkout: `pip install --no-build-isolation -e .`). "
    "`python -m mask2former.doctor` checks the installation."
)


class BackendStatus(NamedTuple):
    """The implementation of the operator for one type of device."""

    name: Literal["compiled", "pytorch"]
    library: Path | None  # the file loaded
    reason: str  # one sentence, for people


def _load(device_type: str) -> BackendStatus:
    library = _PACKAGE / f"ms_deform_attn_{device_type}{_SUFFIX}"
    if not library.exists():
        record = _PACKAGE / f"build_failure_{device_type}.txt"
        why = record.read_text("utf-8").strip() if record.exists() else "it was never built"
        return BackendStatus("pytorch", None, f"{library.name} is missing: {why}")
    try:
        torch.ops.load_library(os.fspath(library))
    except OSError as error:
        why = error.__cause__ or error
        return BackendStatus("pytorch", None, f"{library.name} does not load: {why}")
    if not hasattr(torch.ops.mask2former, NEWEST):
        return BackendStatus("pytorch", None, f"{library.name} is older than the sources")
    return BackendStatus("compiled", library, f"{library.name} is loaded")


_BACKENDS = {"cpu": _load("cpu")}
if _BACKENDS["cpu"].name == "compiled":  # it holds the schema, which the CUDA library adds to
    _BACKENDS["cuda"] = _load("cuda")
else:
    _BACKENDS["cuda"] = _BACKENDS["cpu"]
_warned: set[str] = set()
_plain = ContextVar("plain", default=False)


def backend(device_type: str) -> BackendStatus:
    """The implementation in use for ``device_type``, as in ``tensor.device.type``."""
    unknown = BackendStatus("pytorch", None, f"there is no compiled operator for {device_type!r}")
    return _BACKENDS.get(device_type, unknown)


def use_compiled_on(*tensors: Tensor) -> bool:
    """Whether an operator on the CPU that has no gradient, and is not exported, takes these: in
    float32, the numbers of a row adjacent."""
    return (
        all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
        and all(t.stride(-1) == 1 for t in tensors)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and use_compiled("cpu")
    )


def vector_lanes(most: int = 16) -> int:
    """Floats in the vectors that operators on the CPU use, from now on at most ``most`` (4, 8, 16)
    if they have a choice; 0 if they are not compiled."""
    compiled = backend("cpu").name == "compiled"
    return torch.ops.mask2former.vector_lanes(most) if compiled else 0


@contextmanager
def plain() -> Iterator[None]:
    """Inside the block, in this thread, run PyTorch's own operators, the only ones in an export."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


@torch.compiler.assume_constant_result  # torch.compile calls it while tracing
def use_compiled(device_type: str) -> bool:
    """Whether to call the compiled operator; warns, the first time, where there is none."""
    if _plain.get():
        return False
    status = backend(device_type)
    if status.name == "pytorch" and device_type not in _warned:
        _warned.add(device_type)
        warnings.warn(f"mask2former_ops: {status.reason}\n{_REMEDY}", stacklevel=3)
    return status.name == "compiled"
