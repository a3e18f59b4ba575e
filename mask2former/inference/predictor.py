"""One picture in, one segmentation out."""

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model

from ..checkpoint import load_weights
from ..data import class_names
from ..data.dataset_mapper import to_tensor
from ..errors import ConfigError
from ..modeling.fusion import prepare_for_inference


class Predictor:
    """The model of a config with the weights of ``MODEL.WEIGHTS``, ready for single pictures.

    Attributes:
        image_format: of the pictures it takes, see :func:`mask2former.data.picture.read_picture`.
        metadata: class names and colours of ``DATASETS.TEST[0]``; where none is named, numbers.

    Raises:
        ConfigError: there are no weights, or the data set has another number of classes.
    """

    def __init__(self, cfg: CfgNode) -> None:
        if not cfg.MODEL.WEIGHTS:
            raise ConfigError("there are no weights: set MODEL.WEIGHTS to a checkpoint")
        self.metadata = metadata_of(cfg)
        self.model = build_model(cfg).eval()
        load_weights(self.model, cfg.MODEL.WEIGHTS, complete=True)
        prepare_for_inference(self.model, cfg.TEST.COMPILE)
        self.image_format = cfg.INPUT.FORMAT
        self.resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> dict[str, Any]:
        """Segment one picture, (h, w, C) as ``image_format`` says: :class:`MaskFormer`'s output."""
        height, width = image.shape[:2]
        resized = self.resize.get_transform(image).apply_image(image)
        return self.model([{"image": to_tensor(resized), "height": height, "width": width}])[0]


def metadata_of(cfg: CfgNode) -> Metadata:
    """Class names and colours of the data set that a config is about, or numbers for names.

    Raises:
        ConfigError: the data set has another number of classes than the model.
    """
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    if not names:
        metadata = MetadataCatalog.get(f"{num_classes} classes without names")
        classes = [f"class {i}" for i in range(num_classes)]
        metadata.set(thing_classes=classes, stuff_classes=classes)
        return metadata
    classes = class_names(names[0])
    if classes is not None and len(classes) != num_classes:
        raise ConfigError(
            f"data set {names[0]} has {len(classes)} classes, the model "
            f"(MODEL.SEM_SEG_HEAD.NUM_CLASSES) {num_classes}; let DATASETS.TEST name the data set "
            "that the weights were trained for, or none: ()"
        )
    return MetadataCatalog.get(names[0])
