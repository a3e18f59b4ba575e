"""Backbones that Detectron2 does not have. Importing this package registers them."""

from .swin import D2SwinTransformer

__all__ = ["D2SwinTransformer"]
