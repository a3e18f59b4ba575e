#!/usr/bin/env python
"""Evaluate a checkpoint, or saved predictions without a model (docs/EVALUATION.md).

    python tools/eval.py checkpoint --config-file X.yaml --weights model_final.pth [KEY VALUE ...]
    python tools/eval.py panoptic --gt panoptic_val2017.json --pred predictions.json
    python tools/eval.py instances --gt instances_val2017.json --pred results.json
    python tools/eval.py semantic --gt labels/val --pred predicted --num-classes 150 [--pq]
    python tools/eval.py masks --description masks.json

Every form takes ``--boundary`` for the boundary metrics and ``--output FILE.json`` to keep the
figures with all their digits.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from mask2former.errors import ConfigError, DatasetError, report_user_errors
from mask2former.evaluation.instance import ap_table, average_precision
from mask2former.evaluation.masks import panoptic_quality_of_masks
from mask2former.evaluation.panoptic import panoptic_quality, pq_table
from mask2former.evaluation.report import save_json
from mask2former.evaluation.semantic import count_folders, quality_of_classes, semantic_table


def main() -> None:
    args = parse_arguments()
    results = args.run(args)
    if args.output:
        save_json(results, args.output)
        print(f"figures saved to {args.output}")


def evaluate_checkpoint(args: argparse.Namespace) -> dict[str, Any]:
    for key, option in (("MODEL.WEIGHTS", "--weights"), ("OUTPUT_DIR", "--output-dir")):
        if key in args.opts[::2]:
            raise ConfigError(f"{key} among the overrides has no effect; use {option} instead")
    # The model is imported only where there is one to run.
    from mask2former.trainer import evaluate_checkpoint

    return evaluate_checkpoint(
        args.config_file, args.weights, args.opts, args.output_dir, boundary=args.boundary
    )


def evaluate_panoptic(args: argparse.Namespace) -> dict[str, Any]:
    gt_folder = args.gt_folder or png_folder(args.gt)
    pred_folder = args.pred_folder or png_folder(args.pred)
    result = panoptic_quality(args.gt, args.pred, gt_folder, pred_folder, boundary=args.boundary)
    print(pq_table(result, per_class=args.per_class))
    return result


def evaluate_instances(args: argparse.Namespace) -> dict[str, Any]:
    result = average_precision(args.gt, args.pred, iou_type=args.iou_type)
    print(ap_table(result, args.iou_type, per_class=args.per_class))
    if args.boundary:
        result["boundary"] = average_precision(args.gt, args.pred, iou_type="boundary")
        print("\n" + ap_table(result["boundary"], "boundary", per_class=args.per_class))
    return result


def evaluate_semantic(args: argparse.Namespace) -> dict[str, Any]:
    counts = count_folders(
        args.gt,
        args.pred,
        num_classes=args.num_classes,
        ignore=args.ignore,
        boundary=args.boundary,
    )
    names = [str(i) for i in range(args.num_classes)]
    result = counts.figures(names)
    print(semantic_table(result, per_class=args.per_class))
    if args.pq:
        result["pq"] = quality_of_classes(counts, names)
        print("\nEach class of a picture as one segment:")
        print(pq_table(result["pq"], per_class=args.per_class))
    return result


def evaluate_masks(args: argparse.Namespace) -> dict[str, Any]:
    result = panoptic_quality_of_masks(args.description, boundary=args.boundary)
    print(pq_table(result, per_class=args.per_class))
    return result


def png_folder(json_path: Path) -> Path:
    """The folder of a panoptic json's PNG files: named like it, or ``panoptic_png`` beside it.

    Raises:
        DatasetError: neither exists.
    """
    candidates = [json_path.with_suffix(""), json_path.parent / "panoptic_png"]
    for folder in candidates:
        if folder.is_dir():
            return folder
    if not json_path.is_file():
        raise DatasetError(f"{json_path} does not exist")
    raise DatasetError(
        f"the PNG files of {json_path} are neither in {candidates[0]} nor in {candidates[1]}; "
        "name their folder with --gt-folder or --pred-folder"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--output", type=Path, metavar="FILE.json")
    common.add_argument("--boundary", action="store_true", help="boundary metrics")
    files = argparse.ArgumentParser(add_help=False, parents=[common])
    files.add_argument("--per-class", action="store_true", help="print every class, too")
    pair = argparse.ArgumentParser(add_help=False, parents=[files])
    pair.add_argument("--gt", type=Path, required=True)
    pair.add_argument("--pred", type=Path, required=True)
    forms = parser.add_subparsers(
        required=True, metavar="checkpoint | panoptic | instances | semantic | masks"
    )

    checkpoint = forms.add_parser(
        "checkpoint", help="run a model on DATASETS.TEST and score it", parents=[common]
    )
    checkpoint.set_defaults(run=evaluate_checkpoint)
    checkpoint.add_argument(
        "--config-file", required=True, help="of the model; its DATASETS.TEST counts"
    )
    checkpoint.add_argument("--weights", required=True, help="a file, or a zoo:// name")
    checkpoint.add_argument(
        "--output-dir",
        default=os.path.join("output", "eval"),
        help="log and predictions (default: output/eval)",
    )
    checkpoint.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides")

    panoptic = forms.add_parser(
        "panoptic", help="PQ of a COCO panoptic json and its PNG files", parents=[pair]
    )
    panoptic.set_defaults(run=evaluate_panoptic)
    panoptic.add_argument("--gt-folder", type=Path, help="default: beside the json")
    panoptic.add_argument("--pred-folder", type=Path, help="default: beside the json")

    instances = forms.add_parser("instances", help="AP of a COCO results json", parents=[pair])
    instances.set_defaults(run=evaluate_instances)
    instances.add_argument("--iou-type", choices=("segm", "bbox"), default="segm")

    semantic = forms.add_parser("semantic", help="IoU of two folders of label maps", parents=[pair])
    semantic.set_defaults(run=evaluate_semantic)
    semantic.add_argument("--num-classes", type=int, required=True)
    semantic.add_argument("--ignore", type=int, default=255, help="value of ignored pixels")
    semantic.add_argument(
        "--pq", action="store_true", help="PQ, too, with each class of a picture as one segment"
    )

    masks = forms.add_parser(
        "masks", help="PQ of class and instance masks, listed in a json", parents=[files]
    )
    masks.set_defaults(run=evaluate_masks)
    masks.add_argument("--description", type=Path, required=True, help="docs/EVALUATION.md")
    return parser.parse_args()


if __name__ == "__main__":
    with report_user_errors():
        main()
