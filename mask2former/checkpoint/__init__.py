"""Weights: reading and loading them, the published ones by name, and other layouts."""

from .loading import LoadReport, load_weights
from .reading import Checkpoint, read_state_dict
from .zoo import find_model, list_models

__all__ = [
    "Checkpoint",
    "LoadReport",
    "find_model",
    "list_models",
    "load_weights",
    "read_state_dict",
]
