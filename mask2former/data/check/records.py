"""What records tell without opening a file.

``record_findings`` looks at files' names, classes and numbers of objects, and runs before every
training and evaluation; ``thorough_findings`` looks at every box and mask.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from ..catalog import class_names
from .findings import Finding, annotation_id, record_id
from .masks import box_fault, mask_fault

Record = Mapping[str, Any]

# What a record may name on disk, in words.
FILE_KEYS = {
    "file_name": "picture",
    "pan_seg_file_name": "panoptic PNG",
    "sem_seg_file_name": "label map",
}


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


def record_findings(names: Sequence[str], records: Sequence[Record], cfg: CfgNode) -> list[Finding]:
    """Check registered data sets and their records; opens no file.

    Args:
        names: of the data sets.
        records: of all of them, in Detectron2's format.
    """
    limits = Limits.from_config(cfg)
    label_maps = any("sem_seg_file_name" in record for record in records)
    findings = [f for name in names for f in class_findings(name, cfg, label_maps=label_maps)]
    findings += missing_files(records)
    for record in records:
        findings += class_range_findings(record, limits)
        findings += count_findings(record, objects_of(record, limits.mapper), limits)
    return findings


def thorough_findings(records: Sequence[Record], *, annotations: bool) -> list[Finding]:
    """What else the records of one data set tell: ids, boxes and masks.

    Args:
        annotations: look at annotations, too, and not only at segments.
    """
    findings = list(duplicate_images(records))
    for record in records:
        if annotations:
            findings += annotation_findings(record)
        findings += segment_findings(record)
    return findings


def class_findings(name: str, cfg: CfgNode, *, label_maps: bool) -> Iterator[Finding]:
    """The number of classes and the ignore value, in the config and in the metadata.

    Args:
        label_maps: whether the records have any.
    """
    metadata = MetadataCatalog.get(name)
    names, num_classes = class_names(name) or [], cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    where = f"data set {name}"
    if names and len(names) != num_classes:
        # More outputs than classes only waste outputs. Fewer have no row for the last classes:
        # records tell whether any object is of those, label maps do only when they are read.
        fewer = len(names) > num_classes
        yield Finding(
            "error" if fewer and "semantic" in cfg.INPUT.DATASET_MAPPER_NAME else "warning",
            "number of classes",
            where,
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES {num_classes}",
            f"the data set has {len(names)} classes; set NUM_CLASSES to {len(names)}",
        )
    own = metadata.get("ignore_label")
    values = {
        "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": (cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE, own is None),
        "ignore_label of the metadata": (own, True),
    }
    for key, (value, counts) in values.items():
        if value is None or not 0 <= value < (len(names) or num_classes):
            continue
        class_name = f" {names[value]!r}" if names else ""
        counts = counts and label_maps
        why = "there are no label maps" if not label_maps else f"the data set's own {own} counts"
        yield Finding(
            "error" if counts else "warning",
            "ignore value is a class",
            where,
            f"{key} {value}",
            f"{value} is also the number of class{class_name} (classes count from 0), which "
            + ("would never be learnt" if counts else f"does no harm only as long as {why}")
            + "; choose a value that no class has, such as 255",
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
        fault = mask_fault(annotation.get("segmentation"), size)
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
