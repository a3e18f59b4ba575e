"""Loaders, and what is checked before the first iteration."""

import difflib
import itertools
import logging
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from torch.utils.data import DataLoader

from ..errors import ConfigError, DatasetError
from .builtin import check_builtin
from .catalog import class_names
from .check import format_findings, record_findings
from .dataset_mapper import MAPPERS, PictureMapper, TrainingMapper

logger = logging.getLogger(__name__)


def build_train_loader(cfg: CfgNode) -> DataLoader:
    """The endless training loader of ``DATASETS.TRAIN``, with the mapper the config names.

    Raises:
        ConfigError: an unknown data set or mapper.
        DatasetError: see :func:`load_records`.
    """
    mapper = build_training_mapper(cfg)
    if not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN names no data set to train on")
    records = load_records(cfg, cfg.DATASETS.TRAIN, training=True)
    return build_detection_train_loader(cfg, mapper=mapper, dataset=records)


def build_test_loader(cfg: CfgNode, name: str) -> DataLoader:
    """One pass over a data set, one picture at a time.

    Raises:
        ConfigError: an unknown data set.
        DatasetError: see :func:`load_records`.
    """
    return build_detection_test_loader(
        load_records(cfg, [name], training=False),
        mapper=PictureMapper(cfg),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def build_training_mapper(cfg: CfgNode) -> TrainingMapper:
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name not in MAPPERS:
        raise ConfigError(
            f"INPUT.DATASET_MAPPER_NAME is {name!r}; it must be one of {list(MAPPERS)}"
        )
    return MAPPERS[name](cfg)


def load_records(cfg: CfgNode, names: Sequence[str], *, training: bool) -> list[dict[str, Any]]:
    """The records of registered data sets, checked as far as it is cheap.

    Args:
        training: leave out what ``DATALOADER.FILTER_EMPTY_ANNOTATIONS`` says; log warnings.

    Raises:
        ConfigError: an unknown data set, or several that do not go together.
        DatasetError: files are missing, or classes do not fit the model; names each.
    """
    check_datasets(names)
    for name in names:
        check_builtin(name)
    for name in names[1:]:
        if difference := class_difference(names[0], name):
            raise ConfigError(
                f"{difference}: they cannot be trained on together; list the same classes in the "
                "same order"
            )
    ignored = {name: MetadataCatalog.get(name).get("ignore_label") for name in names}
    if len(set(ignored.values())) > 1:
        raise ConfigError(
            f"the data sets have different labels for ignored pixels ({ignored}) and cannot be "
            "trained on together; give them one ignore_value"
        )
    filter_empty = training and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    records = get_detection_dataset_dicts(names, filter_empty=filter_empty)
    findings = record_findings(names, records, cfg)
    if errors := [finding for finding in findings if finding.severity == "error"]:
        raise DatasetError(
            f"data set {', '.join(names)} cannot be used:\n{format_findings(errors)}\n"
            "tools/check_dataset.py CONFIG looks at everything"
        )
    if training and findings:
        logger.warning("data set %s\n%s", ", ".join(names), format_findings(findings))
    return records


def class_difference(name: str, other: str) -> str | None:
    """The first class that is another one in the other data set, in words; None if none is."""
    classes, others = class_names(name), class_names(other)
    if classes is None or others is None or classes == others:
        return None
    pairs = itertools.zip_longest(classes, others, fillvalue="none")
    index, pair = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    return f"class {index} is {pair[0]!r} in data set {name} and {pair[1]!r} in {other}"


def check_datasets(names: Sequence[str]) -> None:
    """
    Raises:
        ConfigError: one of the names is not registered.
    """
    for name in names:
        if name not in DatasetCatalog:
            close = difflib.get_close_matches(name, DatasetCatalog.list(), n=1)
            hint = f"did you mean {close[0]}? Otherwise " if close else ""
            raise ConfigError(
                f"data set {name} (DATASETS.TRAIN or DATASETS.TEST) is not registered; {hint}"
                "describe it in a catalog and name that in DATASETS.CATALOG"
            )
