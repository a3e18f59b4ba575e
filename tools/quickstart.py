#!/usr/bin/env python
"""Make the sample data set, train a small model on it, evaluate it and draw what it sees.

Leaves in the output folder: ``metrics.json`` (Detectron2's results), ``loss.png``,
``predictions.png``, and in ``train/`` the checkpoints and logs of the training run.
"""

import argparse
import json
import shlex
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from PIL import Image
from tabulate import tabulate

from mask2former.data.panoptic_png import rgb2id
from mask2former.data.picture import read_label_map, read_picture
from mask2former.data.sample import generate_sample_dataset
from mask2former.errors import positive, report_user_errors
from mask2former.evaluation.report import save_json
from mask2former.inference import (
    Predictor,
    contact_sheet,
    draw_panoptic,
    draw_prediction,
    drawing_metadata,
)
from mask2former.inference.visualization import fit, fit_labels
from mask2former.trainer import Trainer, evaluate, setup

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    args = parse_arguments()
    output = args.output.resolve()
    started = time.perf_counter()
    generate_sample_dataset(output.parent / "sample")

    args.opts = [
        "DATASETS.CATALOG",
        str(output.parent / "sample" / "catalog.yaml"),
        "OUTPUT_DIR",
        str(output / "train"),
        *args.opts,
    ]
    cfg = setup(args)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    training_started = time.perf_counter()
    trainer.train()
    training_seconds = time.perf_counter() - training_started

    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(output / "train" / "model_final.pth")
    cfg.freeze()
    results = evaluate(cfg)
    save_json(results, output / "metrics.json")
    plot_losses(output / "train" / "metrics.json", output / "loss.png")
    draw_predictions(cfg, output / "predictions.png", num_pictures=args.pictures)

    print(results_table(results))
    print(
        f"training took {training_seconds / 60:.1f} minutes, everything "
        f"{(time.perf_counter() - started) / 60:.1f}"
    )
    for name in ("metrics.json", "loss.png", "predictions.png", "train/model_final.pth"):
        print(f"  {output / name}")
    command = ["python", "tools/demo.py", "--config-file", str(args.config_file)]
    command += ["--weights", cfg.MODEL.WEIGHTS, "--input", "YOUR_PICTURE.jpg"]
    command += ["--output", "my_output", "--opts", "DATASETS.CATALOG", cfg.DATASETS.CATALOG]
    print("next:", shlex.join(command))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default=str(ROOT / "configs" / "quickstart.yaml"))
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "quickstart")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.add_argument("--pictures", type=positive, default=8, help="how many to draw")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the config")
    return parser.parse_args()


def results_table(results: dict[str, dict[str, float]]) -> str:
    """The headline figures of Detectron2's results dict."""
    figures = [
        ("PQ", "panoptic_seg", "PQ"),
        ("PQ things", "panoptic_seg", "PQ_th"),
        ("PQ stuff", "panoptic_seg", "PQ_st"),
        ("AP mask", "segm", "AP"),
        ("AP50 mask", "segm", "AP50"),
        ("AP box", "bbox", "AP"),
        ("mIoU", "sem_seg", "mIoU"),
    ]
    rows = [(name, results[task][key]) for name, task, key in figures if task in results]
    return tabulate(rows, headers=["on sample_val", "%"], floatfmt=".1f", tablefmt="simple")


def plot_losses(log: Path, path: Path) -> None:
    """Draw the total loss and the last layer's three losses of a training log over iterations."""
    records = [json.loads(line) for line in log.read_text().splitlines()]
    figure, axes = plt.subplots(figsize=(7, 4))
    for name in ("total_loss", "loss_ce", "loss_mask", "loss_dice"):
        points = [(r["iteration"], r[name]) for r in records if name in r]
        axes.plot(*zip(*points), label=name)
    axes.set(
        xlabel="iteration", ylabel="loss (weighted)", yscale="log", title="Quickstart training"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_predictions(cfg: CfgNode, path: Path, *, num_pictures: int) -> None:
    """Save a sheet of pictures, their predictions and their ground truth, two to a row."""
    predictor = Predictor(cfg)
    name = cfg.DATASETS.TEST[0]
    metadata = drawing_metadata(predictor.metadata, predictor.categories)
    cells = [[]]
    for record in DatasetCatalog.get(name)[:num_pictures]:
        image = read_picture(record["file_name"], "RGB")
        predicted = draw_prediction(image, predictor(image, tasks=("panoptic",)), metadata)
        large = fit(image)
        ids = rgb2id(read_label_map(record["pan_seg_file_name"])).astype(np.int32)
        truth = draw_panoptic(
            large, fit_labels(ids, large.shape[:2]), record["segments_info"], metadata
        )
        if len(cells[-1]) == 6:
            cells.append([])
        cells[-1] += [large, predicted, truth]
    headings = ["picture", "prediction", "truth"] * (len(cells[0]) // 3)
    Image.fromarray(contact_sheet(cells, headings=headings)).save(path)


if __name__ == "__main__":
    with report_user_errors():
        main()
