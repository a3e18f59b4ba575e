#!/usr/bin/env python
"""Cityscapes: labelTrainIds.png and panoptic files, by the official scripts (cityscapesscripts)."""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _prepare import existing, parse_args, report, run_jobs, save_picture

from mask2former.errors import DatasetError, report_user_errors

try:
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
    from cityscapesscripts.preparation.json2labelImg import createLabelImage
except ImportError as error:
    MISSING: ImportError | None = error
else:
    MISSING = None


def convert_labels(polygons: Path, output: Path) -> None:
    annotation = Annotation()
    try:
        annotation.fromJsonFile(str(polygons))
        labels = createLabelImage(annotation, "trainIds")
    except (ValueError, KeyError, TypeError, SystemExit) as error:  # it exits at unknown labels
        raise DatasetError(f"{polygons} is no annotation of Cityscapes ({error!r})") from error
    save_picture(output, np.asarray(labels))


def convert_panoptic(ground_truth: Path, split: str) -> None:
    """Write cityscapes_panoptic_{split}.json and the folder of that name, the json last."""
    name = f"cityscapes_panoptic_{split}"
    with tempfile.TemporaryDirectory(dir=ground_truth, prefix=".") as folder:
        convert2panoptic(str(ground_truth), folder, setNames=[split])
        shutil.rmtree(ground_truth / name, ignore_errors=True)
        (Path(folder) / name).replace(ground_truth / name)
        (Path(folder) / f"{name}.json").replace(ground_truth / f"{name}.json")


def check_split(root: Path, split: str) -> tuple[list[Path], list[str]]:
    """The polygon files of a split, and problems: pictures or annotations that are missing."""
    pictures = existing(root / "leftImg8bit" / split, "the pictures")
    annotations = existing(root / "gtFine" / split, "the fine annotations")
    problems = []
    for picture in sorted(pictures.glob("*/*_leftImg8bit.png")):
        stem = picture.name.removesuffix("leftImg8bit.png")
        for kind in ("polygons.json", "labelIds.png", "instanceIds.png"):
            path = annotations / picture.parent.name / f"{stem}gtFine_{kind}"
            if not path.exists():
                problems.append(f"{path} is missing")
    polygons = sorted(annotations.glob("*/*_gtFine_polygons.json"))
    if not polygons:
        raise DatasetError(f"{annotations.absolute()} has no */*_gtFine_polygons.json")
    return polygons, problems


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(__doc__, argv, ("train", "val"))
    root = args.root / "cityscapes"
    checked = {split: check_split(root, split) for split in args.splits}
    problems = [problem for _, found in checked.values() for problem in found]
    if MISSING is not None:
        report(problems)
        raise DatasetError(
            f"the official scripts cannot be imported ({MISSING}): pip install cityscapesscripts"
        )
    for split, (polygons, _) in checked.items():
        outputs = [
            path.with_name(path.name.replace("_polygons.json", "_labelTrainIds.png"))
            for path in polygons
        ]
        jobs = [job for job in zip(polygons, outputs) if not job[1].exists()]
        problems += run_jobs(convert_labels, jobs, workers=args.workers, title=split)[1]
        if not (root / "gtFine" / f"cityscapes_panoptic_{split}.json").exists():
            convert_panoptic(root / "gtFine", split)
    return report(problems)


if __name__ == "__main__":
    with report_user_errors():
        sys.exit(main())
