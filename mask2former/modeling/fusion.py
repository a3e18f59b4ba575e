"""Batch normalisation as a part of the convolutions before it, for inference."""

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)


@torch.no_grad()
def fuse_batch_norm(model: nn.Module) -> nn.Module:
    """Fold the batch norms of a model into its convolutions, in place: equal up to rounding.

    The model is for inference from then on: its parameters are no longer those of a checkpoint.

    Args:
        model: in evaluation mode, its weights loaded.
    """
    for conv in model.modules():
        norm = getattr(conv, "norm", None)
        if isinstance(conv, Conv2d) and isinstance(norm, _BATCH_NORMS):
            conv.weight, conv.bias = fuse_conv_bn_weights(
                *(conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps),
                *(norm.weight, norm.bias),
            )
            conv.norm = None
    return model
