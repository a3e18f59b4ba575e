"""A whole data set: all findings, and what there is how often."""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from tabulate import tabulate
from tqdm.contrib.concurrent import thread_map

from ...errors import DatasetError
from ..builtin import check_builtin
from ..catalog import class_names
from ..formats import load_coco_panoptic
from .annotations import CocoFile, json_findings
from .findings import Finding, format_findings, has_errors
from .pictures import check_pictures
from .records import Record, class_findings, objects_of, record_findings, thorough_findings


@dataclass
class DatasetReport:
    """What :func:`check_dataset` found.

    Attributes:
        classes: (name, objects or segments, pictures with it, pixels or 0) of each class.
        objects_per_picture: crowds not counted; empty where only pixels tell.
    """

    name: str
    records: list[Record] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    classes: list[tuple[str, int, int, int]] = field(default_factory=list)
    objects_per_picture: list[int] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not has_errors(self.findings)

    def text(self, *, limit: int | None = 5) -> str:
        """The report for people; at most ``limit`` findings of a kind."""
        parts = [f"{self.name}: {len(self.records)} pictures"]
        if self.objects_per_picture:
            counts = np.array(self.objects_per_picture)
            parts.append(
                f"objects in a picture: {counts.mean():.1f} on average, {counts.max()} at most"
            )
        if self.classes:
            pixels = sum(row[3] for row in self.classes)
            headers = ["class", "objects", "pictures"] + (["pixels %"] if pixels else [])
            rows = [
                [*row[:3], 100 * row[3] / max(pixels, 1)][: len(headers)] for row in self.classes
            ]
            if not self.objects_per_picture:
                headers.remove("objects")
                rows = [[row[0], *row[2:]] for row in rows]
            parts.append(tabulate(rows, headers=headers, floatfmt=".2f"))
        parts.append(format_findings(self.findings, limit=limit) or "nothing to complain about")
        return "\n\n".join(parts)


def check_dataset(
    name: str, cfg: CfgNode, *, read_pictures: bool = True, workers: int | None = None
) -> DatasetReport:
    """Check a registered data set against its files and a config.

    Args:
        read_pictures: open every picture and label map.
        workers: threads that do so.
    """
    report = DatasetReport(name)
    report.findings += json_findings(name, evaluated=name in cfg.DATASETS.TEST)
    try:
        check_builtin(name)
        # What the json findings name may keep the loader from reading the rest.
        report.records = list(DatasetCatalog.get(name) if report.ok else load_mended(name))
    except Exception as error:  # loaders may be anybody's
        kind = "" if isinstance(error, DatasetError) else f"{type(error).__name__}: "
        message = f"{kind}{error}; nothing but its json files and classes could be checked"
        whole = Finding("error", "cannot be loaded", f"data set {name}", "whole data set", message)
        told = any(finding.kind == "unreadable json" for finding in report.findings)
        report.findings += [] if told else [whole]
        report.findings += class_findings(name, cfg, label_maps=False)
        return report
    report.findings += record_findings([name], report.records, cfg)
    # The json tells more of annotations than Detectron2 keeps: their ids and areas.
    metadata = MetadataCatalog.get(name)
    from_json = metadata.get("json_file") and not metadata.get("panoptic_json")
    report.findings += thorough_findings(report.records, annotations=not from_json)
    pixels, pictures = _read(report, cfg, workers) if read_pictures else (Counter(), Counter())
    _count(report, cfg, pixels, pictures)
    return report


def _read(
    report: DatasetReport, cfg: CfgNode, workers: int | None
) -> tuple[Counter[int], Counter[int]]:
    """Open all files of a data set and add what is wrong; pixels and pictures by class."""
    pixels: Counter[int] = Counter()
    pictures: Counter[int] = Counter()
    missing = {f.file for f in report.findings if f.kind == "missing file"}
    # Segments that were left out in reading lack in the records, not in the json.
    left_out = {f.id for f in report.findings if f.kind == "unknown category"}
    check = partial(
        check_pictures,
        image_format=cfg.INPUT.FORMAT,
        num_channels=len(cfg.MODEL.PIXEL_MEAN),
        num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        ignore_label=MetadataCatalog.get(report.name).get(
            "ignore_label", cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        ),
    )
    # Threads, as decoding a picture leaves Python to the others.
    checks = thread_map(
        check, report.records, max_workers=workers or os.cpu_count(), desc=report.name, leave=False
    )
    for item in checks:
        report.findings += [
            f
            for f in item.findings
            if f.file not in missing
            and not (f.kind == "segment without entry" and f.id in left_out)
        ]
        pixels += item.pixels
        pictures.update(item.pixels.keys())
    return pixels, pictures


def load_mended(name: str) -> list[Record]:
    """The records of a data set whose json files have faults: without the faulty entries.

    Raises:
        DatasetError: the json cannot be read at all.
    """
    metadata = MetadataCatalog.get(name)
    panoptic = metadata.get("panoptic_json")
    path = panoptic or metadata.json_file
    image_root = metadata.get("image_root") or metadata.get("image_dir")
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, os.path.basename(path))
        with open(copy, "w") as file:
            json.dump(CocoFile(path, panoptic=bool(panoptic)).mended(), file)
        if not panoptic:
            return load_coco_json(copy, image_root, name)
        entry = {
            "panoptic_json": copy,
            "image_root": image_root,
            "panoptic_root": metadata.panoptic_root,
        }
        # Detectron2's own data sets list things and stuff apart.
        things = metadata.thing_dataset_id_to_contiguous_id
        contiguous = {**things, **metadata.stuff_dataset_id_to_contiguous_id}
        return load_coco_panoptic(entry, contiguous, set(things.values()))


def _count(
    report: DatasetReport, cfg: CfgNode, pixels: Counter[int], with_pixels: Counter[int]
) -> None:
    mapper = cfg.INPUT.DATASET_MAPPER_NAME
    objects, pictures = Counter(), Counter()
    for record in report.records:
        items = objects_of(record, mapper)
        if items is None:
            continue
        classes = [item["category_id"] for item in items if not item.get("iscrowd", 0)]
        report.objects_per_picture.append(len(classes))
        objects.update(classes)
        pictures.update(set(classes))
    names: Sequence[str] = class_names(report.name) or [
        str(i) for i in range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    ]
    if not report.objects_per_picture:  # label maps alone: there is nothing to count but pixels
        pictures = with_pixels
    report.classes = [
        (class_name, objects[i], pictures[i], pixels[i]) for i, class_name in enumerate(names)
    ]
    # A data set of another number of classes has a finding of its own.
    counted = objects or pixels
    for i, class_name in enumerate(names):
        if counted and not counted[i]:
            report.findings.append(
                Finding(
                    "warning",
                    "class without an object",
                    f"data set {report.name}",
                    f"class {i}",
                    f"there is no {class_name!r} to learn; add pictures with it, or leave the "
                    "class out",
                )
            )
