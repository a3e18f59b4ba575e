"""Mask2Former for Detectron2.

Importing this package registers the model with Detectron2; ``add_maskformer2_config(cfg)`` adds
its configuration keys.
"""

import warnings
from pathlib import Path

try:
    with warnings.catch_warnings():
        # fvcore calls it when it is imported, and torch advises against it.
        warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)
        from . import modeling
        from .config import add_maskformer2_config, get_maskformer2_cfg, load_config
except ImportError as error:
    doctor = Path(__file__).with_name("doctor.py")
    raise ImportError(f"{error}; to see what is missing, run: python {doctor}") from error
from .errors import ConfigError, DatasetError, UserError
from .inference import Prediction, Predictor

__version__ = "0.1.0"
__all__ = [
    "ConfigError",
    "DatasetError",
    "Prediction",
    "Predictor",
    "UserError",
    "add_maskformer2_config",
    "get_maskformer2_cfg",
    "load_config",
    "modeling",
]
