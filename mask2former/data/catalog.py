"""Your own data sets from a YAML file, registered under Detectron2's names and conventions.

A catalog maps names to entries (docs/CUSTOM_DATA.md)::

    nuts_train:
      format: coco_instances
      image_root: images
      json: trainval.json
    park_val:
      format: coco_panoptic
      image_root: val
      panoptic_json: annotations/panoptic_val.json
      panoptic_root: annotations/panoptic_val
      instances_json: annotations/instances_val.json    # optional: enables AP
      semantic_root: annotations/semantic_val           # optional: enables mIoU

Paths are relative to the catalog, and may name environment variables; ``${DETECTRON2_DATASETS}``,
the folder of all data sets, is ./datasets unless set, as in Detectron2.
"""

import json
import os
from pathlib import Path
from string import Template
from typing import Any

import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from ..errors import DatasetError

# Keys of each format: whether they must be there.
FORMATS: dict[str, dict[str, bool]] = {
    "coco_instances": {"image_root": True, "json": True},
    "coco_panoptic": {
        "image_root": True,
        "panoptic_json": True,
        "panoptic_root": True,
        "instances_json": False,
        "semantic_root": False,
    },
}

_registered: dict[str, dict[str, str]] = {}


def register_catalog(path: str | os.PathLike) -> list[str]:
    """Register every data set of a catalog; doing so twice is harmless.

    Returns:
        The names, in the file's order.

    Raises:
        DatasetError: the catalog or a file it names is missing, or an entry is malformed.
    """
    path = expand_path(path)
    if not path.is_file():
        raise DatasetError(f"data set catalog {path} does not exist (DATASETS.CATALOG)")
    try:
        entries = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise DatasetError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(entries, dict):
        raise DatasetError(f"{path} must map data set names to their entries")
    for name, entry in entries.items():
        register_dataset(name, _check_entry(path, name, entry))
    return list(entries)


def expand_path(path: str | os.PathLike) -> Path:
    """Replace ``~`` and environment variables."""
    variables = {"DETECTRON2_DATASETS": os.path.abspath("datasets"), **os.environ}
    return Path(Template(os.fspath(path)).safe_substitute(variables)).expanduser()


def register_dataset(name: str, entry: dict[str, str]) -> None:
    """Register one data set from Python; ``entry`` is as in a catalog, with absolute paths."""
    if name in _registered and _registered[name] == entry:
        return
    if name in DatasetCatalog:
        raise DatasetError(f"a data set named {name} is registered already; choose another name")
    if entry["format"] == "coco_instances":
        _register_coco_instances(name, entry)
    else:
        _register_coco_panoptic(name, entry)
    _registered[name] = dict(entry)


def _check_entry(path: Path, name: str, entry: Any) -> dict[str, str]:
    """``entry`` with its paths made absolute, once its keys and files are known to be there."""
    where = f"{path}, data set {name}"
    kind = entry.get("format") if isinstance(entry, dict) else None
    if kind not in FORMATS:
        raise DatasetError(f"{where}: format is {kind!r}; it must be one of {sorted(FORMATS)}")
    keys = FORMATS[kind]
    unknown = set(entry) - set(keys) - {"format"}
    missing = {key for key, required in keys.items() if required} - set(entry)
    if unknown or missing:
        raise DatasetError(
            f"{where}: unknown keys {sorted(unknown)}, missing keys {sorted(missing)}; "
            f"{kind} has {list(keys)}"
        )
    checked = {"format": kind}
    for key in keys.keys() & entry.keys():
        value = Path(os.path.abspath(path.parent / expand_path(entry[key])))
        if not value.exists():
            raise DatasetError(f"{where}: {key} {value} does not exist")
        checked[key] = str(value)
    return checked


def _register_coco_instances(name: str, entry: dict[str, str]) -> None:
    categories = _read_json(entry["json"], "categories")
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


def load_coco_instances(name: str, entry: dict[str, str]) -> list[dict[str, Any]]:
    """Records of a COCO instances json, in Detectron2's format."""
    try:
        return load_coco_json(entry["json"], entry["image_root"], name)
    except KeyError as error:
        # Detectron2 names the category id; the file is ours to name.
        raise DatasetError(
            f"{entry['json']}: {error.args[0]} Add the category, or remove the annotation"
        ) from error


def _register_coco_panoptic(name: str, entry: dict[str, str]) -> None:
    categories = _read_json(entry["panoptic_json"], "categories")
    # Things come first: COCO's evaluation of instances counts on their ids being 0, 1, 2, ...
    categories = sorted(categories, key=lambda c: (not c["isthing"], c["id"]))
    contiguous = {category["id"]: i for i, category in enumerate(categories)}
    things = [category for category in categories if category["isthing"]]
    DatasetCatalog.register(name, lambda: load_coco_panoptic(entry, contiguous, len(things)))
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
    entry: dict[str, str], contiguous: dict[int, int], num_things: int
) -> list[dict[str, Any]]:
    """Records of a COCO panoptic json, in Detectron2's format.

    Args:
        contiguous: contiguous id of each category id.
        num_things: contiguous ids below this are things.

    Raises:
        DatasetError: an annotation names an unknown picture or category.
    """
    path = entry["panoptic_json"]
    content = _read_json(path)
    images = {image["id"]: image for image in content["images"]}
    records = []
    for annotation in content["annotations"]:
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
            segments.append(segment | {"category_id": class_id, "isthing": class_id < num_things})
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


def _read_json(path: str, key: str | None = None) -> Any:
    try:
        with open(path) as file:
            content = json.load(file)
        return content if key is None else content[key]
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path} is no valid JSON: {error}") from error
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{path} has no {key!r}; it is not a COCO file") from error
