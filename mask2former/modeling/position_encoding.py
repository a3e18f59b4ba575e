"""Sine position encoding on a grid (Vaswani et al. 2017, in two dimensions as in DETR)."""

import math

import torch
from torch import Tensor


def sine_position_encoding(
    height: int, width: int, channels: int, *, device: torch.device, temperature: float = 10000.0
) -> Tensor:
    """Encode the cells of an unpadded grid; the first half of the channels tells y, the second x.

    Position ``i`` of ``n`` counts as ``2 pi (i + 1) / n``; channel pair ``c`` of a half holds sine
    and cosine of that angle over ``temperature ** (2 c / (channels / 2))``.

    Args:
        height, width: size of the grid in cells.
        channels: a multiple of 4.

    Returns:
        (channels, height, width) float32 in [-1, 1].
    """
    half = channels // 2
    exponent = torch.arange(half, device=device).div(2, rounding_mode="floor") * (2.0 / half)
    period = temperature**exponent  # (half,)

    def encode(length: int) -> Tensor:
        # The epsilon is part of the published encoding: checkpoints were trained with it.
        position = torch.arange(1, length + 1, device=device, dtype=torch.float32)
        angle = position / (length + 1e-6) * (2 * math.pi)
        angle = angle[:, None] / period  # (length, half)
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1)

    y = encode(height).t()[:, :, None].expand(half, height, width)
    x = encode(width).t()[:, None, :].expand(half, height, width)
    return torch.cat([y, x])
