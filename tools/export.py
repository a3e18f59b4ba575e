#!/usr/bin/env python
"""Export a model for pictures of any size, post-processing included, and verify the file.

    python tools/export.py --config-file X.yaml --weights model_final.pth --task panoptic \\
        --format onnx -o model.onnx [KEY VALUE ...]

--task panoptic, instance or semantic, if the config switches it on, or raw: class and mask logits.
--format onnx: standard operators only; pt2: torch.export. docs/EXPORT.md describes inputs and
outputs; tools/onnx_example.py runs an ONNX file.

The file is read back and run beside the model on pictures of several sizes. The exit status is 1 if
more than 0.1 % of an output differs, or logits or scores by more than 0.1 %.
"""

import argparse
import re
import sys
import time
import warnings
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate

from mask2former.checkpoint import load_weights
from mask2former.checkpoint.classes import know_classes
from mask2former.config import adapt_to_machine, read_config
from mask2former.errors import ConfigError, UserError, positive, report_user_errors
from mask2former.inference import export, export_verification
from mask2former.modeling import MaskFormer
from mask2former.modeling.fusion import prepare_for_inference

FORMATS = ("onnx", "pt2")


def main() -> int:
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    args = parse_arguments()
    check_arguments(args)
    cfg = read_config(args.config_file, args.opts)
    cfg.MODEL.WEIGHTS = args.weights or ""
    know_classes(cfg)
    adapt_to_machine(cfg)
    if args.format == "onnx":
        cfg.MODEL.DEVICE = "cpu"
    export.check_task(cfg, args.task)
    metadata = export.metadata_for_export(cfg, args.task) | {"config": args.config_file}
    model = build(cfg, args)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    print(f"{args.output}: {args.task}, {write(model, metadata, args)}")
    return verify(model, args) if args.verify else 0


def check_arguments(args: argparse.Namespace) -> None:
    if args.output.suffix != f".{args.format}":
        raise UserError(f"-o {args.output}: --format {args.format} is written as .{args.format}")
    if args.compiled_op and args.format == "onnx":
        raise UserError("--compiled-op: ONNX cannot hold the operator; --format pt2 can")
    if args.opset < export.LEAST_OPSET:
        raise UserError(f"--opset {args.opset}: {export.LEAST_OPSET} is the least")
    if (args.weights is None) == (args.random_weights is None):
        raise UserError("name the checkpoint: --weights model_final.pth (or --random-weights SEED)")
    if args.format == "onnx":
        export.require("onnx", "onnxscript", *(["onnxruntime"] if args.verify else []))


def build(cfg: CfgNode, args: argparse.Namespace) -> MaskFormer:
    """The model with its weights, or with random ones that are sure of their classes."""
    torch.manual_seed(args.random_weights or 0)
    model = build_model(cfg).eval()
    if not isinstance(model, MaskFormer):
        raise ConfigError(
            f"{args.config_file}: MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; "
            "only MaskFormer can be exported"
        )
    if args.weights is not None:
        load_weights(model, args.weights, complete=True)
    else:
        with torch.no_grad():
            model.sem_seg_head.predictor.class_embed.weight.mul_(20)
    prepare_for_inference(model)
    return model


def write(model: MaskFormer, metadata: dict[str, str], args: argparse.Namespace) -> str:
    """Write the file; its size and the time that took, in words."""
    start = time.perf_counter()
    program = export.export_program(model, args.task, compiled_op=args.compiled_op)
    if args.format == "onnx":
        export.save_onnx(program, args.output, metadata, task=args.task, opset=args.opset)
    else:
        export.save_program(program, args.output, metadata)
    # Weights of more than 2 GiB stand in a file of their own, model.onnx.data.
    size = sum(path.stat().st_size for path in args.output.parent.glob(f"{args.output.name}*"))
    return f"{size / 2**20:.1f} MiB, written in {time.perf_counter() - start:.0f} s"


def verify(model: MaskFormer, args: argparse.Namespace) -> int:
    """Print differences and times; the exit status."""
    read = {
        "onnx": export_verification.onnx_runner,
        "pt2": export_verification.program_runner,
    }[args.format]
    run = read(args.output)
    shapes = [(batch, *size) for batch in args.batches for size in args.sizes]
    rows, agree = [], True
    for result in export_verification.compare(model, args.task, run, shapes):
        batch, _, height, width = result.shape
        differences = [f"{value:.1e}" for value in result.differences.values()]
        seconds, eager = result.seconds
        times = [f"{value:.2f}" for value in (seconds, eager, eager / seconds)]
        rows.append([batch, f"{height} x {width}", result.found, *differences, *times])
        agree &= result.agrees
    found = {"panoptic": "segments", "instance": "instances", "semantic": "labels"}
    headers = ["batch", "size", found.get(args.task, "queries")]
    headers += [f"{name} differ" for name in result.differences]
    headers += [f"{args.format} s", "model s", "speed-up"]
    print(tabulate(rows, headers=headers, disable_numparse=True, stralign="right"))
    if not agree:
        tolerance = export_verification.TOLERANCE
        print(
            f"error: {args.output} differs from the model by more than {tolerance:g}",
            file=sys.stderr,
        )
    return 0 if agree else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", help="checkpoint: a file or a zoo:// name")
    parser.add_argument(
        "--random-weights", type=int, metavar="SEED", help="instead, to measure a model without any"
    )
    parser.add_argument("--task", choices=tuple(export.OUTPUTS), required=True)
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument(
        "--opset", type=int, default=export.OPSET, help="of ONNX (default: %(default)s)"
    )
    parser.add_argument(
        "--compiled-op",
        action="store_true",
        help="pt2: keep the compiled deformable attention; to load, import mask2former_ops first",
    )
    parser.add_argument("--no-verify", dest="verify", action="store_false")
    parser.add_argument("--batches", type=positive, nargs="+", default=[1, 3], metavar="N")
    parser.add_argument(
        "--sizes",
        type=size,
        nargs="+",
        default=[(256, 320), (384, 512), (512, 683)],
        metavar="HxW",
        help="of the pictures to verify with (default: 256x320 384x512 512x683)",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the config")
    return parser.parse_args()


def size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or min(map(int, match.groups())) < export.LEAST_SIDE:
        raise argparse.ArgumentTypeError(
            f"{text}: write 480x640, height first; {export.LEAST_SIDE} is the least"
        )
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    with report_user_errors():
        sys.exit(main())
