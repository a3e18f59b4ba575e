"""For inference alone: what can be folded into other layers, and torch's compiler."""

from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import ResNet
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..errors import ConfigError
from ..memory import hand_back_memory, keep_freed_memory
from .backbone.swin import D2SwinTransformer
from .cuda_graphs import CudaGraphs
from .linear import Linear
from .ms_deform_attn import MSDeformAttn
from .pixel_decoder import MSDeformAttnPixelDecoder
from .transformer_decoder import MultiheadAttention, MultiScaleMaskedTransformerDecoder

_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)


CUDA_GRAPH = "cuda-graph"
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", CUDA_GRAPH)


def prepare_for_inference(model: nn.Module, compile_mode: str = "") -> None:
    """Fuse what can be; and :func:`compile_parts` if there is a mode, or record CUDA graphs.

    The model and the process are for inference from then on: parameters are no longer those of a
    checkpoint, and freed memory is kept (or, with ``TEST.LOW_MEMORY``, it is not), see
    :func:`..memory.keep_freed_memory`.

    Args:
        model: a MaskFormer in evaluation mode, its weights loaded.

    Raises:
        ConfigError: there is no such mode, or it needs a GPU.
    """
    if compile_mode and compile_mode not in COMPILE_MODES:
        raise ConfigError(
            f"TEST.COMPILE is {compile_mode!r}; it must be '' or one of {list(COMPILE_MODES)}"
        )
    if compile_mode == CUDA_GRAPH and model.device.type != "cuda":
        raise ConfigError(
            f"TEST.COMPILE is {CUDA_GRAPH!r}, but MODEL.DEVICE is {model.device.type!r}; it is for "
            "GPUs of NVIDIA"
        )
    fuse_batch_norm(model)
    fold_mask_features(model.sem_seg_head)
    if model.test_precision != torch.float32:
        cast_weights(model, model.test_precision)
    if model.device.type == "cpu":
        if model.test_low_memory:
            keep_freed_memory(128 << 10, large_block=1 << 20)
        else:
            keep_freed_memory()
        # What loading and folding have freed lies between the weights, in pieces of their size.
        hand_back_memory()
    if compile_mode == CUDA_GRAPH:
        model.query_outputs = CudaGraphs(model.query_outputs)
    elif compile_mode:
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

    The numbers of their weights change, not the parameters: no two of them may share one.
    """
    for conv in model.modules():
        norm = getattr(conv, "norm", None)
        if isinstance(conv, Conv2d) and isinstance(norm, _BATCH_NORMS):
            weight, conv.bias = fuse_conv_bn_weights(
                *(conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps),
                *(norm.weight, norm.bias),
            )
            conv.weight.copy_(weight)  # a new one for each would leave holes all over the heap
            conv.norm = None
    return model


@torch.no_grad()
def fold_mask_features(head: nn.Module) -> None:
    """Spare the convolution that makes mask features, in place: equal up to rounding.

    Mask logits are e . (W f + b), of an embedding e and the features f before that convolution. The
    last layer that makes e makes W' e and, one channel more, b . e instead.
    """
    decoder, predictor = head.pixel_decoder, head.predictor
    if not (
        isinstance(decoder, MSDeformAttnPixelDecoder)
        and isinstance(predictor, MultiScaleMaskedTransformerDecoder)
        and isinstance(decoder.mask_features, nn.Conv2d)
    ):
        return
    conv, last = decoder.mask_features, predictor.mask_embed.layers[-1]
    folding = torch.cat([conv.weight.flatten(1), conv.bias[:, None]], dim=1).t()  # (C + 1, dim)
    folded = Linear(last.in_features, len(folding), device=last.weight.device)
    folded.weight.copy_(folding @ last.weight)
    folded.bias.copy_(folding @ last.bias)
    predictor.mask_embed.layers[-1] = folded.requires_grad_(last.weight.requires_grad)
    decoder.mask_features = nn.Identity()


# Where it is known that all products and convolutions follow autocast.
_FOLLOW_AUTOCAST = (
    ResNet,
    D2SwinTransformer,
    MSDeformAttnPixelDecoder,
    MultiScaleMaskedTransformerDecoder,
)


@torch.no_grad()
def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast, in place, the weights that autocast would cast for every picture.

    The places that deformable attention samples stay in float32.
    """
    head = model.sem_seg_head
    parts = (model.backbone, head.pixel_decoder, head.predictor)
    modules = [m for part in parts if isinstance(part, _FOLLOW_AUTOCAST) for m in part.modules()]
    exact = {m.sampling_offsets for m in modules if isinstance(m, MSDeformAttn)}
    for module in modules:
        names: tuple[str, ...] = ()
        if isinstance(module, nn.Linear | nn.Conv2d) and module not in exact:
            names = ("weight", "bias")
        elif isinstance(module, MultiheadAttention):
            names = ("in_proj_weight", "in_proj_bias")
        for name in names:
            parameter = getattr(module, name)
            if parameter is not None:
                parameter.data = parameter.to(dtype)
