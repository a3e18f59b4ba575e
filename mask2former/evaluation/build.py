"""Which evaluators a data set gets."""

import inspect

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
)
from pycocotools.coco import COCO

from ..data.picture import read_label_map
from ..errors import ConfigError, DatasetError
from .instance import number_annotations
from .panoptic import PanopticEvaluator


def build_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str) -> DatasetEvaluator:
    """The evaluators of a data set's type, as far as the config has the model predict for them.

    ``coco_panoptic_seg``: PQ; with instances_json also AP, with semantic label maps also mIoU.
    ``coco``: AP. ``sem_seg``: mIoU.

    Raises:
        ConfigError: the type is unknown, or the config switches all that applies off.
        DatasetError: the instances json does not fit the data set's classes.
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
        evaluators.append(semantic_evaluator(dataset_name, output_dir))
    if not evaluators:
        raise ConfigError(
            f"data set {dataset_name} ({kind}) cannot be evaluated with what "
            "MODEL.MASK_FORMER.TEST switches on: set PANOPTIC_ON, INSTANCE_ON or SEMANTIC_ON"
        )
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def instance_evaluator(dataset_name: str, output_dir: str) -> COCOEvaluator:
    """Detectron2's evaluator of boxes and masks.

    Raises:
        DatasetError: the instances json has other categories than the data set has thing classes.
    """
    evaluator = COCOEvaluator(
        dataset_name,
        tasks=("bbox", "segm"),
        output_dir=output_dir,
        use_fast_impl=False,  # the fast one is unofficial and needs Detectron2's C++ library
    )
    truth: COCO = evaluator._coco_api
    metadata = MetadataCatalog.get(dataset_name)
    expected = set(metadata.get("thing_dataset_id_to_contiguous_id", truth.cats))
    if differing := sorted(expected ^ set(truth.cats)):
        raise DatasetError(
            f"{metadata.json_file} and the thing classes of data set {dataset_name} differ in the "
            f"category ids {differing}; the instances json must have the same things, and no stuff"
        )
    for annotation in truth.dataset.get("annotations", ()):
        annotation.setdefault("iscrowd", 0)
    number_annotations(truth)
    return evaluator


def semantic_evaluator(dataset_name: str, output_dir: str) -> SemSegEvaluator:
    """Detectron2's evaluator of label maps."""
    options = {}
    if "sem_seg_loading_fn" in inspect.signature(SemSegEvaluator).parameters:
        # Detectron2 0.6 reads the file itself; the function that newer ones default to asks numpy
        # for an array without a copy, which numpy 2 refuses.
        options["sem_seg_loading_fn"] = lambda path, dtype: read_label_map(path).astype(dtype)
    return SemSegEvaluator(dataset_name, output_dir=output_dir, **options)
