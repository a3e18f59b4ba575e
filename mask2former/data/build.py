"""Loaders, and what is checked before the first iteration."""

import difflib
import os
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
from .dataset_mapper import MAPPERS, PictureMapper, TrainingMapper

# What a record may name on disk.
FILE_KEYS = ("file_name", "pan_seg_file_name", "sem_seg_file_name")


def build_train_loader(cfg: CfgNode) -> DataLoader:
    """The endless training loader of ``DATASETS.TRAIN``, with the mapper the config names.

    Raises:
        ConfigError: an unknown data set or mapper.
        DatasetError: see :func:`check_records`.
    """
    mapper = build_training_mapper(cfg)
    if not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN names no data set to train on")
    records = load_records(
        cfg, cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    return build_detection_train_loader(cfg, mapper=mapper, dataset=records)


def build_test_loader(cfg: CfgNode, name: str) -> DataLoader:
    """One pass over a data set, one picture at a time.

    Raises:
        ConfigError: an unknown data set.
        DatasetError: see :func:`check_records`.
    """
    return build_detection_test_loader(
        load_records(cfg, [name], filter_empty=False),
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


def load_records(cfg: CfgNode, names: Sequence[str], *, filter_empty: bool) -> list[dict[str, Any]]:
    """The records of registered data sets, checked.

    Args:
        filter_empty: leave out pictures whose annotations are all crowds, or none.
    """
    check_datasets(names)
    for name in names:
        check_builtin(name)
    ignored = {name: MetadataCatalog.get(name).get("ignore_label") for name in names}
    if len(set(ignored.values())) > 1:
        raise ConfigError(
            f"the data sets have different labels for ignored pixels ({ignored}) and cannot be "
            "trained on together; give them one ignore_value"
        )
    records = get_detection_dataset_dicts(names, filter_empty=filter_empty)
    check_records(", ".join(names), records, num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    return records


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


def check_records(name: str, records: list[dict[str, Any]], *, num_classes: int) -> None:
    """What is cheap to check before hours are spent: files exist, classes fit the model.

    Raises:
        DatasetError: names the first files that are missing, or a class id out of range.
    """
    missing = [
        record[key]
        for record in records
        for key in FILE_KEYS
        if key in record and not os.path.isfile(record[key])
    ]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DatasetError(
            f"data set {name}: {len(missing)} of its files do not exist: {shown}; check the "
            "folders it was registered with, or remove these entries from the annotations"
        )
    for record in records:
        for item in (*record.get("annotations", ()), *record.get("segments_info", ())):
            if not 0 <= item["category_id"] < num_classes:
                raise DatasetError(
                    f"data set {name}, {record['file_name']}: class {item['category_id']} (counted "
                    f"from 0) does not fit MODEL.SEM_SEG_HEAD.NUM_CLASSES {num_classes}; set that "
                    "to the number of classes of the data set"
                )
