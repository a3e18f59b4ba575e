"""The form of the entries of COCO's json files: which keys they have, and what those hold."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Field:
    """One key of an entry: in words what it holds, and whether a value is that."""

    what: str
    valid: Callable[[Any], bool]
    required: bool = True


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    return is_number(value) and value == int(value)


def is_id(value: Any) -> bool:
    return isinstance(value, str) or is_whole(value)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def _is_mask(value: Any) -> bool:
    if not value:  # no mask at all, which is a finding of its own
        return value is None or isinstance(value, list | dict)
    if isinstance(value, list):
        return all(isinstance(p, list) and all(map(is_number, p)) for p in value)
    if not isinstance(value, dict):
        return False
    size, counts = value.get("size"), value.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(map(is_whole, size))):
        return False
    return isinstance(counts, str) or (isinstance(counts, list) and all(map(is_whole, counts)))


ID = Field("a number or a text", is_id)
TEXT = Field("a text", lambda value: isinstance(value, str) and bool(value))
PIXELS = Field("a whole number above 0", lambda value: is_whole(value) and value > 0)
FLAG = Field("0 or 1", lambda value: isinstance(value, int) and value in (0, 1), required=False)
BOX = Field("four numbers: x, y, width, height", _is_box, required=False)

IMAGE = {"id": ID, "file_name": TEXT, "height": PIXELS, "width": PIXELS}
KEYED = {"id": ID}
CATEGORY = KEYED | {"name": TEXT, "isthing": FLAG}
PANOPTIC_CATEGORY = CATEGORY | {"isthing": replace(FLAG, required=True)}
OBJECT = {
    "id": ID,
    "image_id": ID,
    "category_id": ID,
    "iscrowd": FLAG,
    "bbox": BOX,
    "segmentation": Field(
        "polygons ([[x, y, x, y, ...], ...]) or RLE ({size: [height, width], counts: ...})",
        _is_mask,
        required=False,
    ),
    # Detectron2's loader stops at these.
    "ignore": Field(
        "0, as Detectron2 reads no others (mark crowds by iscrowd)",
        lambda value: value == 0,
        required=False,
    ),
}
PANOPTIC = {
    "image_id": ID,
    "file_name": TEXT,
    "segments_info": Field("a list", lambda value: isinstance(value, list)),
}
SEGMENT = {
    # 0 is no segment, and a colour has 24 bits.
    "id": Field("a number from 1 to 16777215", lambda v: isinstance(v, int) and 0 < v < 1 << 24),
    "category_id": ID,
    "iscrowd": FLAG,
    "bbox": BOX,
    "area": Field("a number", is_number, required=False),
}


def entry_fault(entry: Any, fields: Mapping[str, Field]) -> str | None:
    """The first thing wrong with an entry's form, and what to do; None if there is none."""
    if not isinstance(entry, dict):
        return f"{short(entry)} is no entry of keys and values; write it as COCO does, or remove it"
    for key, field in fields.items():
        if key not in entry:
            if field.required:
                return f"there is no {key!r}; add it: {field.what}"
        elif not field.valid(entry[key]):
            return f"{key!r} is {short(entry[key])}, and must be {field.what}; correct it"
    return None


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
