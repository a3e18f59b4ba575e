"""3x3 convolutions on CPUs with 2.25 multiplications for an output and a channel instead of 9.

Winograd's filtering F(4x4, 3x3), Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural
Networks", equation 8: tiles of 6x6 inputs and the filters are transformed, B^T x B and G w G^T; a
convolution is then a product of matrices for each of the 36 elements; and A^T y A is a tile of 4x4
outputs. It equals the convolution in real arithmetic. At the points 0, 1, -1, 1/2 and -2 (Barabasz
et al. 2020, "Error analysis and improving the accuracy of Winograd convolution") its rounding
errors are about twice those of torch's own.

Shapes: B pictures of H x W pixels, C channels in, K out; T tiles, as many at a time as stay in the
last cache. Channels are last in memory.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.layers import Conv2d
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from .linear import batched_product

TILE = 4  # outputs on a side
PATCH = TILE + 2  # inputs on a side
TILES_IN_CACHE = 160
FEWEST_CHANNELS = 128  # torch's own convolution is as fast with fewer
_MEASURED = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")

_BT = (
    (1, -1.5, -2, 1.5, 1, 0),
    (0, -1, 0.5, 2.5, 1, 0),
    (0, 1, -2.5, 0.5, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 0.5, -1, -0.5, 1, 0),
    (0, 1, -1.5, -2, 1.5, 1),
)
_G = (
    (1, 0, 0),
    (1 / 3, 1 / 3, 1 / 3),
    (-1 / 3, 1 / 3, -1 / 3),
    (-16 / 15, -8 / 15, -4 / 15),
    (1 / 15, -2 / 15, 4 / 15),
    (0, 0, 1),
)
_AT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 0.5, -2, 0),
    (0, 1, 1, 0.25, 4, 0),
    (0, 1, -1, 0.125, -8, 1),
)


def _nested(matrix: Sequence[Sequence[float]], like: Tensor) -> Tensor:
    """M such that M vec(x) = vec(matrix x matrix^T)."""
    exact = torch.tensor(matrix, dtype=torch.float64, device=like.device)
    return torch.kron(exact, exact).to(like.dtype)


class Conv3x3(Conv2d):
    """Detectron2's convolution, 3x3 with a padding of 1; by Winograd where that is faster."""

    def __init__(self, channels: int, **options: Any) -> None:
        """options: ``bias``, ``norm`` and ``activation``."""
        super().__init__(channels, channels, kernel_size=3, padding=1, **options)

    def forward(self, x: Tensor) -> Tensor:
        if not is_faster(x, self.weight):
            return super().forward(x)
        x = winograd_convolution(x, self.weight, self.bias)
        x = x if self.norm is None else self.norm(x)
        return x if self.activation is None else self.activation(x)


def is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether :func:`winograd_convolution` is, and can be used."""
    return (
        x.device.type == "cpu"
        and _MEASURED
        and x.dtype == weight.dtype == torch.float32
        and min(weight.shape[:2]) >= FEWEST_CHANNELS
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


@torch.library.custom_op("mask2former::winograd_convolution", mutates_args=())
def winograd_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`torch.nn.functional.conv2d` with a padding of 1; no double backward.

    Args:
        x: (B, C, H, W), of any strides.
        weight: (K, C, 3, 3).
        bias: (K).

    Returns:
        (B, K, H, W), channels last.
    """
    batch, _, height, width = x.shape
    out_channels = len(weight)
    filters = _transformed(weight).mT  # (36, C, K)
    of_output = _nested(_AT, x)
    patches = _Patches(x)
    tiles_down, tiles_right = patches.tiles
    out = _channels_last(x, (batch, out_channels, TILE * tiles_down, TILE * tiles_right))
    results = out.permute(0, 2, 3, 1).unflatten(2, (-1, TILE)).unflatten(1, (-1, TILE))
    for picture, result in zip(x.permute(0, 2, 3, 1), results, strict=True):
        for first, rows in patches.bands():
            products = batched_product(patches(picture, first, rows), filters)
            tiles = of_output @ products.view(PATCH**2, -1)
            tiles = tiles.view(TILE, TILE, rows, tiles_right, out_channels).permute(2, 0, 3, 1, 4)
            target = result[first : first + rows]
            if bias is None:
                target.copy_(tiles)
            else:
                torch.add(tiles, bias, out=target)
    if out.shape[2:] == (height, width):
        return out
    return out[..., :height, :width].clone(memory_format=torch.channels_last)


def weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of :func:`winograd_convolution`'s weight, (K, C, 3, 3), from x, (B, C, H, W),
    and the gradient of its output, (B, K, H, W)."""
    channels, out_channels = x.shape[1], gradient.shape[1]
    to_output = _nested(_AT, x).t()
    patches = _Patches(x)
    filters = x.new_zeros(PATCH**2, out_channels, channels)
    pictures = zip(x.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1), strict=True)
    for picture, slope in pictures:
        for first, rows in patches.bands():
            tiles = to_output @ _gradient_tiles(slope, first, rows, patches.tiles[1])
            tiles = tiles.view(PATCH**2, -1, out_channels)
            filters.baddbmm_(tiles.mT, patches(picture, first, rows))
    weight = _nested(_G, x).t() @ filters.flatten(1)
    return weight.view(3, 3, out_channels, channels).permute(2, 3, 0, 1)


def _transformed(weight: Tensor) -> Tensor:
    """(K, C, 3, 3) -> (36, K, C)."""
    rows = weight.permute(2, 3, 0, 1).reshape(9, -1)
    return (_nested(_G, weight) @ rows).view(PATCH**2, *weight.shape[:2])


class _Patches:
    """The transformed inputs of some rows of tiles, in memory that is taken once."""

    def __init__(self, x: Tensor) -> None:
        """x: (B, C, H, W)."""
        channels, height, width = x.shape[1:]
        self.width = width
        self.tiles = math.ceil(height / TILE), math.ceil(width / TILE)
        self.most_rows = max(1, min(TILES_IN_CACHE // self.tiles[1], self.tiles[0]))
        elements = self.most_rows * self.tiles[1] * channels
        self.to_patches = _nested(_BT, x)
        self.gathered, self.patches = x.new_empty(2, PATCH**2, elements)
        # Zero outside of the picture.
        self.band = x.new_zeros(TILE * self.most_rows + 2, TILE * self.tiles[1] + 2, channels)

    def bands(self) -> Iterator[tuple[int, int]]:
        """The first, and how many rows of tiles at a time."""
        for first in range(0, self.tiles[0], self.most_rows):
            yield first, min(self.most_rows, self.tiles[0] - first)

    def __call__(self, picture: Tensor, first: int, rows: int) -> Tensor:
        """Of an (H, W, C) picture: (36, T, C), valid until the next call."""
        top = TILE * first - 1
        inside = picture[max(top, 0) : top + TILE * rows + 2]
        above = max(-top, 0)
        self.band[:above] = 0
        self.band[above : above + len(inside), 1 : self.width + 1] = inside
        self.band[above + len(inside) :] = 0
        down, right, channel = self.band.stride()
        shape = PATCH, PATCH, rows, self.tiles[1], picture.shape[2]
        overlapping = self.band.as_strided(shape, (down, right, TILE * down, TILE * right, channel))
        elements = math.prod(shape[2:])
        gathered, patches = self.gathered[:, :elements], self.patches[:, :elements]
        gathered.view(shape).copy_(overlapping)
        torch.mm(self.to_patches, gathered, out=patches)
        return patches.view(PATCH**2, -1, picture.shape[2])


def _gradient_tiles(gradient: Tensor, first: int, rows: int, columns: int) -> Tensor:
    """Those of outputs, zero outside of the picture: (H, W, K) -> (16, T * K)."""
    height, width, channels = gradient.shape
    bottom = (first + rows) * TILE
    band = F.pad(
        gradient[first * TILE : bottom],
        (0, 0, 0, columns * TILE - width, 0, max(bottom - height, 0)),
    )
    tiles = band.reshape(rows, TILE, columns, TILE, channels).permute(1, 3, 0, 2, 4)
    return tiles.reshape(TILE**2, -1)


@winograd_convolution.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _channels_last(x, (len(x), len(weight), *x.shape[2:]))


def _channels_last(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    options = {"dtype": like.dtype, "device": like.device}
    return torch.empty(shape, memory_format=torch.channels_last, **options)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    of_x, of_weight, *of_bias = ctx.needs_input_grad  # of (x, weight) or (x, weight, bias)
    turned = weight.flip(2, 3).transpose(0, 1)
    with torch.autocast("cpu", enabled=False):
        return (
            winograd_convolution(gradient, turned) if of_x else None,
            weight_gradient(x, gradient) if of_weight else None,
            gradient.sum((0, 2, 3)) if any(of_bias) else None,
        )


winograd_convolution.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.mask2former.winograd_convolution)
def _flops(x_shape: tuple, weight_shape: tuple, *args: Any, **kwargs: Any) -> int:
    """Those of the convolution that it replaces."""
    return 2 * x_shape[0] * math.prod(x_shape[2:]) * math.prod(weight_shape)
