"""Detectron2's convolutions, with less work on CPUs."""

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former_ops import winograd_convolution
from mask2former_ops.library import use_compiled, vector_lanes
from mask2former_ops.winograd import CHANNELS

from .linear import processor

FEWEST_PIXELS = 256  # of all pictures; torch's own convolution is as fast with fewer
_WIDE_VECTORS = vector_lanes() >= 8
_FAST_BFLOAT16 = "amx_bf16" in processor()  # in torch's own convolution


class CPUConv2d(Conv2d):
    """Detectron2's convolution, its norm and its activation; on CPUs, with less work.

    There a frozen batch norm scales the weights, not the output, which is far more memory to go
    through; a group norm writes over the output in inference in float32; and 3x3 convolutions with
    a padding of 1 are by Winograd where that is faster.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        weight, bias, norm = self.weight, self.bias, self.norm
        if type(norm) is FrozenBatchNorm2d:
            weight, bias, norm = *_folded(weight, bias, norm), None
        dtype = _computed_in(x, weight)
        if _can_be_by_winograd(self) and _is_faster(x, dtype):
            x = winograd_convolution(x.to(dtype), weight.to(dtype), bias)
        else:
            x = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        if type(norm) is nn.GroupNorm and _can_be_in_place(x):
            x = group_norm_(x, norm)
        elif norm is not None:
            x = norm(x)
        return x if self.activation is None else self.activation(x)


def use_cpu_convolutions(module: nn.Module) -> None:
    """Make every convolution of Detectron2 in it a :class:`CPUConv2d`, in place.

    Its parameters, their names, and its hooks stay. On CPUs, hooks of a frozen batch norm are not
    called, nor those of a group norm in inference, and a convolution by Winograd has no
    forward-mode gradients. ``torch.jit.script`` takes none of them; ``torch.jit.trace`` and
    exports do.
    """
    for conv in module.modules():
        if type(conv) is Conv2d:
            conv.__class__ = CPUConv2d


def _folded(weight: Tensor, bias: Tensor | None, norm: FrozenBatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution and its norm together: equal up to rounding.

    torch's ``fuse_conv_bn_weights`` makes new parameters, which no gradient goes through.
    """
    exact = torch.promote_types(norm.weight.dtype, torch.float32)
    shift, mean, variance = (x.to(exact) for x in (norm.bias, norm.running_mean, norm.running_var))
    scale = norm.weight.to(exact) * (variance + norm.eps).rsqrt()
    mean = mean if bias is None else mean - bias
    folded = (weight * scale[:, None, None, None], shift - mean * scale)
    return folded[0].to(weight.dtype), folded[1].to(weight.dtype)


def group_norm_(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """``norm`` of x, (B, C, H, W), in place: torch's own takes as much memory again."""
    # Of each channel, in two passes: squares of large means do not cancel.
    statistics = [torch.batch_norm_update_stats(y[None], None, None, 0.0) for y in x]
    means, variances = (
        torch.stack(y).unflatten(1, (norm.num_groups, -1)) for y in zip(*statistics)
    )
    mean = means.mean(-1, keepdim=True)
    variance = (variances + (means - mean).square()).mean(-1, keepdim=True)
    scale = (variance + norm.eps).rsqrt().expand_as(means).flatten(1)
    shift = (-mean).expand_as(means).flatten(1) * scale
    if norm.affine:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    return torch.addcmul(shift[..., None, None], x, scale[..., None, None], out=x)


def _can_be_by_winograd(conv: Conv2d) -> bool:
    return (
        (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
        and (conv.dilation, conv.groups) == ((1, 1), 1)
        and not (conv.in_channels % CHANNELS or conv.out_channels % CHANNELS)
    )


def _can_be_in_place(x: Tensor) -> bool:
    """Whether :func:`group_norm_` can be used: on numbers, in float32, without gradients."""
    return (
        type(x) is Tensor  # analysis.py has tensors without numbers
        and x.dtype == torch.float32
        and x.dim() == 4
        and x.numel() > 0
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def _computed_in(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """What torch's own convolution on CPUs computes in; None if it refuses these, or is not known
    to compute in float32 or bfloat16.
    """
    single = (torch.float32, torch.bfloat16)
    if torch.is_autocast_enabled("cpu"):
        known = x.dtype in single and weight.dtype in single
        return torch.get_autocast_dtype("cpu") if known else None
    return x.dtype if x.dtype == weight.dtype else None


def _is_faster(x: Tensor, dtype: torch.dtype | None) -> bool:
    """Whether :func:`winograd_convolution` of x, (B, C, H, W), in ``dtype`` is, and can be used."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    in_bfloat16 = not _FAST_BFLOAT16 and not torch.is_grad_enabled()
    return (
        _WIDE_VECTORS
        and (dtype == torch.float32 or (dtype == torch.bfloat16 and in_bfloat16))
        and x.dim() == 4
        and len(x) * x.shape[2] * x.shape[3] >= FEWEST_PIXELS
        and use_compiled("cpu")
    )
