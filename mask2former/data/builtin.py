"""The data sets that the published configs name, below one root folder (datasets/README.md).

Importing this module registers those that Detectron2 does not register itself, under the published
names, with Detectron2's metadata. Nothing but the class tables is read before a data set is loaded.
"""

import functools
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from ..errors import DatasetError
from .builtin_tables import BUILTIN, CONTENTS, SOURCES, TRAIN_VAL, Builtin
from .formats import load_coco_instances, load_coco_panoptic, load_semantic


@functools.cache
def load_categories(table: str) -> list[dict[str, Any]]:
    """The classes of a table, in the order of their contiguous ids: ``id``, ``name``, and for some
    ``isthing`` and ``color`` (categories/README.md). Not to be changed.
    """
    if table == "coco":
        return COCO_CATEGORIES
    path = Path(__file__).with_name("categories") / f"{table}.json"
    return json.loads(path.read_text("utf-8"))


def register_builtin(root: str | os.PathLike) -> list[str]:
    """Register the data sets below ``root``; names that are registered already stay as they are.

    Returns:
        The names of those it registered.
    """
    root = os.path.expanduser(root)
    registered = []
    for template, builtin in BUILTIN.items():
        for split, folder in builtin.splits.items():
            name = template.format(split=split)
            if name in DatasetCatalog:
                continue
            paths = {
                key: os.path.join(root, path.format(split=split, folder=folder))
                for key, path in builtin.paths.items()
            }
            DatasetCatalog.register(name, functools.partial(load_builtin, name, builtin, paths))
            MetadataCatalog.get(name).set(
                evaluator_type=builtin.evaluator_type, **paths, **class_metadata(builtin)
            )
            registered.append(name)
    for split in TRAIN_VAL:  # Detectron2's have no colours
        metadata = MetadataCatalog.get(f"ade20k_sem_seg_{split}")
        if metadata.get("stuff_colors") is None:
            metadata.set(stuff_colors=[c["color"] for c in load_categories("ade20k_150")])
    return registered


def class_metadata(builtin: Builtin) -> dict[str, Any]:
    """What metadata says about classes, by the task."""
    categories = load_categories(builtin.categories)
    contiguous = {category["id"]: i for i, category in enumerate(categories)}
    names = [category["name"] for category in categories]
    if builtin.task == "instance":
        return {"thing_classes": names, "thing_dataset_id_to_contiguous_id": contiguous}
    metadata: dict[str, Any] = {"stuff_classes": names, "ignore_label": builtin.ignore_label}
    if all("color" in category for category in categories):
        metadata["stuff_colors"] = [category["color"] for category in categories]
    if builtin.ids_in_results or builtin.task == "panoptic":
        metadata["stuff_dataset_id_to_contiguous_id"] = contiguous
    if builtin.task == "panoptic":
        things = [category for category in categories if category["isthing"]]
        listed = categories if builtin.all_things else things
        metadata |= {
            "label_divisor": 1000,
            "thing_classes": [category["name"] for category in listed],
            "thing_colors": [category["color"] for category in listed],
            "thing_dataset_id_to_contiguous_id": {c["id"]: contiguous[c["id"]] for c in things},
        }
    return metadata


def load_builtin(name: str, builtin: Builtin, paths: Mapping[str, str]) -> list[dict[str, Any]]:
    """The records of a data set, in Detectron2's format.

    Raises:
        DatasetError: see :func:`check_builtin`, or the annotations do not fit the class table.
    """
    check_builtin(name)
    if builtin.task == "semantic":
        entry = {"image_root": paths["image_root"], "label_root": paths["sem_seg_root"]}
        return load_semantic(name, entry)
    if builtin.task == "instance":
        return load_coco_instances(
            name, {"image_root": paths["image_root"], "json": paths["json_file"]}
        )
    metadata = MetadataCatalog.get(name)
    contiguous = metadata.stuff_dataset_id_to_contiguous_id
    things = set(metadata.thing_dataset_id_to_contiguous_id.values())
    return load_coco_panoptic({**paths, "semantic_root": paths["sem_seg_root"]}, contiguous, things)


def check_builtin(name: str) -> None:
    """Whether the folders and files of a builtin data set, or of one of Detectron2's that the
    published configs name, are there; other names pass.

    Raises:
        DatasetError: says which is missing, what belongs there, and what makes it.
    """
    source = SOURCES.get(name)
    if source is None:
        return
    metadata = MetadataCatalog.get(name)
    where = f"data set {name} ({source.title})"
    for key, content in CONTENTS.items():
        path = metadata.get(key)
        # Panoptic sets are trained on, and evaluated but for AP, without instances.
        if path is None or (key == "json_file" and metadata.get("panoptic_json")):
            continue
        path = os.path.abspath(path)
        if not os.path.exists(path):
            script = source.made_by.get(key)
            origin = f"run: python datasets/{script}" if script else "they are downloaded"
            raise DatasetError(
                f"{where}: {path} does not exist; {content} belong there: {origin} (the layout is "
                "in datasets/README.md, DETECTRON2_DATASETS names the root)"
            )
        pattern, script = source.probes.get(key, (None, None))
        if pattern and next(Path(path).glob(pattern), None) is None:
            raise DatasetError(f"{where}: {path} has no {pattern}; run: python datasets/{script}")
    missing = [module for module in source.modules if importlib.util.find_spec(module) is None]
    if missing:
        raise DatasetError(f"{where}: its loader needs: pip install {' '.join(missing)}")


register_builtin(os.getenv("DETECTRON2_DATASETS", "datasets"))
