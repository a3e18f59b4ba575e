"""The model. Importing this package registers its parts with Detectron2."""

from .backbone import D2SwinTransformer
from .mask_former_head import MaskFormerHead
from .meta_arch import MaskFormer
from .pixel_decoder import MSDeformAttnPixelDecoder
from .test_time_augmentation import SemanticSegmentorWithTTA
from .transformer_decoder import TRANSFORMER_DECODER_REGISTRY, MultiScaleMaskedTransformerDecoder

__all__ = [
    "TRANSFORMER_DECODER_REGISTRY",
    "D2SwinTransformer",
    "MSDeformAttnPixelDecoder",
    "MaskFormer",
    "MaskFormerHead",
    "MultiScaleMaskedTransformerDecoder",
    "SemanticSegmentorWithTTA",
]
