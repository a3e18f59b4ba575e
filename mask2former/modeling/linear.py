"""Linear layers and products of matrices, on CPUs by oneDNN where that is faster."""

import math
import platform
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula


@lru_cache
def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Maker and abilities of this machine's processor, as far as known; torch does not tell."""
    try:
        return cpuinfo.read_text()
    except OSError:
        return platform.processor()


# torch multiplies float32 matrices with MKL, which makes do with AVX2 on AMD's processors. oneDNN
# needs up to half the time there, if there is AVX-512; without, it needs a sixth more than MKL, and
# on Intel's processors twice as much for small products. This operator, which torch's compiler
# takes, has no gradient.
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_PREFERRED = (
    _ONEDNN is not None
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and "GenuineIntel" not in processor()
)
if _ONEDNN is not None:

    @register_flop_formula(_ONEDNN)
    def _flops(x_shape: tuple, weight_shape: tuple, *args: Any, **kwargs: Any) -> int:
        return 2 * math.prod(x_shape) * weight_shape[0]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`torch.nn.functional.linear` of (..., I), (O, I) and (O,)."""
    if (
        not _PREFERRED
        or not x.dtype == weight.dtype == torch.float32
        or x.device.type != "cpu"
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
    ):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _OneDNNLinear.apply(x, weight, bias)
    return _ONEDNN(x, weight, bias, "none", [], "")


def relu(x: Tensor) -> Tensor:
    """:func:`torch.nn.functional.relu` of what nobody else needs: in place.

    With gradients, not of a view, as layers of three dimensions make: all of what it is a view of
    would be copied for its gradient, and a hook of the layer may forbid it.
    """
    if torch.is_grad_enabled() and (torch.compiler.is_compiling() or x._is_view()):
        return F.relu(x)
    return x.relu_()


class _OneDNNLinear(torch.autograd.Function):
    """With gradients; that of the weight by MKL, which is as fast there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _ONEDNN(x, weight, bias, "none", [], "")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _ONEDNN(gradient, weight.t(), None, "none", [], "") if of_x else None,
            rows.t() @ x.flatten(0, -2) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def batched_product(a: Tensor, b: Tensor) -> Tensor:
    """(B, n, k) @ (B, k, m); without gradients, on CPUs, by :func:`linear` where that is faster.

    In bfloat16 on processors with AVX-512 it is up to seventeen times faster, as torch copies a
    transposed ``b`` of a batch; with AVX2 it is as fast.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled():  # before any size is looked at
        return a @ b
    by_linear = a.device.type == "cpu" and (_PREFERRED or a.dtype == torch.bfloat16)
    if not by_linear or len(a) == 0:
        return a @ b
    products = [linear(x, y.t()) for x, y in zip(a, b, strict=True)]
    return torch.stack(products) if len(products) > 1 else products[0][None]


class Linear(nn.Linear):
    """:class:`torch.nn.Linear` by :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
