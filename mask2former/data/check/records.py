"""What records tell without opening a file.

The cheap form looks at files' names, classes and numbers of objects, and runs before every training
and evaluation; the thorough one looks at every box and mask, too.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from ..catalog import class_names
from .findings import Finding, annotation_id, record_id

Record = Mapping[str, Any]

# What a record may name on disk, in words.
FILE_KEYS = {
    "file_name": "picture",
    "pan_seg_file_name": "panoptic PNG",
    "sem_seg_file_name": "label map",
}
# Boxes and polygons may leave the picture by this much: annotation tools round.
TOLERANCE = 1.0  # pixel


@dataclass(frozen=True)
class Limits:
    """What the config allows for."""

    num_classes: int
    num_queries: int
    detections: int | None
    """``TEST.DETECTIONS_PER_IMAGE``; None where no instances are asked for."""
    mapper: str
    filter_empty: bool

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "Limits":
        instances = cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON
        return cls(
            num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            num_queries=cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES,
            detections=cfg.TEST.DETECTIONS_PER_IMAGE if instances else None,
            mapper=cfg.INPUT.DATASET_MAPPER_NAME,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        )


def record_findings(
    names: Sequence[str], records: Sequence[Record], cfg: CfgNode, *, thorough: bool = False
) -> list[Finding]:
    """Check registered data sets and their records; opens no file.

    Args:
        names: of the data sets.
        records: of all of them, in Detectron2's format.
        thorough: look at boxes, masks and ids, too.
    """
    limits = Limits.from_config(cfg)
    findings = [f for name in names for f in class_findings(name, cfg)]
    findings += missing_files(records)
    if thorough and len(names) == 1:  # several data sets may count their pictures alike
        findings += duplicate_images(records)
    for record in records:
        findings += class_range_findings(record, limits)
        findings += count_findings(record, objects_of(record, limits.mapper), limits)
        if thorough:
            findings += annotation_findings(record)
            findings += segment_findings(record)
    return findings


def class_findings(name: str, cfg: CfgNode) -> Iterator[Finding]:
    """The number of classes and the ignore value, in the config and in the metadata."""
    metadata = MetadataCatalog.get(name)
    names, num_classes = class_names(name) or [], cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    where = f"data set {name}"
    if names and len(names) != num_classes:
        # More outputs than classes only waste outputs; fewer have no row for the last classes.
        yield Finding(
            "error" if len(names) > num_classes else "warning",
            "number of classes",
            where,
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES {num_classes}",
            f"the data set has {len(names)} classes; set NUM_CLASSES to {len(names)}",
        )
    values = {
        "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        "ignore_label of the metadata": metadata.get("ignore_label"),
    }
    for key, value in values.items():
        if value is None or not 0 <= value < (len(names) or num_classes):
            continue
        class_name = f" {names[value]!r}" if names else ""
        yield Finding(
            "error",
            "ignore value is a class",
            where,
            f"{key} {value}",
            f"{value} is also the number of class{class_name} (classes count from 0), which would "
            "never be learnt; choose a value that no class has, such as 255",
        )


def missing_files(records: Iterable[Record]) -> Iterator[Finding]:
    # One listing of a folder instead of a question a file: on network file systems minutes apart.
    listings: dict[str, set[str]] = {}
    for record in records:
        for key, what in FILE_KEYS.items():
            path = record.get(key)
            if path is None:
                continue
            folder, _, base = path.rpartition(os.sep)
            if folder not in listings:
                listings[folder] = (
                    set(os.listdir(folder or ".")) if os.path.isdir(folder) else set()
                )
            # A file that the listing lacks may differ from it in capitals, where these are one.
            if base not in listings[folder] and not os.path.isfile(path):
                yield Finding(
                    "error",
                    "missing file",
                    path,
                    record_id(record),
                    f"this {what} does not exist; add it, correct the folder that the data set is "
                    "registered with, or remove the entry from the annotations",
                )


def duplicate_images(records: Iterable[Record]) -> Iterator[Finding]:
    first: dict[Any, str] = {}
    for record in records:
        path = record["file_name"]
        other = first.setdefault(record.get("image_id", path), path)
        if other is not path:
            yield Finding(
                "error",
                "duplicate image id",
                path,
                record_id(record),
                f"{other} has this id, too, and evaluation takes them for one; number them apart",
            )


def objects_of(record: Record, mapper: str) -> list[Mapping[str, Any]] | None:
    """Annotations or segments, whichever the mapper trains on; None if only pixels tell."""
    kinds = ("segments_info", "annotations")
    if "semantic" in mapper and "sem_seg_file_name" in record:
        return None
    if "instance" in mapper:
        kinds = kinds[::-1]
    return next((record[kind] for kind in kinds if kind in record), None)


def count_findings(
    record: Record, objects: Sequence[Mapping[str, Any]] | None, limits: Limits
) -> Iterator[Finding]:
    """Too many objects, none at all, or none but crowds."""
    if objects is None:
        return
    count = sum(not item.get("iscrowd", 0) for item in objects)
    if count == 0:
        filtered = limits.filter_empty and "annotations" in record
        does = "is left out of training" if filtered else "teaches that there is nothing"
        what = f"has only crowds ({len(objects)})" if objects else "has no annotation"
        yield Finding(
            "warning",
            "only crowds" if objects else "empty picture",
            record["file_name"],
            record_id(record),
            f"the picture {what} and {does}; annotate what is to be found in it, or leave it "
            "(DATALOADER.FILTER_EMPTY_ANNOTATIONS)",
        )
    things = sum(not item.get("iscrowd", 0) and item.get("isthing", True) for item in objects)
    yield from too_many(record, count, things, limits)


def too_many(record: Record, count: int, things: int, limits: Limits) -> Iterator[Finding]:
    """Against the number of queries, and that of detections.

    Args:
        count, things: numbers of objects, stuff included, and of things alone.
    """
    if count > limits.num_queries:
        yield Finding(
            "warning",
            "more objects than queries",
            record["file_name"],
            record_id(record),
            f"{count} objects, but a picture gets at most {limits.num_queries} predictions: the "
            "rest cannot be learnt or found; raise MODEL.MASK_FORMER.NUM_OBJECT_QUERIES above "
            f"{count}, or cut the picture into tiles",
        )
    if limits.detections is not None and things > limits.detections:
        yield Finding(
            "warning",
            "more objects than detections",
            record["file_name"],
            record_id(record),
            f"{things} objects, but at most {limits.detections} instances are kept: the rest "
            f"counts as missed; raise TEST.DETECTIONS_PER_IMAGE to {things} or above",
        )


def class_range_findings(record: Record, limits: Limits) -> Iterator[Finding]:
    for kind in ("annotations", "segments_info"):
        for index, item in enumerate(record.get(kind, ())):
            if 0 <= item["category_id"] < limits.num_classes:
                continue
            annotation = kind == "annotations"
            yield Finding(
                "error",
                "class out of range",
                record["file_name"],
                annotation_id(record, index)
                if annotation
                else record_id(record, "segment id", item["id"]),
                f"class {item['category_id']} (counted from 0) does not fit MODEL.SEM_SEG_HEAD."
                f"NUM_CLASSES {limits.num_classes}; set that to the number of classes of the data "
                "set",
            )


def annotation_findings(record: Record) -> Iterator[Finding]:
    """Masks and boxes of annotations."""
    size = (record.get("height"), record.get("width"))
    if size[0] is None:
        return
    for index, annotation in enumerate(record.get("annotations", ())):
        fault = _mask_fault(annotation.get("segmentation"), size)
        if fault:
            kind, message = fault
            yield Finding("error", kind, record["file_name"], annotation_id(record, index), message)
        fault = box_fault(annotation.get("bbox"), annotation.get("bbox_mode"), size)
        if fault:
            yield _box_finding(record, annotation_id(record, index), fault)


def segment_findings(record: Record) -> Iterator[Finding]:
    """Boxes and ids of panoptic segments."""
    segments = record.get("segments_info", ())
    size = (record.get("height"), record.get("width"))
    for segment in segments:
        if size[0] is not None:
            fault = box_fault(segment.get("bbox"), BoxMode.XYWH_ABS, size)
            if fault:
                yield _box_finding(record, record_id(record, "segment id", segment["id"]), fault)
    counts = Counter(segment["id"] for segment in segments)
    for id_, count in counts.items():
        if count > 1:
            yield Finding(
                "error",
                "duplicate segment id",
                record["pan_seg_file_name"],
                record_id(record, "segment id", id_),
                f"{count} segments of the json have this id; keep one, and give the others ids "
                "(and pixels) of their own",
            )


def _box_finding(record: Record, id_: str, fault: str) -> Finding:
    return Finding("warning", "box", record["file_name"], id_, fault)


def box_fault(
    box: Sequence[float] | None, mode: BoxMode | None, size: tuple[int, int]
) -> str | None:
    """What is wrong with a box in a picture of (height, width), and what to do, in words."""
    if box is None or len(box) != 4 or mode not in (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS):
        return None
    x0, y0, x1, y1 = box
    if mode == BoxMode.XYWH_ABS:
        x1, y1 = x0 + x1, y0 + y1
    height, width = size
    if not (x1 > x0 and y1 > y0):
        return f"the box {_numbers(box)} has no area; correct it, or remove the annotation"
    # Written so that NaN fails, too.
    low, high = -TOLERANCE, TOLERANCE
    if x0 >= low and y0 >= low and x1 <= width + high and y1 <= height + high:
        return None
    return (
        f"the box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) leaves the picture of {width} x "
        f"{height} pixels; correct the box, or check that the annotations belong to this picture"
    )


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in values)}]"


def _mask_fault(
    segmentation: list | dict | np.ndarray | None, size: tuple[int, int]
) -> tuple[str, str] | None:
    """Kind and message of what is wrong with a mask, as far as its shape tells."""
    if not isinstance(segmentation, list):
        if segmentation is None:
            return None
        rle = isinstance(segmentation, dict)
        height, width = segmentation["size"] if rle else segmentation.shape
        if (height, width) == size:
            return None
        what = "RLE" if rle else "bitmap"
        return f"{what} of another size", (
            f"the {what} is {width} x {height} pixels, the picture {size[1]} x {size[0]}; encode "
            "the mask again at the size of the picture (COCO writes [height, width])"
        )
    return polygon_fault(segmentation)


def polygon_fault(polygons: list[list[float]]) -> tuple[str, str] | None:
    bad = [p for p in polygons if len(p) < 6 or len(p) % 2]
    if not bad:
        return None
    rest = len(polygons) - len(bad)
    left = f"only the other {rest} of it count" if rest else "the object is left out of training"
    return "polygon of fewer than 3 points", (
        f"a polygon has {len(bad[0])} numbers, not an x and a y for each of 3 points or more: "
        f"{left}; draw it again, or remove it"
    )
