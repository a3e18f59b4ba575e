"""Reading files of weights without running what they contain."""

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from torch import Tensor

from ..errors import ConfigError
from . import zoo

_LEGACY_TORCH = 0x1950A86A20F9469CFC6C  # the first object of a file of torch before 1.6


@dataclass(frozen=True)
class Checkpoint:
    """Weights, and what their file says about them.

    Attributes:
        state_dict: tensors by name.
        author: ``__author__``: "Caffe2" marks Detectron2's oldest names.
        class_names: of the class head, in its order, if the file has them.
        thing_ids: indices of those that are things, likewise.
    """

    state_dict: dict[str, Tensor]
    author: str = ""
    class_names: list[str] | None = None
    thing_ids: list[int] | None = None


class _DType:
    """Stands for ``numpy.dtype``: whose own state, if forged, makes numpy follow the bytes of an
    array as addresses of objects. This one knows plain numbers only.
    """

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch(r"[biufc]\d{1,2}", code):
            raise pickle.UnpicklingError(f"it holds an array of {code!r}, not of numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for ``numpy.ndarray`` until its state is there."""

    def __init__(self, *_: Any) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, data = state
        self.value = _from_buffer(data, dtype, shape, "F" if is_fortran else "C")


def _from_buffer(
    data: bytes | str,
    dtype: _DType,
    shape: tuple[int, ...] = (),
    order: str = "C",
    axis_order: tuple[int, ...] | None = None,
) -> np.ndarray:
    if not isinstance(dtype, _DType):
        raise pickle.UnpicklingError("it holds an array without a type")
    if isinstance(data, str):  # how Python 2 wrote bytes
        data = data.encode("latin1")
    array = np.frombuffer(data, dtype.dtype)
    if axis_order is not None:  # numpy 2 writes transposed arrays so, with the order "K"
        return array.reshape(shape).transpose(axis_order)
    return array.reshape(shape, order=order)


# What a pickle of numpy arrays names, and what it gets instead: nothing of numpy's own.
_STAND_INS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): lambda text, *_: text.encode("latin1"),
    **{(module, "bytes"): lambda: b"" for module in ("__builtin__", "builtins")},  # protocol 2
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Array,
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")  # numpy 1 and 2
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", lambda dtype, data: _from_buffer(data, dtype)),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it would run {module}.{name}")
        return _STAND_INS[module, name]


def read_state_dict(path: str) -> Checkpoint:
    """Read a pickle of numpy arrays, a file of torch, or one of safetensors; its content decides.

    Args:
        path: a file, an address that Detectron2 can fetch, or a ``zoo://`` name.

    Raises:
        ConfigError: the file is missing, damaged or of no such kind, or would run code.
    """
    path = str(path)
    if path.startswith(zoo.PREFIX):
        path = zoo.fetch(zoo.find_model(path))
    try:
        with open(PathManager.get_local_path(path), "rb") as file:
            return _to_checkpoint(_read(file))
    except FileNotFoundError as error:
        raise ConfigError(
            f"checkpoint {path} does not exist; give the path of one, or a zoo:// name"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, ImportError, AssertionError) as error:
        raise ConfigError(
            f"{path} cannot be loaded ({_reason(error)}); give the path of a checkpoint"
        ) from error
    except Exception as error:  # damaged bytes raise whatever they happen to
        raise ConfigError(
            f"{path} is refused or damaged ({_reason(error)}); give a file of tensors or numpy "
            "arrays by name: .safetensors, .pth with a state_dict, or .pkl as published"
        ) from error


def _reason(error: Exception) -> str:
    """One line. Torch's own text is left out: it advises to load the file all the same."""
    text = str(error).strip()
    if refused := re.search(r"\bGLOBAL ([\w.]+)", text):
        return f"it would run {refused[1]}"
    if text.startswith("Weights only load failed"):
        detail = re.search(r"WeightsUnpickler error: (.+)", text)
        return detail[1].strip() if detail else "it holds more than tensors"
    return text.split("\n")[0] or type(error).__name__


def _read(file: BinaryIO) -> Any:
    start = file.read(9)
    file.seek(0)
    if not start:
        raise EOFError("the file is empty")
    if zipfile.is_zipfile(file):
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)
    file.seek(0)
    if start[8:] == b"{":  # the length of the header, then the header
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(file.read())
        except SafetensorError as error:
            raise ValueError(error) from error
    first = _RestrictedUnpickler(file, encoding="latin1").load()
    if isinstance(first, int) and first == _LEGACY_TORCH:
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)
    return first


def _to_checkpoint(content: Any) -> Checkpoint:
    weights = content
    # Of Detectron2 and Swin; of Lightning and mmcv; of Detectron.
    for key in ("model", "state_dict", "blobs"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            weights = content[key]
            break
    if not isinstance(weights, Mapping):
        raise TypeError(f"it holds a {type(weights).__name__}, not tensors by name")
    tensors = {name: _to_tensor(name, value) for name, value in weights.items()}
    if not tensors:
        raise ValueError("it holds no tensor")
    class_names, thing_ids = content.get("class_names"), content.get("thing_ids")
    if thing_ids is not None and not set(thing_ids) <= set(range(len(class_names or ()))):
        raise ValueError(f"its thing_ids, {thing_ids}, are not all indices of its class_names")
    return Checkpoint(
        state_dict=tensors,
        author=str(content.get("__author__", "")),
        class_names=list(map(str, class_names)) if class_names else None,
        thing_ids=None if thing_ids is None else list(map(int, thing_ids)),
    )


def _to_tensor(name: Any, value: Any) -> Tensor:
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is no name")
    if isinstance(value, _Array):
        value = value.value
    if isinstance(value, np.ndarray):
        # Copied: arrays of a pickle may be read-only.
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}, not a tensor")
    return value
