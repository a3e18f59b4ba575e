"""Data sets, mappers and loaders."""

from .build import build_test_loader, build_train_loader, build_training_mapper
from .catalog import register_catalog, register_dataset
from .dataset_mapper import MAPPERS, PictureMapper

__all__ = [
    "MAPPERS",
    "PictureMapper",
    "build_test_loader",
    "build_train_loader",
    "build_training_mapper",
    "register_catalog",
    "register_dataset",
]
