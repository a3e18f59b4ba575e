"""``benchmark.py convolution``: 3x3 convolutions on the CPU, by Winograd's filtering.

Against torch's: those of a ResNet's stages and of the pixel decoder at a picture's size, channels
last in memory; forward and, in float32, the gradients of input and weights.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from mask2former.errors import UserError, positive
from mask2former.memory import keep_freed_memory
from mask2former_ops import backend, winograd_convolution

from . import Report, Timing, add_common_arguments, measure

CONVOLUTIONS = ((64, 4), (128, 8), (256, 16), (512, 32), (256, 4))  # channels, stride of the maps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=positive, nargs=2, default=(800, 1216), metavar=("H", "W"))
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    add_common_arguments(parser, repeats=9)


def run(args: argparse.Namespace, report: Report) -> None:
    status = backend("cpu")
    if status.name != "compiled":
        raise UserError(f"there is nothing to compare: {status.reason}")
    keep_freed_memory()  # as inference does
    rows = [measure_convolution(args, *convolution) for convolution in CONVOLUTIONS]
    report.machine()
    print(
        f"{args.size[0]} x {args.size[1]}, batch {args.batch}, {args.dtype}; milliseconds, medians "
        f"of {args.repeats}"
    )
    report.table("convolution", rows)
    print("errors: root mean square against float64, relative to that of the output")


def measure_convolution(args: argparse.Namespace, channels: int, stride: int) -> dict[str, object]:
    torch.manual_seed(0)
    height, width = (-(-side // stride) for side in args.size)
    x, weight, slope = (
        torch.randn(shape).to(getattr(torch, args.dtype), memory_format=torch.channels_last)
        for shape in (
            (args.batch, channels, height, width),
            (channels, channels, 3, 3),
            (args.batch, channels, height, width),
        )
    )
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    row: dict[str, object] = {"channels": channels, "pixels": f"{height} x {width}"}
    functions = {
        "": winograd_convolution,
        "torch ": lambda x, weight: F.conv2d(x, weight, padding=1),
    }
    for name, function in functions.items():
        with torch.no_grad():
            row[f"{name}forward"] = measure(lambda f=function: f(x, weight), args.repeats)
            errors = function(x, weight) - exact
        if args.dtype == "float32":
            for part, of in (("input", x), ("weights", weight)):
                row[f"{name}{part}"] = measure_gradient(function, x, weight, of, slope, args)
        row[f"{name}error"] = f"{(errors.square().mean() / exact.square().mean()).sqrt():.1e}"
    return row


def measure_gradient(
    function: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    weight: Tensor,
    of: Tensor,
    slope: Tensor,
    args: argparse.Namespace,
) -> Timing:
    """Of the gradient of one of the factors, ``of``."""
    of.requires_grad_()
    out = function(x, weight)
    times = measure(lambda: torch.autograd.grad(out, of, slope, retain_graph=True), args.repeats)
    of.requires_grad_(False)
    return times
