"""``benchmark.py inference``: a model on one picture size, from pictures to segmentations.

Random weights, with a class head that is sure of a fifth of the queries, as trained ones are.
Beside it, where transformers is installed, Hugging Face's model with the same weights, followed
by its own post-processing and by the published order of it, which makes the same segmentations; the
published code, from a checkout of it; and the time that torch's matrix products and convolutions
would need at the machine's rates.
"""

import argparse
import contextlib
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mask2former import load_config
from mask2former.checkpoint import load_weights
from mask2former.config import adapt_to_machine
from mask2former.errors import positive
from mask2former.modeling.cuda_graphs import CudaGraphs
from mask2former.modeling.fusion import prepare_for_inference

from . import (
    Report,
    Timing,
    add_common_arguments,
    copy_rate,
    measure,
)
from .huggingface import transformers_model
from .measuring import peak_memory, synchronize
from .postprocessing import published_order
from .published import add_argument, run_published

SURE_QUERIES = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--size", type=positive, nargs=2, default=(800, 1216), metavar=("H", "W"))
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--no-huggingface", action="store_true", help="leave out the comparison")
    add_argument(parser)
    add_common_arguments(parser, repeats=5)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of the config")


@torch.no_grad()
def run(args: argparse.Namespace, report: Report) -> None:
    cfg = load_config(args.config_file, args.opts)
    adapt_to_machine(cfg)
    device = cfg.MODEL.DEVICE
    height, width = args.size
    on_gpu = torch.device(device).type == "cuda"
    model, inputs = model_and_inputs(cfg, args)
    state = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
    if not on_gpu:  # that of a process, which has to be its own
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, "weights.pth")
            torch.save({"model": state}, path)
            memory, low_memory = (
                memory_of_inference(cfg, args, path, low) for low in (False, True)
            )
    prepare_for_inference(model, cfg.TEST.COMPILE)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    times = parts_of(model, inputs, args.repeats, device)
    if on_gpu:
        memory = Memory(peak_memory(device), times["total"])

    report.machine(device)
    print(
        f"{args.config_file}, {args.batch} x {height} x {width}, {cfg.TEST.PRECISION}; "
        f"medians of {args.repeats}"
    )
    report.table("parts", [{"": name, "ms": ms} for name, ms in times.items()])
    report_roofline(model, inputs, times["total"], device, report)
    report.figures("peak memory {peak_gb:.2f} GB", peak_gb=memory.gigabytes)
    if not on_gpu:
        report.figures(
            "with TEST.LOW_MEMORY {low_peak_gb:.2f} GB, {low_ms} ms",
            low_peak_gb=low_memory.gigabytes,
            low_ms=low_memory.ms,
        )
    images = normalised(model, inputs)
    outputs = exact = model.query_outputs(images)
    if model.test_precision != torch.float32:
        exact_model = build_model(cfg).eval()
        exact_model.load_state_dict(state)
        exact = exact_model.sem_seg_head(exact_model.backbone(images))
        report_drift(outputs, exact, report)
    if not args.no_huggingface:
        compare(cfg, model, state, images, exact, times, args, report)
    if args.published:
        compare_published(cfg, state, inputs, exact, times, memory, args, report)


def model_and_inputs(
    cfg: CfgNode, args: argparse.Namespace
) -> tuple[nn.Module, list[dict[str, Any]]]:
    torch.manual_seed(0)
    inputs = random_inputs(args)
    model = build_model(cfg).eval().requires_grad_(False)  # the counter follows gradients
    make_sure(model, inputs)
    return model, inputs


def random_inputs(args: argparse.Namespace) -> list[dict[str, Any]]:
    height, width = args.size
    picture = {"image": (torch.rand(3, height, width) * 255).byte()}
    return [picture | {"height": height, "width": width}] * args.batch


class Memory(NamedTuple):
    gigabytes: float  # at most
    ms: Timing


def memory_of_inference(cfg: CfgNode, args: argparse.Namespace, weights: Path, low: bool) -> Memory:
    """Of a process that loads the weights and does nothing else.

    Args:
        low: with ``TEST.LOW_MEMORY``; otherwise as the config has it.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TEST.LOW_MEMORY = cfg.TEST.LOW_MEMORY or low
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_memory_here, (cfg, args, weights))


@torch.no_grad()
def _memory_here(cfg: CfgNode, args: argparse.Namespace, weights: Path) -> Memory:
    adapt_to_machine(cfg)
    if args.threads:
        torch.set_num_threads(args.threads)
    model = build_model(cfg).eval().requires_grad_(False)
    load_weights(model, str(weights), complete=True)
    inputs = random_inputs(args)
    prepare_for_inference(model, cfg.TEST.COMPILE)
    ms = measure(lambda: model(inputs), args.repeats, cfg.MODEL.DEVICE)
    return Memory(peak_memory(cfg.MODEL.DEVICE), ms)


def make_sure(model: nn.Module, inputs: list[dict[str, Any]]) -> None:
    """Scale the class head until a share of the queries has one probable class, the rest none."""
    classes = model.sem_seg_head.predictor.class_embed
    logits = model.sem_seg_head(model.backbone(normalised(model, inputs)))["pred_logits"][0]
    margin = logits[:, :-1].amax(-1) - logits[:, -1]
    classes.bias[-1] += margin.quantile(1 - SURE_QUERIES)
    scale = 50 / margin.std()
    classes.weight *= scale
    classes.bias *= scale


def normalised(model: nn.Module, inputs: list[dict[str, Any]]) -> Tensor:
    images = torch.stack([x["image"].to(model.device) for x in inputs])
    images = (images - model.pixel_mean) / model.pixel_std
    divisor = max(model.size_divisibility, 1)
    height, width = images.shape[-2:]
    padding = (0, -width % divisor, 0, -height % divisor)
    images = nn.functional.pad(images, padding)
    return images.contiguous(memory_format=torch.channels_last)


def parts_of(
    model: nn.Module, inputs: list[dict[str, Any]], repeats: int, device: str
) -> dict[str, Timing]:
    """Milliseconds of the parts, and of all of it.

    What is recorded as a CUDA graph has no parts but the forward pass.
    """
    if isinstance(model.query_outputs, CudaGraphs):
        images = normalised(model, inputs)
        forward = measure(lambda: model.query_outputs(images), repeats, device)
        total = measure(lambda: model(inputs), repeats, device)
        after = (t - f for t, f in zip(total, forward, strict=True))
        return {"forward": forward, "post-processing": Timing(*after), "total": total}
    parts = {
        "backbone": model.backbone,
        "pixel decoder": model.sem_seg_head.pixel_decoder,
        "transformer decoder": model.sem_seg_head.predictor,
        "total": model,
    }
    spent: dict[str, list[float]] = {name: [] for name in parts}
    with contextlib.ExitStack() as stack:
        for name, part in parts.items():
            stack.enter_context(timed(part, spent[name], device))
        measure(lambda: model(inputs), repeats, device)
    total = spent.pop("total")
    spent["post-processing"] = [whole - sum(rest) for whole, *rest in zip(total, *spent.values())]
    spent["total"] = total
    return {name: Timing.of(times[2:]) for name, times in spent.items()}  # two to warm up


@contextlib.contextmanager
def timed(module: nn.Module, times: list[float], device: str) -> Iterator[None]:
    """Inside the block, ``times`` gets the milliseconds of every call of ``module``."""
    started = []
    before = module.register_forward_pre_hook(lambda *_: started.append(synchronize(device)))
    after = module.register_forward_hook(
        lambda *_: times.append(1000 * (synchronize(device) - started.pop()))
    )
    try:
        yield
    finally:
        before.remove()
        after.remove()


def report_roofline(
    model: nn.Module, inputs: list[dict[str, Any]], total: Timing, device: str, report: Report
) -> None:
    """How long products and convolutions take at the rates that are measured here, in the model's
    precision; and how long results would, were they copied.
    """
    if not computes_in(model.test_precision, device):
        print(f"no roofline: this machine has no instructions for {model.test_precision}")
        return
    counter = FlopCounterMode(display=False)
    with counter:
        results = model(inputs)
        if isinstance(model.query_outputs, CudaGraphs):  # of whose replay nothing is counted
            model.query_outputs.function(normalised(model, inputs))
    counts = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    convolutions = sum(flops for op, flops in counts.items() if "convolution" in op)
    products = sum(counts.values()) - convolutions

    like = {"device": device, "dtype": model.test_precision}
    matrix = torch.randn(2048, 2048, **like)
    conv = nn.Conv2d(256, 256, 3, padding=1).to(**like, memory_format=torch.channels_last)
    maps = torch.randn(1, 256, 128, 128, **like).to(memory_format=torch.channels_last)
    product_rate = 2 * 2048**3 / 1e6 / measure(lambda: matrix @ matrix, 5, device).median
    conv_rate = 2 * 256**2 * 9 * 128**2 / 1e6 / measure(lambda: conv(maps), 5, device).median
    rate = copy_rate(device)
    ideal = (products / product_rate + convolutions / conv_rate) / 1e6
    report.figures(
        "measured here: {gflop_per_s:.0f} GFLOP/s in products, {conv_gflop_per_s:.0f} in 3x3 "
        "convolutions, {copy_gb_per_s:.1f} GB/s in copies",
        gflop_per_s=product_rate,
        conv_gflop_per_s=conv_rate,
        copy_gb_per_s=rate,
    )
    report.figures(
        "at these rates, products and convolutions alone take {products_ms:.0f} ms: share of the "
        "roofline {roofline:.2f}; a copy of the results {results_ms:.0f} ms",
        products_ms=ideal,
        roofline=ideal / total.median,
        results_ms=2 * sum(map(bytes_of, results)) / 1e6 / rate,
    )


def computes_in(dtype: torch.dtype, device: str) -> bool:
    """Whether there are instructions for it; CPUs without them take minutes for large products."""
    if dtype == torch.float32 or torch.device(device).type != "cpu":
        return True
    name = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", None)
    return supported is not None and supported()


def bytes_of(result: Any) -> int:
    """Of the tensors in a nested result."""
    if isinstance(result, Tensor):
        return result.nbytes
    if isinstance(result, Instances):
        return bytes_of(result.get_fields())
    if isinstance(result, dict):
        return sum(map(bytes_of, result.values()))
    return sum(map(bytes_of, result)) if isinstance(result, list | tuple) else 0


def report_drift(outputs: dict[str, Tensor], exact: dict[str, Tensor], report: Report) -> None:
    """How far a lower precision moves the outputs of the same weights."""
    report.figures(
        "drift from float32: class logits {class_drift:.1e}, mask logits {mask_drift:.1e} of the "
        "largest; the same class for {same_classes:.3f} of the queries, the same side of 0 for "
        "{same_masks:.5f} of their mask pixels",
        class_drift=difference(outputs["pred_logits"], exact["pred_logits"]),
        mask_drift=difference(outputs["pred_masks"], exact["pred_masks"]),
        same_classes=same(outputs["pred_logits"].argmax(-1), exact["pred_logits"].argmax(-1)),
        same_masks=same(outputs["pred_masks"] > 0, exact["pred_masks"] > 0),
    )


def difference(one: Tensor, other: Tensor) -> float:
    return ((one.float() - other).abs().max() / other.abs().max()).item()


def same(one: Tensor, other: Tensor) -> float:
    return (one == other).float().mean().item()


def compare(
    cfg: CfgNode,
    model: nn.Module,
    state: dict[str, Tensor],
    images: Tensor,
    exact: dict[str, Tensor],
    times: dict[str, Timing],
    args: argparse.Namespace,
    report: Report,
) -> None:
    """Hugging Face's model of the same weights: times, and how far its logits are."""
    theirs = transformers_model(cfg, state, images.device)
    if theirs is None:
        return
    import transformers

    images = images.contiguous()
    result = theirs(images)
    processor = transformers.Mask2FormerImageProcessor()
    post: Callable[..., Any] = processor.post_process_panoptic_segmentation
    tasks = cfg.MODEL.MASK_FORMER.TEST
    if not tasks.PANOPTIC_ON:
        post = processor.post_process_semantic_segmentation
        if tasks.INSTANCE_ON:
            post = processor.post_process_instance_segmentation
    sizes = [tuple(args.size)] * args.batch
    device = cfg.MODEL.DEVICE
    forward = measure(lambda: theirs(images), args.repeats, device)
    after = measure(lambda: post(result, target_sizes=sizes), args.repeats, device)
    logits = (exact["pred_logits"], exact["pred_masks"])
    published = measure(
        lambda: [
            published_order(model, *pair, images.shape[-2:], args.size) for pair in zip(*logits)
        ],
        args.repeats,
        device,
    )
    total = times["total"].median
    rows = [
        ("forward", total - times["post-processing"].median, forward.median),
        ("and its post-processing", total, forward.median + after.median),
        ("and the published post-processing", total, forward.median + published.median),
    ]
    report.table(
        "transformers",
        [{"": n, "ms": ms, "transformers ms": other, "ratio": other / ms} for n, ms, other in rows],
        floats=("", ".0f", ".0f", ".2f"),
    )
    print(f"(transformers {transformers.__version__} makes one segmentation: {post.__name__})")
    report.figures(
        "in float32, class logits differ by {class_difference:.1e}, mask logits by "
        "{mask_difference:.1e} of the largest",
        class_difference=difference(exact["pred_logits"], result.class_queries_logits),
        mask_difference=difference(exact["pred_masks"], result.masks_queries_logits),
    )


def compare_published(
    cfg: CfgNode,
    state: dict[str, Tensor],
    inputs: list[dict[str, Any]],
    exact: dict[str, Tensor],
    times: dict[str, Timing],
    memory: Memory,
    args: argparse.Namespace,
    report: Report,
) -> None:
    """The published code with the same weights: times, memory, and how far its logits are."""
    job = {"repeats": args.repeats, "threads": args.threads, "precision": "float32"}
    theirs = run_published(args.published, cfg, state, inputs, training=False, **job)
    total = times["total"].median
    here = {
        "forward ms": total - times["post-processing"].median,
        "total ms": total,
        "peak GB": memory.gigabytes,
    }
    rows = []
    for name, value in here.items():
        published = theirs[name]
        if isinstance(published, list):
            published = Timing.of(published)
        ratio = (published.median if isinstance(published, Timing) else published) / value
        rows.append({"": name, "here": value, "published": published, "ratio": ratio})
    report.table("published", rows)
    report.figures(
        "(published: float32, {published_op}) in float32, class logits differ by "
        "{published_class_difference:.1e}, mask logits by {published_mask_difference:.1e} of the "
        "largest",
        published_op=theirs["op"],
        published_class_difference=difference(exact["pred_logits"], theirs["pred_logits"]),
        published_mask_difference=difference(exact["pred_masks"], theirs["pred_masks"]),
    )
