"""Rows of resized maps, and sums over masks, which the compiled operators make in one pass."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .library import backend, use_compiled_on


def resize_rows(
    maps: Tensor, first: int, source_height: int, rows: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Some rows of maps that are resized, bilinear without aligned corners.

    Compiled for float32 on the CPU, without gradients; else, and while something is compiled or
    exported, plain PyTorch.

    Args:
        maps: (n, r, w), the rows from ``first`` on of maps that have ``source_height``; those that
            the result needs, see :func:`source_rows`.
        rows: first and last, exclusive, of the result.
        size: (height, width) of the resized maps.

    Returns:
        (n, rows, width).
    """
    (start, stop), (height, width) = rows, size
    if use_compiled_on(maps):
        return torch.ops.mask2former.resize_rows(
            maps, first, source_height, start, stop, height, width
        )
    band = _widen(maps, width)
    # In double precision: the host and the device agree on the rows that are needed.
    y = torch.arange(start, stop, device=maps.device, dtype=torch.float64)
    y = ((y + 0.5) * (source_height / height) - 0.5).clamp(0, source_height - 1)
    source = torch.arange(first, first + maps.shape[1], device=maps.device)
    weights = (1 - (y[:, None] - source).abs()).clamp(min=0)
    return weights.to(band.dtype) @ band


def source_rows(source_height: int, rows: tuple[int, int], height: int) -> tuple[int, int]:
    """First and last row, exclusive, that :func:`resize_rows` needs; arguments as there."""
    # Row y lies at (y + 0.5) * scale - 0.5 of the source, between the rows low and high.
    scale = source_height / height
    low, high = (int(max((y + 0.5) * scale - 0.5, 0)) for y in (rows[0], rows[1] - 1))
    return low, min(high + 2, source_height)


def mask_sums(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where logits are positive, and how sure they are of it.

    Compiled where :func:`resize_rows` is.

    Args:
        logits: (n, H, W).

    Returns:
        (n, H, W) bool, where they are positive; the number of these pixels, (n,) int64; and the
        sum of the sigmoids there, (n,).
    """
    if use_compiled_on(logits):
        return torch.ops.mask2former.mask_sums(logits)
    inside = logits > 0
    areas = inside.flatten(1).view(torch.uint8).sum(1, dtype=torch.int32).long()
    return inside, areas, logits.where(inside, -math.inf).sigmoid_().flatten(1).sum(1)


def _widen(maps: Tensor, width: int) -> Tensor:
    """(n, rows, w) -> (n, rows, width), each row by itself."""
    if maps.device.type == "cpu":
        rows = maps.flatten(0, 1)[:, None]
        rows = F.interpolate(rows, size=width, mode="linear", align_corners=False)
        return rows.view(*maps.shape[:2], width)
    # There "linear" is a hundred times slower: a thread goes through all rows.
    size = (maps.shape[1], width)
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


if backend("cpu").name == "compiled":

    @torch.library.register_fake("mask2former::resize_rows")
    def _(
        maps: Tensor,
        first: int,
        source_height: int,
        start: int,
        stop: int,
        height: int,
        width: int,
    ) -> Tensor:
        return maps.new_empty((len(maps), stop - start, width))

    @torch.library.register_fake("mask2former::mask_sums")
    def _(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        areas = logits.new_empty(len(logits), dtype=torch.int64)
        inside = logits.new_empty(logits.shape, dtype=torch.bool)
        return inside, areas, logits.new_empty(len(logits))
