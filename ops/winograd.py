"""3x3 convolutions on CPUs with 2.25 multiplications for an output and a channel instead of 9.

By Winograd's filtering, see csrc/cpu/winograd.h; equal to the convolution in real arithmetic, with
rounding errors two to three times those of torch's own.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .library import backend

CHANNELS = 32  # those of input and output must be multiples of this


def winograd_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`torch.nn.functional.conv2d` with a padding of 1, compiled.

    A number that is not finite spreads to all of the 4x4 outputs that are computed together. The
    gradient of the weights has no gradient.

    Args:
        x: (B, C, H, W) in float32 or, without gradients, bfloat16, on the CPU; fastest with
            channels last in memory.
        weight: (K, C, 3, 3) in the dtype of x. C and K are multiples of ``CHANNELS``.
        bias: (K), in any dtype.

    Returns:
        (B, K, H, W) in the dtype of x, channels last. Sums are float32.
    """
    bias = None if bias is None else bias.float()
    return torch.ops.mask2former.winograd_conv2d(x, weight, bias, False)


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    shape = (x.shape[0], weight.shape[1 if transposed else 0], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _gradient_fake(x: Tensor, grad_output: Tensor) -> Tensor:
    return x.new_empty((3, 3, x.shape[1], grad_output.shape[1]))


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, _, ctx.transposed = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias, _ = ctx.needs_input_grad
    op = torch.ops.mask2former
    grad = grad.contiguous(memory_format=torch.channels_last)  # once, for both
    ends = (grad, x) if ctx.transposed else (x, grad)  # of what the weights lead from and to
    return (
        op.winograd_conv2d(grad, weight, None, not ctx.transposed) if of_x else None,
        op.winograd_conv2d_weight(*ends).permute(3, 2, 0, 1) if of_weight else None,
        grad.sum((0, 2, 3)) if of_bias else None,
        None,
    )


def _double_backward(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("the weights of winograd_convolution have no second derivative")


def _gradient_flops(x_shape: tuple, grad_shape: tuple, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(x_shape) * 9 * grad_shape[1]


def _flops(x_shape: tuple, weight_shape: tuple, *args: Any, **kwargs: Any) -> int:
    """Those of the convolution that it replaces."""
    return 2 * x_shape[0] * math.prod(x_shape[2:]) * math.prod(weight_shape)


if backend("cpu").name == "compiled":
    torch.library.register_fake("mask2former::winograd_conv2d", _fake)
    torch.library.register_fake("mask2former::winograd_conv2d_weight", _gradient_fake)
    torch.library.register_autograd("mask2former::winograd_conv2d", _backward, setup_context=_save)
    torch.library.register_autograd("mask2former::winograd_conv2d_weight", _double_backward)
    register_flop_formula(torch.ops.mask2former.winograd_conv2d)(_flops)
    register_flop_formula(torch.ops.mask2former.winograd_conv2d_weight)(_gradient_flops)
