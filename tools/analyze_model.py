#!/usr/bin/env python
"""Parameters, FLOPs, activations and memory of models, from their shapes (docs/ANALYSIS.md).

    python tools/analyze_model.py X.yaml                 # module by module
    python tools/analyze_model.py X.yaml Y.yaml          # side by side; --depth adds the modules
    python tools/analyze_model.py X.yaml --size 1024 2048 --opts MODEL.RESNETS.DEPTH 101
    python tools/analyze_model.py X.yaml --pictures instances_val2017.json --num 100   # average

Backbone and head in inference, float32, up to the mask logits; nothing is computed and no weights
are read. FLOPs are multiply-adds, each counted once.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from tabulate import tabulate

from mask2former import load_config
from mask2former.analysis import Analysis, Cost, analyze, average, build_network, padded_size
from mask2former.errors import ConfigError, DatasetError, UserError, report_user_errors
from mask2former.evaluation.report import read_json, save_json

HEADERS = ["parameters M", "FLOPs G", "activations M"]


def main() -> None:
    args = parse_arguments()
    if min(*args.size, args.batch, args.num) < 1:
        raise UserError("--size, --batch and --num must be at least 1")
    depth = args.depth if args.depth is not None else 2 if len(args.configs) == 1 else 0
    results = {}
    for config in args.configs:
        result, sizes = analyze_config(config, args)
        results[config] = (result, describe(sizes))
        if depth:
            print(f"{config}\n{module_table(result.modules, depth)}\n")
    print(summary(results))
    print(
        f"batch {args.batch}; a multiply-add counts once; peak: tensors alive at once, without "
        "weights and input, float32"
    )
    if args.json:
        save_json({config: as_json(*result) for config, result in results.items()}, args.json)
        print(f"figures saved to {args.json}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(800, 1216), metavar=("H", "W"), help="of the pictures"
    )
    parser.add_argument(
        "--pictures",
        type=Path,
        metavar="COCO.json",
        help="instead: the sizes of these pictures, resized as for a test; costs are averages",
    )
    parser.add_argument("--num", type=int, default=100, help="first pictures of --pictures to take")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--depth",
        type=int,
        help="levels of modules to list (default: 2 for one config, 0 for several)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all figures of all modules")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides for every config"
    )
    return parser.parse_args()


def analyze_config(config: str, args: argparse.Namespace) -> tuple[Analysis, Counter]:
    """The analysis, and how many pictures have which size after padding."""
    cfg = load_config(config, args.opts)
    try:
        network = build_network(cfg)
    except ValueError as error:
        raise ConfigError(f"{config}: {error}") from error
    sizes = picture_sizes(args.pictures, args.num, cfg) if args.pictures else [tuple(args.size)]
    divisibility = cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY
    padded = Counter(padded_size(divisibility, network, size) for size in sizes)
    shape = (args.batch, len(cfg.MODEL.PIXEL_MEAN))
    analyses = [analyze(network, (*shape, *size)) for size in padded]
    return average(analyses, list(padded.values())), padded


def picture_sizes(path: Path, num: int, cfg: CfgNode) -> list[tuple[int, int]]:
    """(height, width) of the first pictures of a COCO json, after the resizing for a test."""
    shortest, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    try:
        sizes = [(image["height"], image["width"]) for image in read_json(path)["images"][:num]]
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{path}: expected a COCO json, with images of height, width") from error
    if not sizes:
        raise DatasetError(f"{path} has no images")
    if shortest == 0:  # Detectron2's way to switch resizing off
        return sizes
    return [ResizeShortestEdge.get_output_shape(*size, shortest, longest) for size in sizes]


def describe(sizes: Counter) -> str:
    if len(sizes) == 1:
        return "{} x {}".format(*next(iter(sizes)))
    return f"{len(sizes)} sizes"


def module_table(modules: dict[str, Cost], depth: int) -> str:
    """The modules with a cost, down to ``depth``; the head's parts stand beside the backbone."""
    rows = [
        [name, *figures(cost)]
        for name, cost in modules.items()
        if name and name.count(".") + 1 <= depth + name.startswith("sem_seg_head.") and any(cost)
    ]
    return tabulate(rows, headers=["module", *HEADERS], floatfmt=".2f")


def summary(results: dict[str, tuple[Analysis, str]]) -> str:
    rows = [
        [config, padded, *figures(result.modules[""]), result.peak_bytes / 2**20]
        for config, (result, padded) in results.items()
    ]
    return tabulate(rows, headers=["config", "padded", *HEADERS, "peak MiB"], floatfmt=".2f")


def figures(cost: Cost) -> list[float]:
    return [cost.parameters / 1e6, cost.flops / 1e9, cost.activations / 1e6]


def as_json(result: Analysis, padded: str) -> dict[str, Any]:
    return {
        "padded": padded,
        "peak_bytes": result.peak_bytes,
        **result.modules[""]._asdict(),
        "modules": {name: cost._asdict() for name, cost in result.modules.items() if name},
    }


if __name__ == "__main__":
    with report_user_errors():
        main()
