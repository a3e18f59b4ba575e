"""One picture in, one segmentation out."""

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model

from ..checkpoint import load_weights
from ..data.dataset_mapper import to_tensor
from ..errors import ConfigError
from ..modeling.fusion import prepare_for_inference


class Predictor:
    """The model of a config with the weights of ``MODEL.WEIGHTS``, ready for single pictures.

    Attributes:
        image_format: of the pictures it takes, see :func:`mask2former.data.picture.read_picture`.
        metadata: class names and colours of ``DATASETS.TEST[0]``.
    """

    def __init__(self, cfg: CfgNode) -> None:
        if not cfg.MODEL.WEIGHTS:
            raise ConfigError("there are no weights: set MODEL.WEIGHTS to a checkpoint")
        names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
        if not names:
            raise ConfigError("DATASETS.TEST must name the data set whose classes the model knows")
        self.model = build_model(cfg).eval()
        load_weights(self.model, cfg.MODEL.WEIGHTS, complete=True)
        prepare_for_inference(self.model, cfg.TEST.COMPILE)
        self.image_format = cfg.INPUT.FORMAT
        self.metadata = MetadataCatalog.get(names[0])
        self.resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> dict[str, Any]:
        """Segment one picture, (h, w, C) as ``image_format`` says: :class:`MaskFormer`'s output."""
        height, width = image.shape[:2]
        resized = self.resize.get_transform(image).apply_image(image)
        return self.model([{"image": to_tensor(resized), "height": height, "width": width}])[0]
