"""Evaluators, and which of them a data set gets."""

from .build import build_evaluator
from .panoptic import PanopticEvaluator, panoptic_quality

__all__ = ["PanopticEvaluator", "build_evaluator", "panoptic_quality"]
