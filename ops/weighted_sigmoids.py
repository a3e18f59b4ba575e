"""The product that semantic scores are: class probabilities times mask probabilities."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .library import backend, use_compiled_on


def weighted_sigmoids(weights: Tensor, logits: Tensor, out: Tensor) -> Tensor:
    """``out[k] = sum_q weights[k, q] * sigmoid(logits[q])``.

    Compiled for float32 on the CPU, without gradients; else, and while something is compiled or
    exported, plain PyTorch.

    Args:
        weights: (K, Q).
        logits: (Q, H, W).
        out: (K, H, W), written; a part of a larger tensor may be.

    Returns:
        ``out``.
    """
    tensors = (weights.contiguous(), logits, out)
    if use_compiled_on(*tensors):
        torch.ops.mask2former.weighted_sigmoids(*tensors)
        return out
    product = weights @ logits.sigmoid().flatten(1)
    return out.copy_(product.view(out.shape))


if backend("cpu").name == "compiled":

    @torch.library.register_fake("mask2former::weighted_sigmoids")
    def _(weights: Tensor, logits: Tensor, out: Tensor) -> None:
        return None

    @register_flop_formula(torch.ops.mask2former.weighted_sigmoids)
    def _flops(weights_shape: tuple, logits_shape: tuple, *args: Any, **kwargs: Any) -> int:
        """Those of the product."""
        return 2 * weights_shape[0] * math.prod(logits_shape)
