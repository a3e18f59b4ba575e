"""The classes of a trained model where its data set is not at hand: the checkpoint knows them."""

import hashlib

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..config import register_data_sets
from ..data import class_names
from ..errors import ConfigError, DatasetError
from .reading import Checkpoint, read_state_dict


def know_classes(cfg: CfgNode) -> None:
    """Register the data sets that name a model's classes; or take the classes of its checkpoint.

    A checkpoint of this project's trainer says which classes there are, and which are things; its
    data set (then named by ``DATASETS.TEST``) has nothing but these.

    Raises:
        DatasetError: a data set is not there, and the checkpoint does not say either.
        ConfigError: the checkpoint has another number of classes than the config.
    """
    missing = None
    try:
        register_data_sets(cfg)
    except DatasetError as error:
        missing = error
    names = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)
    if missing is None and names and class_names(names[0]):
        return
    checkpoint = read_state_dict(cfg.MODEL.WEIGHTS) if cfg.MODEL.WEIGHTS else Checkpoint({})
    classes, thing_ids = checkpoint.class_names, checkpoint.thing_ids
    if missing is not None and (classes is None or thing_ids is None):
        lacks = "what its classes are called" if classes is None else "which classes are things"
        raise DatasetError(
            f"{missing}; nor does {cfg.MODEL.WEIGHTS or 'a model without weights'} say {lacks} "
            "(with DATASETS.CATALOG '' all count as things)"
        ) from missing
    if classes is None:
        return
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if len(classes) != num_classes:
        raise ConfigError(
            f"{cfg.MODEL.WEIGHTS} has {len(classes)} classes, the config {num_classes}; set "
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES {len(classes)}"
        )
    if thing_ids is None:
        thing_ids = list(range(num_classes))  # as of a data set that does not tell
    cfg.DATASETS.TEST = (_register(classes, thing_ids),)


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
