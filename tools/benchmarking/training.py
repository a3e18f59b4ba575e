"""``benchmark.py training``: one step, from pictures in memory to the optimizer's update.

Random weights, pictures and ellipses as objects. Beside it, where transformers is installed,
Hugging Face's model and losses with the same weights and objects. Each runs in a process of its
own, so that the peaks of memory are its own.
"""

import argparse
import multiprocessing
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor, nn

from mask2former import load_config
from mask2former.config import adapt_to_machine
from mask2former.errors import positive
from mask2former.solver import build_optimizer

from . import Report, Timing, add_common_arguments
from .huggingface import transformers_model
from .measuring import clipped_adamw, peak_memory, training_steps
from .published import add_argument, run_published


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--size", type=positive, nargs=2, default=(512, 512), metavar=("H", "W"))
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--objects", type=positive, default=20, help="in a picture")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="autocast of the forward pass, of both models",
    )
    parser.add_argument("--no-huggingface", action="store_true", help="leave out the comparison")
    add_argument(parser)
    add_common_arguments(parser, repeats=3)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of the config")


def run(args: argparse.Namespace, report: Report) -> None:
    cfg = load_config(args.config_file, args.opts)
    adapt_to_machine(cfg)
    kinds = ["here"]
    kinds += [] if args.no_huggingface else ["transformers"]
    kinds += ["published"] if args.published else []
    results = {}
    for kind in kinds:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            result = pool.apply(measure_steps, (kind, cfg, args))
        if result is not None:
            results[kind] = result
    height, width = args.size
    report.machine(cfg.MODEL.DEVICE)
    print(
        f"{args.config_file}, training step, {args.batch} x {height} x {width}, {args.objects} "
        f"objects in a picture, {args.precision}; medians of {args.repeats}"
    )
    rows = []
    for name in results["here"]:
        row = {kind: result[name] for kind, result in results.items()}
        numbers = {k: x.median if isinstance(x, Timing) else x for k, x in row.items()}
        ratios = {f"{k} / here": x / numbers["here"] for k, x in numbers.items() if k != "here"}
        rows.append({"": name} | row | ratios)
    report.table("training", rows)


def measure_steps(
    kind: str, cfg: CfgNode, args: argparse.Namespace
) -> dict[str, Timing | float] | None:
    """Times, peak memory and the loss of the first step, of the model ``kind``."""
    if args.threads:
        torch.set_num_threads(args.threads)
    if kind == "here":
        adapt_to_machine(cfg)  # as in tools/train_net.py: it is about this process's memory, too
    torch.manual_seed(0)
    device = cfg.MODEL.DEVICE
    model = build_model(cfg).train()
    inputs = random_pictures(cfg, args)
    if kind == "published":
        job = {"repeats": args.repeats, "threads": args.threads, "precision": args.precision}
        theirs = run_published(
            args.published, cfg, model.state_dict(), inputs, training=True, **job
        )
        print(f"published: {theirs.pop('op')}")
        return {k: Timing.of(x) if isinstance(x, list) else x for k, x in theirs.items()}
    if kind == "transformers":
        # Taken from the model here, for the weights to be the same.
        mean, std = model.pixel_mean, model.pixel_std
        model = transformers_model(cfg, model.state_dict(), device)
        if model is None:
            return None
        step = TransformersStep(model, inputs, mean, std)
        optimizer = clipped_adamw(model)
    else:
        step = lambda: sum(model(inputs).values())  # noqa: E731
        optimizer = build_optimizer(cfg, model)
    how = {"repeats": args.repeats, "device": device, "precision": args.precision}
    spent, first_loss = training_steps(step, optimizer, **how)
    timings = {name: Timing.of(times) for name, times in spent.items()}
    return timings | {"peak GB": peak_memory(device), "first loss": first_loss}


def random_pictures(cfg: CfgNode, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Pictures as mappers give them, with ellipses for objects."""
    height, width = args.size
    y = torch.arange(height)[:, None]
    x = torch.arange(width)
    pictures = []
    for _ in range(args.batch):
        centre = torch.rand(args.objects, 2, 1, 1) * torch.tensor([height, width])[:, None, None]
        radius = (0.03 + 0.2 * torch.rand(args.objects, 2, 1, 1)) * min(args.size)
        dy, dx = (y - centre[:, 0]) / radius[:, 0], (x - centre[:, 1]) / radius[:, 1]
        instances = Instances((height, width))
        instances.gt_masks = dy**2 + dx**2 < 1
        classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        instances.gt_classes = torch.randint(classes, (args.objects,))
        image = (torch.rand(3, height, width) * 255).byte()
        pictures.append({"image": image, "instances": instances})
    return pictures


class TransformersStep:
    """The loss of Hugging Face's model for the pictures of this one."""

    def __init__(
        self, model: nn.Module, pictures: list[dict[str, Any]], mean: Tensor, std: Tensor
    ) -> None:
        self.model = model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()  # frozen, as it is here
        self.images = torch.stack([x["image"] for x in pictures]).to(mean)
        self.images = (self.images - mean) / std
        device = mean.device
        self.masks = [x["instances"].gt_masks.float().to(device) for x in pictures]
        self.classes = [x["instances"].gt_classes.to(device) for x in pictures]

    def __call__(self) -> Tensor:
        return self.model(self.images, mask_labels=self.masks, class_labels=self.classes).loss
