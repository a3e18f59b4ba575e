"""What only the pictures and label maps themselves tell: every file is read once."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ...errors import DatasetError
from ..panoptic_png import rgb2id
from ..picture import apply_label_map, read_label_map, read_picture
from .findings import Finding, record_id
from .records import Record


@dataclass
class PictureCheck:
    """What one record's files hold.

    Attributes:
        pixels: by class of the semantic label map.
    """

    findings: list[Finding] = field(default_factory=list)
    pixels: Counter[int] = field(default_factory=Counter)


def check_pictures(
    record: Record, *, image_format: str, num_channels: int, num_classes: int, ignore_label: int
) -> PictureCheck:
    """Read the files of a record and compare them with it and with each other."""
    check = PictureCheck()
    size = None
    try:
        picture = read_picture(record["file_name"], image_format)
        size = picture.shape[:2]
        check.findings += _size_and_channels(record, picture, num_channels)
    except DatasetError as error:
        check.findings.append(_unreadable(record, "file_name", error))
    if "pan_seg_file_name" in record:
        try:
            png = read_label_map(record["pan_seg_file_name"])
            check.findings += _panoptic(record, png, size)
        except DatasetError as error:
            check.findings.append(_unreadable(record, "pan_seg_file_name", error))
    if "sem_seg_file_name" in record:
        try:
            labels = read_label_map(record["sem_seg_file_name"])
            check.findings += _same_size(record, "sem_seg_file_name", labels, size)
            if "sem_seg_label_map" in record:
                labels = apply_label_map(labels, record["sem_seg_label_map"], ignore_label)
            values = dict(zip(*np.unique(labels, return_counts=True)))
            check.pixels.update({int(v): int(n) for v, n in values.items() if v != ignore_label})
            check.findings += _values(record, check.pixels, num_classes, ignore_label)
        except DatasetError as error:
            check.findings.append(_unreadable(record, "sem_seg_file_name", error))
    return check


def _unreadable(record: Record, key: str, error: DatasetError) -> Finding:
    message = str(error).removeprefix(f"{record[key]} ")
    return Finding("error", "unreadable file", record[key], record_id(record), message)


def _size_and_channels(record: Record, picture: np.ndarray, num_channels: int) -> Iterator[Finding]:
    height, width, channels = picture.shape
    expected = (record.get("height", height), record.get("width", width))
    if expected != (height, width):
        swapped = expected == (width, height)
        yield Finding(
            "error",
            "picture of another size",
            record["file_name"],
            record_id(record),
            f"the picture is {width} x {height} pixels, its annotations say {expected[1]} x "
            f"{expected[0]}; "
            + ("width and height are swapped: correct" if swapped else "correct width and height")
            + (" them there" if swapped else " there, or replace the picture"),
        )
    if channels != num_channels:
        yield Finding(
            "error",
            "number of channels",
            record["file_name"],
            record_id(record),
            f"the picture has {channels} channels, the model takes {num_channels}; give "
            "MODEL.PIXEL_MEAN and PIXEL_STD a value for each",
        )


def _same_size(
    record: Record, key: str, labels: np.ndarray, size: tuple[int, int] | None
) -> Iterator[Finding]:
    if size is not None and labels.shape != size:
        yield Finding(
            "error",
            "label map of another size",
            record[key],
            record_id(record),
            f"it has shape {labels.shape}, its picture {size}; a label map has one value for each "
            "pixel of its picture",
        )


def _panoptic(record: Record, png: np.ndarray, size: tuple[int, int] | None) -> Iterator[Finding]:
    path = record["pan_seg_file_name"]
    if png.ndim != 3:
        yield Finding(
            "error",
            "no panoptic PNG",
            path,
            record_id(record),
            "it has one channel; a panoptic PNG holds ids as R + 256 G + 65536 B",
        )
        return
    yield from _same_size(record, "pan_seg_file_name", png[..., 0], size)
    ids, counts = np.unique(rgb2id(png), return_counts=True)
    areas = dict(zip(ids.tolist(), counts.tolist()))
    segments = {segment["id"]: segment for segment in record["segments_info"]}
    for id_ in areas.keys() - segments.keys() - {0}:
        yield Finding(
            "error",
            "segment without entry",
            path,
            record_id(record, "segment id", id_),
            f"{areas[id_]} pixels of the PNG have this id, which is not in the json; add the "
            "segment there, or paint the pixels black (0: no label)",
        )
    for id_, segment in segments.items():
        area = areas.get(id_, 0)
        if not area:
            yield Finding(
                "error",
                "segment without pixels",
                path,
                record_id(record, "segment id", id_),
                "the json has this segment, and no pixel of the PNG does; remove it, or paint it",
            )
        elif segment.get("area", area) != area:
            yield Finding(
                "warning",
                "segment of another area",
                path,
                record_id(record, "segment id", id_),
                f"the json says {segment['area']} pixels, the PNG has {area}; panoptic quality "
                "and the size of objects are computed from this number: correct it",
            )


def _values(
    record: Record, pixels: Counter[int], num_classes: int, ignore_label: int
) -> Iterator[Finding]:
    if num_classes == 1:  # all other values are background
        return
    for value in sorted(v for v in pixels if not 0 <= v < num_classes):
        yield Finding(
            "error",
            "value that is no class",
            record["sem_seg_file_name"],
            record_id(record, "value", value),
            f"{pixels[value]} pixels have the value {value}, which is neither a class (0 to "
            f"{num_classes - 1}, MODEL.SEM_SEG_HEAD.NUM_CLASSES) nor {ignore_label}, which is "
            "ignored; correct the file, or move values with a catalog's label_map",
        )
