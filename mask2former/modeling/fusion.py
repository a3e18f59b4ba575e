"""For inference alone: batch norms as a part of convolutions, and torch's compiler."""

from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..errors import ConfigError

_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)


COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")


def prepare_for_inference(model: nn.Module, compile_mode: str = "") -> None:
    """:func:`fuse_batch_norm`, and :func:`compile_parts` if there is a mode.

    Raises:
        ConfigError: torch's compiler has no such mode.
    """
    fuse_batch_norm(model)
    if not compile_mode:
        return
    if compile_mode not in COMPILE_MODES:
        raise ConfigError(
            f"TEST.COMPILE is {compile_mode!r}; it must be '' or one of {list(COMPILE_MODES)}"
        )
    compile_parts(model, mode=compile_mode)


def compile_parts(model: nn.Module, **options: Any) -> None:
    """Compile the backbone and the head of a MaskFormer, each as a whole, when it first runs.

    Args:
        options: of :func:`torch.compile`.
    """
    for part in (model.backbone, model.sem_seg_head):
        part.compile(fullgraph=True, **options)


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
