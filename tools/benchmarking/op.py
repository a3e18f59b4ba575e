"""``benchmark.py op``: multi-scale deformable attention, compiled against PyTorch's operators.

Forward and backward, and forward from offsets and logits, at the pixel decoder's shapes: strides 8,
16 and 32, 8 heads of 32 channels, 4 points. On GPUs, times are of replays of a CUDA graph: of the
kernels, not of the host that launches them.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from mask2former.errors import UserError, positive
from mask2former_ops import (
    backend,
    ms_deform_attn,
    ms_deform_attn_fused,
    ms_deform_attn_reference,
)

from . import Report, Timing, add_common_arguments, copy_rate, measure

STRIDES = (32, 16, 8)
HEADS, CHANNELS, POINTS = 8, 32, 4
CALLS_IN_GRAPH = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=positive, nargs=2, default=(800, 1216), metavar=("H", "W"))
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument(
        "--dtype", choices=("float32", "float64", "bfloat16", "float16"), default="float32"
    )
    parser.add_argument("--device", default="cpu")
    add_common_arguments(parser, repeats=9)


def run(args: argparse.Namespace, report: Report) -> None:
    if torch.device(args.device).type != "cuda":
        return run_here(args, report)
    # Backward runs on the stream of its forward pass, which has to be the one that a graph records.
    with torch.cuda.device(args.device), torch.cuda.stream(torch.cuda.Stream(args.device)):
        run_here(args, report)


def run_here(args: argparse.Namespace, report: Report) -> None:
    status = backend(torch.device(args.device).type)
    if status.name != "compiled":
        raise UserError(f"there is nothing to compare on {args.device}: {status.reason}")
    shapes, inputs = op_inputs(args)
    value, locations, weights = inputs
    grad = torch.randn(args.batch, locations.shape[1], HEADS * CHANNELS, device=args.device)
    grad = grad.to(value.dtype)
    exact = gradients(ms_deform_attn_reference, [x.double() for x in inputs], shapes, grad.double())
    rows = []
    for name, function in (("compiled", ms_deform_attn), ("PyTorch", ms_deform_attn_reference)):
        results = gradients(function, inputs, shapes, grad)
        errors = [relative_errors(ours, true) for ours, true in zip(results, exact)]
        output_error = errors[0].max().item()
        gradient_error = max(error.mean().item() for error in errors[1:])
        output = function(value, shapes, locations, weights)
        times = {
            "forward": lambda f=function: f(*detached(value, shapes, locations, weights)),
            "backward": lambda o=output: torch.autograd.grad(o, inputs, grad, retain_graph=True),
        }
        row = {f"{k} ms": measure_op(run, args) for k, run in times.items()}
        errors = {"output error": output_error, "gradient error": gradient_error}
        rows.append({"": name} | row | errors)
    report.machine(args.device)
    print(
        f"{args.size[0]} x {args.size[1]}, batch {args.batch}, {args.dtype}; "
        f"medians of {args.repeats}"
    )
    report.table("op", rows, floats=".1e")
    report.figures(
        "ratio: forward {forward_ratio:.1f}, backward {backward_ratio:.1f}",
        forward_ratio=rows[1]["forward ms"].median / rows[0]["forward ms"].median,
        backward_ratio=rows[1]["backward ms"].median / rows[0]["backward ms"].median,
    )
    fused, steps = measure_projected(args, shapes, inputs)
    report.figures(
        "from offsets and logits, forward: fused {fused_ms} ms, softmax and locations first "
        "{steps_ms} ms (ratio {fused_ratio:.2f})",
        fused_ms=fused,
        steps_ms=steps,
        fused_ratio=steps.median / fused.median,
    )
    moved = sum(tensor.nbytes for tensor in (*inputs, output))
    rate = copy_rate(args.device)
    report.figures(
        "reading the inputs and writing the output once takes {copy_ms:.2f} ms at the rate of "
        "copies measured here, {copy_gb_per_s:.1f} GB/s",
        copy_ms=moved / 1e6 / rate,
        copy_gb_per_s=rate,
    )
    print(
        "errors against float64, relative to the largest value: the largest of the output, the mean"
    )
    print("of the gradients (that of a location jumps where a sample passes a pixel's centre)")


def measure_projected(
    args: argparse.Namespace, shapes: list[tuple[int, int]], inputs: list[Tensor]
) -> tuple[Timing, Timing]:
    """From offsets and logits to the output: the fused operator, and its steps."""
    value, locations, weights = (tensor.detach() for tensor in inputs)
    reference = locations.mean((0, 2, 3, 4))  # (Q, 2)
    sizes = torch.tensor([(w, h) for h, w in shapes], device=value.device)[:, None]
    offsets, logits = (locations - reference[:, None, None, None]) * sizes, weights.log()

    def in_steps() -> Tensor:
        places = reference[:, None, None, None] + offsets / sizes
        return ms_deform_attn(
            value, shapes, places, logits.flatten(3).softmax(-1).view(logits.shape)
        )

    def fused() -> Tensor:
        return ms_deform_attn_fused(value, shapes, reference, offsets, logits)

    return measure_op(fused, args), measure_op(in_steps, args)


def measure_op(run: Callable[[], object], args: argparse.Namespace) -> Timing:
    if torch.device(args.device).type != "cuda":
        return measure(run, args.repeats, args.device)
    run()  # what is done once is not recorded
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for _ in range(CALLS_IN_GRAPH):
            run()
    times = measure(graph.replay, args.repeats, args.device)
    return Timing(*(time / CALLS_IN_GRAPH for time in times))


def relative_errors(ours: Tensor, true: Tensor) -> Tensor:
    return (ours.double() - true).abs() / true.abs().max()


def op_inputs(args: argparse.Namespace) -> tuple[list[tuple[int, int]], list[Tensor]]:
    """Level shapes; value, locations and weights of an encoder layer, samples near queries."""
    torch.manual_seed(0)
    height, width = args.size
    shapes = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
    pixels = sum(h * w for h, w in shapes)
    value = torch.randn(args.batch, pixels, HEADS, CHANNELS)
    centres = torch.cat(
        [
            torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w)
            for h, w in shapes
        ]
    ).flip(-1)
    sizes = torch.tensor([(w, h) for h, w in shapes])
    offsets = 2 * torch.randn(args.batch, pixels, HEADS, len(shapes), POINTS, 2)
    locations = centres[:, None, None, None] + offsets / sizes[:, None]
    weights = torch.randn(args.batch, pixels, HEADS, len(shapes) * POINTS).softmax(-1)
    weights = weights.unflatten(-1, (len(shapes), POINTS))
    dtype = getattr(torch, args.dtype)
    computed = torch.promote_types(dtype, torch.float32)
    tensors = (value.to(dtype), locations.to(computed), weights.to(computed))
    return shapes, [tensor.to(args.device).requires_grad_() for tensor in tensors]


def detached(value: Tensor, shapes: object, *others: Tensor) -> tuple:
    return (value.detach(), shapes, *(tensor.detach() for tensor in others))


def gradients(
    function: Callable, inputs: list[Tensor], shapes: list[tuple[int, int]], grad: Tensor
) -> list[Tensor]:
    """The output and the gradients of all inputs."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    output = function(inputs[0], shapes, *inputs[1:])
    return [output, *torch.autograd.grad(output, inputs, grad)]
