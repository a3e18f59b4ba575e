"""MaskFormerHead: the pixel decoder and the transformer decoder."""

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from .transformer_decoder import TRANSFORMER_DECODER_REGISTRY


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """Backbone features -> class and mask logits of all queries."""

    @configurable
    def __init__(
        self, *, pixel_decoder: nn.Module, transformer_predictor: nn.Module, num_classes: int
    ) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = transformer_predictor
        self.num_classes = num_classes

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        head, mask_former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
        if head.PIXEL_DECODER_NAME not in SEM_SEG_HEADS_REGISTRY:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME is {head.PIXEL_DECODER_NAME}, which is not "
                "registered; Mask2Former's is MSDeformAttnPixelDecoder"
            )
        if mask_former.TRANSFORMER_DECODER_NAME not in TRANSFORMER_DECODER_REGISTRY:
            raise ValueError(
                "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME is "
                f"{mask_former.TRANSFORMER_DECODER_NAME}, which is not registered; "
                "Mask2Former's is MultiScaleMaskedTransformerDecoder"
            )
        if mask_former.TRANSFORMER_IN_FEATURE != "multi_scale_pixel_decoder":
            raise ValueError(
                "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is "
                f"{mask_former.TRANSFORMER_IN_FEATURE}; Mask2Former's decoder attends to "
                "multi_scale_pixel_decoder only"
            )
        pixel_decoder = SEM_SEG_HEADS_REGISTRY.get(head.PIXEL_DECODER_NAME)
        decoder = TRANSFORMER_DECODER_REGISTRY.get(mask_former.TRANSFORMER_DECODER_NAME)
        return {
            "pixel_decoder": pixel_decoder(cfg, input_shape),
            "transformer_predictor": decoder(cfg, head.CONVS_DIM, mask_classification=True),
            "num_classes": head.NUM_CLASSES,
        }

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Any]:
        """Backbone features by name -> the transformer decoder's outputs."""
        mask_features, memories = self.pixel_decoder(features)
        return self.predictor(memories, mask_features)
