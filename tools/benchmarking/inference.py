"""``benchmark.py inference``: a model on one picture size, from pictures to segmentations.

Random weights, with a class head that is sure of a fifth of the queries, as trained ones are.
Beside it, where transformers is installed, Hugging Face's model with the same weights, and the time
that the machine would need for the matrix products and convolutions alone.
"""

import argparse
import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mask2former import load_config
from mask2former.config import adapt_to_machine
from mask2former.errors import positive
from mask2former.modeling.fusion import prepare_for_inference

from . import add_common_arguments, describe_machine, measure, peak_memory, synchronize
from .huggingface import transformers_model

SURE_QUERIES = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--size", type=positive, nargs=2, default=(800, 1216), metavar=("H", "W"))
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--no-huggingface", action="store_true", help="leave out the comparison")
    add_common_arguments(parser, repeats=5)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of the config")


@torch.no_grad()
def run(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    adapt_to_machine(cfg)
    device = cfg.MODEL.DEVICE
    height, width = args.size
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # nothing else in its memory
        memory = pool.apply(memory_of_inference, (cfg, args))

    model, inputs = model_and_inputs(cfg, args)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prepare_for_inference(model, cfg.TEST.COMPILE)
    times = parts_of(model, inputs, args.repeats, device)
    ideal = time_of_products(model, inputs, device)

    print(describe_machine(device))
    print(f"{args.config_file}, {args.batch} x {height} x {width}; medians of {args.repeats}")
    rows = [[name, ms] for name, ms in times.items()]
    rows.append(["products and convolutions alone", ideal])
    print(tabulate(rows, headers=["", "ms"], floatfmt=".0f"))
    print(f"share of the roofline {ideal / times['total']:.2f}, peak memory {memory:.2f} GB")
    if args.no_huggingface:
        return
    outputs = model.sem_seg_head(model.backbone(normalised(model, inputs)))
    compare(cfg, state, normalised(model, inputs), outputs, times, args)


def model_and_inputs(
    cfg: CfgNode, args: argparse.Namespace
) -> tuple[nn.Module, list[dict[str, Any]]]:
    torch.manual_seed(0)
    height, width = args.size
    picture = {"image": (torch.rand(3, height, width) * 255).byte()}
    inputs = [picture | {"height": height, "width": width}] * args.batch
    model = build_model(cfg).eval().requires_grad_(False)  # the counter follows gradients
    make_sure(model, inputs)
    return model, inputs


@torch.no_grad()
def memory_of_inference(cfg: CfgNode, args: argparse.Namespace) -> float:
    """Peak gigabytes of a process that does nothing else."""
    adapt_to_machine(cfg)
    model, inputs = model_and_inputs(cfg, args)
    prepare_for_inference(model, cfg.TEST.COMPILE)
    for _ in range(2):
        model(inputs)
    return peak_memory(cfg.MODEL.DEVICE)


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
) -> dict[str, float]:
    """Median milliseconds of the parts, and of all of it."""
    parts = {
        "backbone": model.backbone,
        "pixel decoder": model.sem_seg_head.pixel_decoder,
        "transformer decoder": model.sem_seg_head.predictor,
    }
    spent: dict[str, list[float]] = {name: [] for name in parts}
    with contextlib.ExitStack() as stack:
        for name, part in parts.items():
            stack.enter_context(timed(part, spent[name], device))
        total = measure(lambda: model(inputs), repeats, device)
    medians = {name: sorted(times[2:])[repeats // 2] for name, times in spent.items()}
    medians["post-processing"] = total - sum(medians.values())
    return medians | {"total": total}


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


def time_of_products(model: nn.Module, inputs: list[dict[str, Any]], device: str) -> float:
    """Milliseconds that the products and convolutions take at the rates measured here."""
    counter = FlopCounterMode(display=False)
    with counter:
        model(inputs)
    counts = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    convolutions = sum(flops for op, flops in counts.items() if "convolution" in op)
    products = sum(counts.values()) - convolutions

    matrix = torch.randn(2048, 2048, device=device)
    conv = nn.Conv2d(256, 256, 3, padding=1).to(device, memory_format=torch.channels_last)
    maps = torch.randn(1, 256, 128, 128, device=device).to(memory_format=torch.channels_last)
    rates = [
        2 * 2048**3 / measure(lambda: matrix @ matrix, 5, device),
        2 * 256**2 * 9 * 128**2 / measure(lambda: conv(maps), 5, device),
    ]
    print(f"measured here: {rates[0] / 1e6:.0f} GFLOP/s in products, {rates[1] / 1e6:.0f} in 3x3")
    return products / rates[0] + convolutions / rates[1]


def compare(
    cfg: CfgNode,
    state: dict[str, Tensor],
    images: Tensor,
    outputs: dict[str, Tensor],
    times: dict[str, float],
    args: argparse.Namespace,
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
    ours = times["total"] - times["post-processing"]
    rows = [
        ["forward", ours, forward, forward / ours],
        [
            "with post-processing",
            times["total"],
            forward + after,
            (forward + after) / times["total"],
        ],
    ]
    headers = ["", "ms", "transformers ms", "ratio"]
    print(tabulate(rows, headers=headers, floatfmt=("", ".0f", ".0f", ".2f")))
    print(f"(transformers {transformers.__version__} makes one segmentation: {post.__name__})")
    for name, mine, other in (
        ("class", outputs["pred_logits"], result.class_queries_logits),
        ("mask", outputs["pred_masks"], result.masks_queries_logits),
    ):
        difference = (mine - other).abs().max() / other.abs().max()
        print(f"largest difference of {name} logits: {difference:.1e} of the largest")
