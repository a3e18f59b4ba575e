#!/usr/bin/env python
"""Evaluate a checkpoint, or saved predictions without a model.

    python tools/eval.py checkpoint --config-file X.yaml --weights model_final.pth [KEY VALUE ...]
    python tools/eval.py panoptic --gt panoptic_val2017.json --pred predictions.json
    python tools/eval.py instances --gt instances_val2017.json --pred results.json

Every form takes ``--output FILE.json`` to keep the figures with all their digits.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from tabulate import tabulate

from mask2former.errors import DatasetError, report_user_errors
from mask2former.evaluation.instance import average_precision
from mask2former.evaluation.panoptic import panoptic_quality, pq_table


def main() -> None:
    args = parse_arguments()
    results = args.run(args)
    if args.output:
        from mask2former.trainer import save_results

        args.output.parent.mkdir(parents=True, exist_ok=True)
        save_results(results, args.output)
        print(f"figures saved to {args.output}")


def evaluate_checkpoint(args: argparse.Namespace) -> dict[str, Any]:
    # The model is imported only where there is one to run.
    from mask2former.trainer import evaluate_checkpoint

    return evaluate_checkpoint(args.config_file, args.weights, args.opts, args.output_dir)


def evaluate_panoptic(args: argparse.Namespace) -> dict[str, Any]:
    gt_folder = args.gt_folder or png_folder(args.gt)
    pred_folder = args.pred_folder or png_folder(args.pred)
    result = panoptic_quality(args.gt, args.pred, gt_folder, pred_folder)
    print(pq_table(result))
    return result


def evaluate_instances(args: argparse.Namespace) -> dict[str, Any]:
    result = average_precision(args.gt, args.pred, iou_type=args.iou_type)
    rows = [(name, 100 * value) for name, value in result.items()]
    print(tabulate(rows, headers=[args.iou_type, "%"], floatfmt=".4f"))
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
    forms = parser.add_subparsers(required=True, metavar="checkpoint | panoptic | instances")
    checkpoint = forms.add_parser("checkpoint", help="run a model on DATASETS.TEST and score it")
    checkpoint.set_defaults(run=evaluate_checkpoint)
    checkpoint.add_argument("--config-file", required=True)
    checkpoint.add_argument("--weights", required=True)
    checkpoint.add_argument(
        "--output-dir", default=os.path.join("output", "eval"), help="log and predictions"
    )
    checkpoint.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides")

    panoptic = forms.add_parser("panoptic", help="PQ of a COCO panoptic json and its PNG files")
    panoptic.set_defaults(run=evaluate_panoptic)
    panoptic.add_argument("--gt-folder", type=Path, help="default: beside the json")
    panoptic.add_argument("--pred-folder", type=Path, help="default: beside the json")

    instances = forms.add_parser("instances", help="AP of a COCO results json")
    instances.set_defaults(run=evaluate_instances)
    instances.add_argument("--iou-type", choices=("segm", "bbox"), default="segm")
    for form in (panoptic, instances):
        form.add_argument("--gt", type=Path, required=True)
        form.add_argument("--pred", type=Path, required=True)
    for form in (checkpoint, panoptic, instances):
        form.add_argument("--output", type=Path, metavar="FILE.json")
    return parser.parse_args()


if __name__ == "__main__":
    with report_user_errors():
        main()
