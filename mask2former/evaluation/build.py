"""Which evaluators a data set gets."""

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
)

from ..errors import ConfigError
from .panoptic import PanopticEvaluator


def build_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str) -> DatasetEvaluator:
    """The evaluators of a data set's type, as far as the config has the model predict for them.

    ``coco_panoptic_seg``: PQ; with instances_json also AP, with semantic label maps also mIoU.
    ``coco``: AP. ``sem_seg``: mIoU.

    Raises:
        ConfigError: the type is unknown, or the config switches all that applies off.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type")
    if kind not in ("coco_panoptic_seg", "coco", "sem_seg"):
        raise ConfigError(
            f"data set {dataset_name} has evaluator_type {kind!r}; coco_panoptic_seg, coco and "
            "sem_seg can be evaluated"
        )
    test = cfg.MODEL.MASK_FORMER.TEST
    evaluators: list[DatasetEvaluator] = []
    if kind == "coco_panoptic_seg" and test.PANOPTIC_ON:
        evaluators.append(PanopticEvaluator(dataset_name=dataset_name, output_dir=output_dir))
    if (kind == "coco" or metadata.get("json_file")) and test.INSTANCE_ON:
        evaluators.append(instance_evaluator(dataset_name, output_dir))
    if (kind == "sem_seg" or metadata.get("sem_seg_root")) and test.SEMANTIC_ON:
        evaluators.append(SemSegEvaluator(dataset_name, output_dir=output_dir))
    if not evaluators:
        raise ConfigError(
            f"data set {dataset_name} ({kind}) cannot be evaluated with what "
            "MODEL.MASK_FORMER.TEST switches on: set PANOPTIC_ON, INSTANCE_ON or SEMANTIC_ON"
        )
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def instance_evaluator(dataset_name: str, output_dir: str) -> COCOEvaluator:
    """Detectron2's evaluator of boxes and masks."""
    return COCOEvaluator(
        dataset_name,
        tasks=("bbox", "segm"),
        output_dir=output_dir,
        use_fast_impl=False,  # the fast one is unofficial and needs Detectron2's C++ library
    )
