"""Mask2Former for Detectron2.

Importing this package registers the model and the builtin data sets with Detectron2;
``add_maskformer2_config(cfg)`` adds its configuration keys.
"""

import importlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .inference import Prediction, Predictor

try:
    with warnings.catch_warnings():
        # fvcore calls it when it is imported, and torch advises against it.
        warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)
        from . import data, modeling
        from .config import add_maskformer2_config, get_maskformer2_cfg, load_config
except ImportError as error:
    doctor = Path(__file__).with_name("doctor.py")
    raise ImportError(f"{error}; to see what is missing, run: python {doctor}") from error
from .errors import ConfigError, DatasetError, UserError

__version__ = "0.1.0"
__all__ = [
    "ConfigError",
    "DatasetError",
    "Prediction",
    "Predictor",
    "UserError",
    "add_maskformer2_config",
    "data",
    "get_maskformer2_cfg",
    "load_config",
    "modeling",
]


def __getattr__(name: str) -> Any:
    """Import what draws and writes results, and all that it needs, once it is used."""
    if name in ("checkpoint", "evaluation", "inference"):
        return importlib.import_module(f"{__name__}.{name}")
    if name in ("Prediction", "Predictor"):
        return getattr(importlib.import_module(f"{__name__}.inference"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "checkpoint", "evaluation", "inference"})
