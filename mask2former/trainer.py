"""Detectron2's DefaultTrainer with Mask2Former's loaders, optimizer, schedule and evaluators."""

import argparse
import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, default_setup
from detectron2.evaluation import DatasetEvaluator, print_csv_format, verify_results
from detectron2.modeling import build_model
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.utils.data import DataLoader

from .checkpoint import find_model, load_weights
from .config import adapt_to_machine, load_config
from .data import (
    build_test_loader,
    build_train_loader,
    build_training_mapper,
    check_datasets,
    class_difference,
    class_names,
)
from .errors import ConfigError
from .evaluation import build_evaluator, inference_on_dataset
from .modeling import SemanticSegmentorWithTTA  # importing the package registers the model
from .modeling.fusion import prepare_for_inference
from .modeling.meta_arch import thing_ids_of
from .solver import build_optimizer

logger = logging.getLogger(__name__)


class Remark(list):
    """What a checkpoint says of the classes: for fine-tuning, and for inference without data."""

    def state_dict(self) -> list:
        return list(self)

    def load_state_dict(self, remark: list) -> None:
        """Nothing: the data set decides."""


class Trainer(DefaultTrainer):
    """Trains and evaluates what a configuration describes."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        for name in cfg.DATASETS.TEST:
            if difference := class_difference(cfg.DATASETS.TRAIN[0], name):
                logger.warning("%s: one is scored as the other", difference)
        if names := class_names(cfg.DATASETS.TRAIN[0]):
            self.checkpointer.add_checkpointable("class_names", Remark(names))
            self.checkpointer.add_checkpointable("thing_ids", Remark(thing_ids_of(cfg)))

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model; unlike Detectron2's, without printing its hundreds of lines."""
        model = build_model(cfg)
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        logger.info("%s with %.2f million parameters", type(model).__name__, millions)
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        return build_evaluator(cfg, dataset_name, folder, boundary=cfg.TEST.BOUNDARY)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None = None,
    ) -> dict[str, Any]:
        """As Detectron2's, with ``TEST.IMS_PER_BATCH`` pictures at a time, and the times kept."""
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        results = {}
        for i, name in enumerate(cfg.DATASETS.TEST):
            folder = os.path.join(cfg.OUTPUT_DIR, "inference", name)
            results[name] = inference_on_dataset(
                model,
                cls.build_test_loader(cfg, name),
                evaluators[i] if evaluators else cls.build_evaluator(cfg, name),
                ims_per_batch=cfg.TEST.IMS_PER_BATCH,
                output_dir=None if evaluators else folder,
            )
            if comm.is_main_process():
                logger.info("Evaluation results for %s in csv format:", name)
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(
        cls, cfg: CfgNode, optimizer: torch.optim.Optimizer
    ) -> torch.optim.lr_scheduler.LRScheduler:
        return build_lr_scheduler(cfg, optimizer)

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint of ``OUTPUT_DIR``, or start from ``MODEL.WEIGHTS``."""
        if resume and self.checkpointer.has_checkpoint():
            super().resume_or_load(resume=True)
        elif self.cfg.MODEL.WEIGHTS:
            published = find_model(self.cfg.MODEL.WEIGHTS)
            load_weights(
                self.checkpointer.model,
                self.cfg.MODEL.WEIGHTS,
                class_names=class_names(self.cfg.DATASETS.TRAIN[0]),
                source_class_names=published and class_names(published.dataset),
            )


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a tool's arguments; the log, the seed and ``OUTPUT_DIR`` are set up.

    Args:
        args: ``config_file``, ``opts`` (``[KEY, VALUE, ...]``) and what Detectron2's
            ``default_setup`` logs.
    """
    cfg = load_config(args.config_file, args.opts)
    changes = adapt_to_machine(cfg)
    cfg.freeze()
    # Before anything of an earlier run in OUTPUT_DIR is overwritten.
    resumes = getattr(args, "resume", False)
    check_names(cfg, training=not getattr(args, "eval_only", False), weights=not resumes)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="mask2former")
    for change in changes:
        logger.warning(change)
    return cfg


def check_names(cfg: CfgNode, *, training: bool, weights: bool) -> None:
    """Whether what the config names exists: data sets, and if they count, mapper and weights.

    Raises:
        ConfigError: names what does not.
    """
    if training:
        build_training_mapper(cfg)
    check_datasets([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    path = cfg.MODEL.WEIGHTS
    if not weights or not path:
        return
    find_model(path)  # an unknown zoo:// name
    if "://" not in path and not os.path.isfile(path):
        raise ConfigError(
            f"MODEL.WEIGHTS {path} does not exist; give the path of a checkpoint, or '' to "
            "start from random weights"
        )


def check_num_gpus(requested: int | None) -> int:
    """The number of GPUs to use: as requested, or all there are (0: the CPU).

    Raises:
        ConfigError: more are requested than torch sees.
    """
    available = torch.cuda.device_count()
    if requested is None:
        return available
    if requested > available:
        raise ConfigError(
            f"--num-gpus {requested}, but torch {torch.__version__} sees {available} GPUs; leave "
            "--num-gpus out to use what is there (the CPU, without a GPU), and run `python -m "
            "mask2former.doctor` to see why a GPU is not seen"
        )
    return requested


def evaluate_checkpoint(
    config_file: str,
    weights: str,
    opts: Sequence[str],
    output_dir: str,
    *,
    boundary: bool = False,
) -> dict[str, Any]:
    """Evaluate weights on ``DATASETS.TEST``; Detectron2's results dict.

    Args:
        boundary: boundary metrics too (``TEST.BOUNDARY``).
    """
    opts = [
        *opts,
        *(["TEST.BOUNDARY", "True"] if boundary else []),
        "MODEL.WEIGHTS",
        weights,
        "OUTPUT_DIR",
        output_dir,
    ]
    cfg = setup(argparse.Namespace(config_file=config_file, opts=opts, eval_only=True))
    return evaluate(cfg)


def evaluate(cfg: CfgNode) -> dict[str, Any]:
    """Evaluate ``MODEL.WEIGHTS`` on ``DATASETS.TEST``; Detectron2's results dict.

    Raises:
        ConfigError: there are no weights or no data set to evaluate.
    """
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError("there is nothing to evaluate: set MODEL.WEIGHTS to a checkpoint")
    if not cfg.DATASETS.TEST:
        raise ConfigError("there is nothing to evaluate on: DATASETS.TEST is empty")
    model = Trainer.build_model(cfg)
    augmented = SemanticSegmentorWithTTA(cfg, model) if cfg.TEST.AUG.ENABLED else None
    names = class_names(cfg.DATASETS.TEST[0])
    load_weights(model, cfg.MODEL.WEIGHTS, class_names=names, complete=True)
    prepare_for_inference(model, cfg.TEST.COMPILE)
    results = Trainer.test(cfg, model)
    if augmented is not None:
        results.update(test_with_augmentation(cfg, augmented))
    if comm.is_main_process():
        verify_results(cfg, results)  # with TEST.EXPECTED_RESULTS
    return results


def test_with_augmentation(cfg: CfgNode, augmented: SemanticSegmentorWithTTA) -> dict[str, Any]:
    """Semantic segmentation averaged over ``TEST.AUG``; results under ``sem_seg_TTA``."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = False
    folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
    evaluators = [
        build_evaluator(cfg, name, os.path.join(folder, name)) for name in cfg.DATASETS.TEST
    ]
    results = Trainer.test(cfg, augmented, evaluators)
    return {f"{name}_TTA": value for name, value in results.items()}
