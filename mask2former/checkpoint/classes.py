"""The classes of a trained model where its data set is not at hand: the checkpoint knows them."""

import hashlib
import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..config import register_data_sets
from ..data import class_names
from ..errors import DatasetError
from .reading import read_state_dict


def know_classes(cfg: CfgNode) -> None:
    """Register the data sets that name a model's classes; or take the classes of its checkpoint.

    A checkpoint of this project's trainer says which classes there are, and which are things; its
    data set (then named by ``DATASETS.TEST``) has nothing but these.

    Raises:
        DatasetError: a data set is not there, and the checkpoint does not say either.
    """
    missing = None
    try:
        register_data_sets(cfg)
    except DatasetError as error:
        missing = error
    names = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)
    if missing is None and names and class_names(names[0]):
        return
    checkpoint = read_state_dict(cfg.MODEL.WEIGHTS) if cfg.MODEL.WEIGHTS else None
    classes = (checkpoint and checkpoint.class_names) or []
    thing_ids = checkpoint and checkpoint.thing_ids
    if thing_ids is None and missing is None:
        thing_ids = list(range(len(classes)))  # as of a data set that does not tell
    if classes and thing_ids is not None:
        cfg.DATASETS.TEST = (_register(classes, thing_ids),)
    elif missing is not None:
        raise DatasetError(
            f"{missing}; it names the classes, which {os.fspath(cfg.MODEL.WEIGHTS) or 'a model'} "
            "does not (DATASETS.CATALOG '' numbers them, and counts all as things)"
        ) from missing


def _register(names: list[str], thing_ids: list[int]) -> str:
    """A data set of classes alone; its name."""
    digest = hashlib.sha256(repr((names, thing_ids)).encode()).hexdigest()[:12]
    name = f"classes of a checkpoint, {digest}"
    MetadataCatalog.get(name).set(
        thing_classes=[names[i] for i in thing_ids],
        stuff_classes=names,
        thing_dataset_id_to_contiguous_id={i: i for i in thing_ids},
        stuff_dataset_id_to_contiguous_id={i: i for i in range(len(names))},
    )
    return name
