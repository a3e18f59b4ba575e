"""``benchmark.py evaluation``: figures from files of predictions, against the tools of the field.

Random pictures of rectangles and predictions that are a little off, as panoptic PNGs and as
instances. Panoptic quality against panopticapi, where that is installed; average precision against
pycocotools.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import trange

from mask2former.data.panoptic_png import id2rgb
from mask2former.errors import positive
from mask2former.evaluation.instance import average_precision
from mask2former.evaluation.panoptic import panoptic_quality

from . import Report, add_common_arguments

NUM_CLASSES = 80
SIDES = ("truth", "prediction")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pictures", type=positive, default=500)
    parser.add_argument("--size", type=positive, nargs=2, default=(480, 640), metavar=("H", "W"))
    parser.add_argument("--objects", type=positive, default=20, help="in a picture")
    add_common_arguments(parser, repeats=None)


def run(args: argparse.Namespace, report: Report) -> None:
    report.machine()
    height, width = args.size
    print(f"{args.pictures} x {height} x {width}, {args.objects} objects in a picture")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder, args)
        rows = [compare_instances(folder, kind) for kind in ("segm", "bbox")]
        rows.insert(0, compare_panoptic(folder))
    report.table("evaluation", rows, floats=("", ".2f", ".2f", ".1f", ".1e"))


def write_files(folder: Path, args: argparse.Namespace) -> None:
    """``truth`` and ``prediction``: a folder of panoptic PNGs, its json, and instances."""
    rng = np.random.default_rng(0)
    height, width = args.size
    categories = [{"id": i, "name": f"class {i}", "isthing": 1} for i in range(1, NUM_CLASSES + 1)]
    images = [
        {"id": i, "file_name": f"{i}.jpg", "height": height, "width": width}
        for i in range(args.pictures)
    ]
    panoptic: dict[str, list[Any]] = {side: [] for side in SIDES}
    instances: dict[str, list[Any]] = {side: [] for side in SIDES}
    for side in SIDES:
        (folder / side).mkdir()
    for image in trange(args.pictures, desc="pictures", leave=False):
        boxes = rng.integers(0, [width - 40, height - 40, 0, 0], (args.objects, 4), endpoint=True)
        boxes[:, 2:] = boxes[:, :2] + rng.integers(20, 200, (args.objects, 2))
        classes = rng.integers(1, NUM_CLASSES, args.objects, endpoint=True)
        for side in SIDES:
            if side == "prediction":
                boxes = np.maximum(boxes + rng.integers(-9, 9, boxes.shape), 0)
            ids = np.zeros((height, width), np.uint32)
            for number, (x0, y0, x1, y1) in enumerate(boxes, 1):
                ids[y0:y1, x0:x1] = number
            Image.fromarray(id2rgb(ids)).save(folder / side / f"{image}.png")
            segments = []
            for number in np.unique(ids[ids > 0]).tolist():
                mask = ids == number
                rle = pycocotools.mask.encode(np.asfortranarray(mask.view(np.uint8)))
                item = {"category_id": int(classes[number - 1]), "area": int(mask.sum())}
                segments.append(item | {"id": number, "iscrowd": 0})
                instances[side].append(
                    item
                    | {"id": len(instances[side]) + 1, "image_id": image, "iscrowd": 0}
                    | {"segmentation": rle | {"counts": rle["counts"].decode()}}
                    | {"bbox": pycocotools.mask.toBbox(rle).tolist(), "score": float(rng.random())}
                )
            panoptic[side].append(
                {"image_id": image, "file_name": f"{image}.png", "segments_info": segments}
            )
    content = {"images": images, "categories": categories}
    for side in SIDES:
        (folder / f"panoptic_{side}.json").write_text(
            json.dumps(content | {"annotations": panoptic[side]})
        )
    truth = content | {"annotations": instances["truth"]}
    (folder / "instances_truth.json").write_text(json.dumps(truth))
    (folder / "instances_prediction.json").write_text(json.dumps(instances["prediction"]))


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        result = function()
    return result, time.perf_counter() - started


def compare_panoptic(folder: Path) -> dict[str, Any]:
    files = [folder / f"panoptic_{side}.json" for side in SIDES]
    folders = [folder / side for side in SIDES]
    ours, seconds = timed(lambda: panoptic_quality(*files, *folders))
    if importlib.util.find_spec("panopticapi") is None:
        return row("PQ (panopticapi is not installed)", seconds)
    from panopticapi.evaluation import pq_compute

    theirs, reference = timed(lambda: pq_compute(*map(str, files), *map(str, folders)))
    return row("PQ", seconds, reference, abs(ours["All"]["pq"] - theirs["All"]["pq"]))


def compare_instances(folder: Path, kind: str) -> dict[str, Any]:
    files = [folder / f"instances_{side}.json" for side in SIDES]
    ours, seconds = timed(lambda: average_precision(*files, iou_type=kind))

    def reference() -> float:
        truth = COCO(str(files[0]))
        evaluation = COCOeval(truth, truth.loadRes(str(files[1])), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return evaluation.stats[0]

    theirs, reference_seconds = timed(reference)
    return row(f"AP {kind}", seconds, reference_seconds, abs(ours["AP"] - theirs))


def row(
    name: str, seconds: float, reference: float | None = None, difference: float | None = None
) -> dict[str, Any]:
    ratio = None if reference is None else reference / seconds
    times = {"s": seconds, "reference s": reference, "ratio": ratio}
    return {"": name} | times | {"difference": difference}
