"""Pictures in, segmentations and drawings out."""

from .predictor import Predictor
from .visualization import contact_sheet, displayable, draw_prediction

__all__ = ["Predictor", "contact_sheet", "displayable", "draw_prediction"]
