"""Which evaluators a data set gets."""

from collections.abc import Callable
from functools import partial

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from ..errors import ConfigError
from . import cityscapes
from .instance_evaluator import InstanceEvaluator
from .panoptic_evaluator import PanopticEvaluator
from .semantic_evaluator import SemanticEvaluator

# Which segmentations are scored, of a data set of which evaluator_type.
TASKS = {
    "coco": ("instance",),
    "sem_seg": ("semantic",),
    "coco_panoptic_seg": ("panoptic", "instance", "semantic"),
    "ade20k_panoptic_seg": ("panoptic", "instance", "semantic"),
    "mapillary_vistas_panoptic_seg": ("panoptic", "instance", "semantic"),
    "cityscapes_instance": ("instance",),
    "cityscapes_sem_seg": ("semantic",),
    "cityscapes_panoptic_seg": ("panoptic", "instance", "semantic"),
}


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str, *, boundary: bool = False
) -> DatasetEvaluator:
    """The evaluators of a data set's type, as far as the config has the model predict for them.

    Args:
        output_dir: where predictions are kept.
        boundary: boundary PQ, AP and IoU, too; Cityscapes' own scripts do not have them.

    Raises:
        ConfigError: the type is unknown, or the config switches all that applies off.
        DatasetError: the instances json does not fit the data set's classes.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in TASKS:
        raise ConfigError(
            f"data set {dataset_name} has evaluator_type {kind!r}; it must be one of {list(TASKS)}"
        )
    test = cfg.MODEL.MASK_FORMER.TEST
    switches = {
        "panoptic": test.PANOPTIC_ON,
        "instance": test.INSTANCE_ON,
        "semantic": test.SEMANTIC_ON,
    }
    options = {"dataset_name": dataset_name, "output_dir": output_dir, "boundary": boundary}
    makers: dict[str, Callable[[], DatasetEvaluator]] = {
        "panoptic": partial(PanopticEvaluator, **options),
        "instance": partial(InstanceEvaluator, **options),
        "semantic": partial(SemanticEvaluator, **options),
    }
    if kind.startswith("cityscapes"):
        makers["instance"] = partial(cityscapes.InstanceEvaluator, dataset_name)
        makers["semantic"] = partial(cityscapes.SemanticEvaluator, dataset_name)
    evaluators = [makers[task]() for task in TASKS[kind] if switches[task]]
    if not evaluators:
        raise ConfigError(
            f"data set {dataset_name} ({kind}) cannot be evaluated with what "
            "MODEL.MASK_FORMER.TEST switches on: set PANOPTIC_ON, INSTANCE_ON or SEMANTIC_ON"
        )
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)
