"""Reading files of weights without running what they contain."""

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from torch import Tensor

from ..errors import ConfigError

# What a pickle of numpy arrays may name. None of these runs code of the file's choosing.
_ALLOWED = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),  # how Python 2 wrote bytes
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        )
    ),
}
_LEGACY_TORCH = 0x1950A86A20F9469CFC6C  # the first object of a file of torch before 1.6


@dataclass(frozen=True)
class Checkpoint:
    """Weights, and what their file says about them.

    Attributes:
        state_dict: tensors by name.
        author: ``__author__``: "Caffe2" marks Detectron2's oldest names.
        class_names: of the class head, in its order, if the file has them.
    """

    state_dict: dict[str, Tensor]
    author: str = ""
    class_names: list[str] | None = None


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it would run {module}.{name}")
        return super().find_class(module, name)


def read_state_dict(path: str) -> Checkpoint:
    """Read a pickle of numpy arrays, a file of torch, or one of safetensors; its content decides.

    Args:
        path: a file, or an address that Detectron2 can fetch.

    Raises:
        ConfigError: the file is missing, damaged or of no such kind, or would run code.
    """
    try:
        local = Path(PathManager.get_local_path(str(path)))
        with open(local, "rb") as file:
            content = _read(file)
        return _to_checkpoint(content)
    except (pickle.UnpicklingError, AttributeError, IndexError, KeyError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"{path} is refused or damaged ({reason}); give a file of tensors or numpy arrays by "
            "name: .safetensors, .pth with a state_dict, or .pkl as published"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, ImportError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ConfigError(
            f"{path} cannot be loaded ({reason}); give the path of a checkpoint, or "
            "MODEL.WEIGHTS '' to start from random weights"
        ) from error


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
    for key in ("model", "state_dict"):  # of Detectron2 and Swin; of Lightning and mmcv
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            weights = content[key]
            break
    if not isinstance(weights, Mapping):
        raise TypeError(f"it holds a {type(weights).__name__}, not tensors by name")
    tensors = {name: _to_tensor(name, value) for name, value in weights.items()}
    if not tensors:
        raise ValueError("it holds no tensor")
    class_names = content.get("class_names")
    return Checkpoint(
        state_dict=tensors,
        author=str(content.get("__author__", "")),
        class_names=list(map(str, class_names)) if class_names else None,
    )


def _to_tensor(name: Any, value: Any) -> Tensor:
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is no name")
    if isinstance(value, np.ndarray | np.generic):
        # Copied: arrays of a pickle may be read-only.
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}, not a tensor")
    return value
