"""Loading weights."""

import pickle

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from ..errors import ConfigError


def load_weights(model: nn.Module, path: str) -> None:
    """Load a checkpoint of this model, or weights of its backbone, into ``model``.

    The names that are missing or left over are logged.

    Args:
        path: a file, or an address that Detectron2 can fetch.

    Raises:
        ConfigError: the file is missing, cannot be fetched or cannot be read.
    """
    try:
        DetectionCheckpointer(model).load(path)
    except (OSError, AssertionError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigError(
            f"MODEL.WEIGHTS {path} cannot be loaded ({error}); give the path of a checkpoint, or "
            "MODEL.WEIGHTS '' to start from random weights"
        ) from error
