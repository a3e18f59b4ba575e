"""The formats of data sets that a catalog may name: their keys, registration and loading.

Each format registers a data set with Detectron2, whose records are Detectron2's standard ones.
"""

import json
import logging
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.utils.colormap import colormap

from ..errors import DatasetError

logger = logging.getLogger(__name__)

Entry = Mapping[str, Any]
PICTURE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".npy", ".png", ".tif", ".tiff", ".webp"}


def read_categories(path: str, *keys: str) -> list[dict[str, Any]]:
    """The categories of a COCO file, which have ``keys`` and ids of one type.

    Raises:
        DatasetError: they don't.
    """
    categories = read_json(path, "categories")
    for category in categories:
        require(path, "category", category, ("id", *keys))
    if len({isinstance(category["id"], str) for category in categories}) > 1:
        raise DatasetError(f"{path}: some category ids are texts, others numbers; write them alike")
    return categories


def require(path: str, what: str, item: Any, keys: Collection[str]) -> None:
    """
    Raises:
        DatasetError: ``item`` has not all of ``keys``.
    """
    missing = [key for key in keys if not isinstance(item, dict) or key not in item]
    if missing:
        raise DatasetError(f"{path}: {what} {item} has no {missing[0]!r}; add it")


def register_coco_instances(name: str, entry: Entry) -> None:
    categories = read_categories(entry["json"], "name")
    ids = sorted(category["id"] for category in categories)
    names = {category["id"]: category["name"] for category in categories}
    DatasetCatalog.register(name, lambda: load_coco_instances(name, entry))
    MetadataCatalog.get(name).set(
        json_file=entry["json"],
        image_root=entry["image_root"],
        evaluator_type="coco",
        thing_classes=[names[i] for i in ids],
        thing_dataset_id_to_contiguous_id={id_: i for i, id_ in enumerate(ids)},
    )


def load_coco_instances(name: str, entry: Entry) -> list[dict[str, Any]]:
    """Records of a COCO instances json, in Detectron2's format."""
    try:
        return load_coco_json(entry["json"], entry["image_root"], name)
    except KeyError as error:
        # Detectron2 names the category id; the file is ours to name.
        raise DatasetError(
            f"{entry['json']}: {error.args[0]} Add the category, or remove the annotation"
        ) from error


def register_coco_panoptic(name: str, entry: Entry) -> None:
    categories = read_categories(entry["panoptic_json"], "name", "isthing")
    # Things come first: COCO's evaluation of instances counts on their ids being 0, 1, 2, ...
    categories = sorted(categories, key=lambda c: (not c["isthing"], c["id"]))
    contiguous = {category["id"]: i for i, category in enumerate(categories)}
    things = [category for category in categories if category["isthing"]]
    thing_ids = range(len(things))
    DatasetCatalog.register(name, lambda: load_coco_panoptic(entry, contiguous, thing_ids))
    metadata = MetadataCatalog.get(name).set(
        image_root=entry["image_root"],
        panoptic_json=entry["panoptic_json"],
        panoptic_root=entry["panoptic_root"],
        evaluator_type="coco_panoptic_seg",
        ignore_label=255,
        label_divisor=1000,
        thing_classes=[category["name"] for category in things],
        # As in Detectron2's "standard" panoptic sets, stuff_classes lists all classes.
        stuff_classes=[category["name"] for category in categories],
        thing_dataset_id_to_contiguous_id={c["id"]: contiguous[c["id"]] for c in things},
        stuff_dataset_id_to_contiguous_id=contiguous,
    )
    colors = [category.get("color") for category in categories]
    if all(colors):
        metadata.set(thing_colors=colors[: len(things)], stuff_colors=colors)
    if "instances_json" in entry:
        metadata.set(json_file=entry["instances_json"])
    if "semantic_root" in entry:
        metadata.set(sem_seg_root=entry["semantic_root"])


def load_coco_panoptic(
    entry: Entry, contiguous: Mapping[int, int], thing_ids: Collection[int]
) -> list[dict[str, Any]]:
    """Records of a COCO panoptic json, in Detectron2's format.

    Args:
        contiguous: contiguous id of each category id.
        thing_ids: contiguous ids of the things.

    Raises:
        DatasetError: an annotation names an unknown picture or category.
    """
    path = entry["panoptic_json"]
    content = read_json(path)
    for image in content["images"]:
        require(path, "image", image, ("id", "file_name", "height", "width"))
    images = {image["id"]: image for image in content["images"]}
    records = []
    for annotation in content["annotations"]:
        require(path, "annotation", annotation, ("image_id", "file_name", "segments_info"))
        image = images.get(annotation["image_id"])
        if image is None:
            raise DatasetError(
                f"{path}: {annotation['file_name']} belongs to image id {annotation['image_id']}, "
                "which is not among its images; add the image, or remove the annotation"
            )
        segments = []
        for segment in annotation["segments_info"]:
            if segment["category_id"] not in contiguous:
                raise DatasetError(
                    f"{path}: segment {segment['id']} of image id {image['id']} has category_id "
                    f"{segment['category_id']}, which is not among its categories; add the "
                    "category, or correct the segment"
                )
            class_id = contiguous[segment["category_id"]]
            segments.append(segment | {"category_id": class_id, "isthing": class_id in thing_ids})
        record = {
            "file_name": os.path.join(entry["image_root"], image["file_name"]),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
            "pan_seg_file_name": os.path.join(entry["panoptic_root"], annotation["file_name"]),
            "segments_info": segments,
        }
        if "semantic_root" in entry:
            record["sem_seg_file_name"] = os.path.join(
                entry["semantic_root"], annotation["file_name"]
            )
        records.append(record)
    return records


def register_semantic(name: str, entry: Entry) -> None:
    classes = [c if isinstance(c, dict) else {"name": c} for c in entry["classes"]]
    ignore_value, label_map = entry.get("ignore_value", 255), entry.get("label_map")
    where = f"data set {name}"
    if not classes or not all(isinstance(c.get("name"), str) for c in classes):
        raise DatasetError(f"{where}: classes must be a list of names, or of {{name, color}}")
    if ignore_value < 0:
        raise DatasetError(
            f"{where}: ignore_value is {ignore_value}, but values of label maps are 0 or above; "
            "give all classes in label_map instead: values that it does not name are ignored"
        )
    if 0 <= ignore_value < len(classes):
        raise DatasetError(
            f"{where}: ignore_value {ignore_value} is also the number of class "
            f"{classes[ignore_value]['name']!r} (classes count from 0); choose another, or move "
            "the values with label_map"
        )
    if not all(isinstance(n, int) for item in (label_map or {}).items() for n in item):
        raise DatasetError(f"{where}: label_map must map values of label maps to class numbers")
    outside = [c for c in (label_map or {}).values() if not 0 <= c < len(classes)]
    if outside:
        raise DatasetError(
            f"{where}: label_map leads to class {outside[0]}, but there are classes 0 to "
            f"{len(classes) - 1}; values that it does not name are ignored"
        )
    palette = colormap(rgb=True, maximum=255).astype(int)
    DatasetCatalog.register(name, lambda: load_semantic(name, entry))
    metadata = MetadataCatalog.get(name).set(
        image_root=entry["image_root"],
        sem_seg_root=entry["label_root"],
        evaluator_type="sem_seg",
        ignore_label=ignore_value,
        stuff_classes=[c["name"] for c in classes],
        stuff_dataset_id_to_contiguous_id={i: i for i in range(len(classes))},
        thing_dataset_id_to_contiguous_id={
            i: i for i, c in enumerate(classes) if c.get("isthing", False)
        },
    )
    if label_map:
        metadata.set(label_map=dict(label_map))
    # Fixed ones for the others: Detectron2 would draw new ones for each picture.
    metadata.set(
        stuff_colors=[
            c.get("color", palette[i % len(palette)].tolist()) for i, c in enumerate(classes)
        ]
    )


def load_semantic(name: str, entry: Entry) -> list[dict[str, Any]]:
    """Records of two folders, whose files belong together by their path without the suffix.

    Raises:
        DatasetError: no picture has a label map.
    """
    pictures = files_by_stem(entry["image_root"], PICTURE_SUFFIXES)
    labels = files_by_stem(entry["label_root"], {".png", ".tif", ".tiff", ".bmp", ".npy"})
    common = sorted(pictures.keys() & labels.keys())
    if not common:
        raise DatasetError(
            f"data set {name}: no picture below {entry['image_root']} has a label map of the same "
            f"name below {entry['label_root']}; rename them, or correct image_root and label_root"
        )
    for alone in (pictures, labels):
        if left_out := sorted(alone.keys() - set(common)):
            first, count = alone[left_out[0]], len(left_out)
            logger.warning(
                "data set %s: %s has no counterpart: left out, one of %d", name, first, count
            )
    records = []
    for stem in common:
        record = {
            "file_name": pictures[stem],
            "image_id": stem,
            "sem_seg_file_name": labels[stem],
        }
        if entry.get("label_map"):
            record["sem_seg_label_map"] = dict(entry["label_map"])
        records.append(record)
    return records


def files_by_stem(root: str | os.PathLike, suffixes: Collection[str]) -> dict[str, str]:
    """The files below a folder, by their path in it without the suffix.

    Raises:
        DatasetError: two files share such a name.
    """
    found: dict[str, str] = {}
    for path in sorted(Path(root).rglob("*")):
        if path.suffix.lower() not in suffixes:
            continue
        stem = path.relative_to(root).with_suffix("").as_posix()
        if stem in found:
            raise DatasetError(
                f"{found[stem]} and {path} differ in their suffix only, and either could be meant; "
                "keep pictures and label maps in folders of their own, and one file of each name"
            )
        found[stem] = str(path)
    return found


@dataclass(frozen=True)
class Format:
    """The keys of a format, each with whether it must be there, and how it is registered."""

    paths: Mapping[str, bool]
    register: Callable[[str, Entry], None]
    values: Mapping[str, tuple[type, bool]]


FORMATS: dict[str, Format] = {
    "coco_instances": Format({"image_root": True, "json": True}, register_coco_instances, {}),
    "coco_panoptic": Format(
        {
            "image_root": True,
            "panoptic_json": True,
            "panoptic_root": True,
            "instances_json": False,
            "semantic_root": False,
        },
        register_coco_panoptic,
        {},
    ),
    "semantic": Format(
        {"image_root": True, "label_root": True},
        register_semantic,
        {"classes": (list, True), "ignore_value": (int, False), "label_map": (dict, False)},
    ),
}


def read_json(path: str, key: str | None = None) -> Any:
    """The content of a COCO file, or of one key of it.

    Raises:
        DatasetError: no JSON, or there is no such key.
    """
    try:
        with open(path) as file:
            content = json.load(file)
        return content if key is None else content[key]
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path} is no valid JSON: {error}") from error
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{path} has no {key!r}; it is not a COCO file") from error
