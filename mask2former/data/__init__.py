"""Data sets, mappers and loaders. Importing this package registers the builtin data sets."""

from .build import (
    build_test_loader,
    build_train_loader,
    build_training_mapper,
    check_datasets,
    class_difference,
)
from .builtin import register_builtin
from .catalog import class_names, register_catalog, register_dataset
from .dataset_mapper import MAPPERS, PictureMapper

__all__ = [
    "MAPPERS",
    "PictureMapper",
    "build_test_loader",
    "build_train_loader",
    "build_training_mapper",
    "check_datasets",
    "class_difference",
    "class_names",
    "register_builtin",
    "register_catalog",
    "register_dataset",
]
