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
    road_train:
      format: semantic
      image_root: pictures
      label_root: labels
      classes: [road, {name: car, color: [0, 0, 142]}]
      ignore_value: 255                                 # optional
      label_map: {7: 0, 26: 1}                          # optional: value in the files -> class

Paths are relative to the catalog, and may name environment variables; ``${DETECTRON2_DATASETS}``,
the folder of all data sets, is ./datasets unless set, as in Detectron2.
"""

import os
from pathlib import Path
from string import Template
from typing import Any

import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import DatasetError
from .formats import FORMATS, Entry

_registered: dict[str, dict[str, Any]] = {}


def register_catalog(path: str | os.PathLike) -> list[str]:
    """Register every data set of a catalog; doing so twice is harmless.

    Returns:
        The names, in the file's order.

    Raises:
        DatasetError: the catalog or a file it names is missing, or an entry is malformed.
    """
    path = expand_path(path)
    if not path.is_file():
        raise DatasetError(
            f"data set catalog {path.absolute()} does not exist (DATASETS.CATALOG, relative to the "
            "working directory); tools/make_sample_dataset.py makes the sample's, output/sample/"
            "catalog.yaml"
        )
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


def register_dataset(name: str, entry: Entry) -> None:
    """Register one data set from Python; ``entry`` is as in a catalog, with absolute paths."""
    if name in _registered and _registered[name] == entry:
        return
    if name in DatasetCatalog:
        raise DatasetError(f"a data set named {name} is registered already; choose another name")
    FORMATS[entry["format"]].register(name, entry)
    _registered[name] = dict(entry)


def class_names(name: str) -> list[str] | None:
    """The names of a registered data set's classes, by contiguous id; None if it has none."""
    metadata = MetadataCatalog.get(name)
    instances_only = metadata.get("evaluator_type") in ("coco", "cityscapes_instance")
    # Cityscapes' sets all list both; panoptic ones list all classes as stuff_classes.
    kinds = ("thing_classes", "stuff_classes")
    lists = [metadata.get(kind) for kind in (kinds if instances_only else kinds[::-1])]
    return next((list(names) for names in lists if names), None)


def _check_entry(path: Path, name: str, entry: Any) -> dict[str, Any]:
    """``entry`` with its paths made absolute, once its keys and files are known to be there."""
    where = f"{path}, data set {name}"
    kind = entry.get("format") if isinstance(entry, dict) else None
    if kind not in FORMATS:
        raise DatasetError(f"{where}: format is {kind!r}; it must be one of {sorted(FORMATS)}")
    paths, values = FORMATS[kind].paths, FORMATS[kind].values
    required = dict(paths) | {k: v[1] for k, v in values.items()}
    unknown = set(entry) - set(required) - {"format"}
    missing = {key for key, must in required.items() if must} - set(entry)
    if unknown or missing:
        raise DatasetError(
            f"{where}: unknown keys {sorted(unknown)}, missing keys {sorted(missing)}; "
            f"{kind} has {list(required)}"
        )
    checked: dict[str, Any] = {"format": kind}
    for key in [key for key in paths if key in entry]:
        if not isinstance(entry[key], str):
            raise DatasetError(f"{where}: {key} is {entry[key]!r}; write a path, in quotes")
        value = Path(os.path.abspath(path.parent / expand_path(entry[key])))
        if not value.exists():
            hint = ""
            if "DETECTRON2_DATASETS" in entry[key]:
                hint = "; set DETECTRON2_DATASETS to the folder of your data sets"
            raise DatasetError(f"{where}: {key} {value} does not exist{hint}")
        checked[key] = str(value)
    for key in values.keys() & entry.keys():
        expected = values[key][0]
        if not isinstance(entry[key], expected):
            raise DatasetError(f"{where}: {key} must be a {expected.__name__}")
        checked[key] = entry[key]
    return checked
