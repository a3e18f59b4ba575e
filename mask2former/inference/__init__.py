"""Pictures in, segmentations and drawings out."""

from .prediction import Instances, Panoptic, Prediction, Segment, Semantic
from .predictor import TASKS, Options, Predictor
from .visualization import (
    contact_sheet,
    displayable,
    draw_panoptic,
    draw_prediction,
    drawing_metadata,
)

__all__ = [
    "TASKS",
    "Instances",
    "Options",
    "Panoptic",
    "Prediction",
    "Predictor",
    "Segment",
    "Semantic",
    "contact_sheet",
    "displayable",
    "draw_panoptic",
    "draw_prediction",
    "drawing_metadata",
]
