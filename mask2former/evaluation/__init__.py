"""Evaluators, and which of them a data set gets."""

from .build import build_evaluator
from .inference import inference_on_dataset
from .instance import average_precision
from .instance_evaluator import InstanceEvaluator
from .panoptic import panoptic_quality
from .panoptic_evaluator import PanopticEvaluator
from .semantic_evaluator import SemanticEvaluator

__all__ = [
    "InstanceEvaluator",
    "PanopticEvaluator",
    "SemanticEvaluator",
    "average_precision",
    "build_evaluator",
    "inference_on_dataset",
    "panoptic_quality",
]
