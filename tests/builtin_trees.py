"""Tiny trees of the builtin data sets in their official layouts, and what is painted in them.

Each ``paint_*`` writes what is downloaded, of one split, below a root; the preparation scripts and
the registration of the package do the rest.
"""

import contextlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import scipy.io
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin as detectron2_builtin
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES, COCO_CATEGORIES
from PIL import Image

from mask2former.data.builtin import load_categories, register_builtin

SCRIPTS = Path(__file__).resolve().parent.parent / "datasets"
SIZE = (40, 56)
VOID = -1


@dataclass
class Scene:
    """``semantic``: (h, w) classes from 0, or VOID; ``segments``: class, whether a thing, mask."""

    picture: np.ndarray
    semantic: np.ndarray
    segments: list[tuple[int, bool, np.ndarray]]

    @property
    def things(self) -> list[tuple[int, np.ndarray]]:
        return [(class_id, mask) for class_id, thing, mask in self.segments if thing]


def scene(stuff: tuple[int, int], things: tuple[int, int], *, seed: int = 0) -> Scene:
    """A band of nothing, two areas of stuff; on them two objects of things[0], one of things[1]."""
    rng = np.random.default_rng(seed)
    semantic = np.full(SIZE, VOID)
    semantic[4:, :28], semantic[4:, 28:] = stuff
    boxes = [(8, 4), (8, 20), (24, 12 + 4 * (seed % 3))]
    segments = []
    for class_id, (y, x) in zip((things[0], things[0], things[1]), boxes):
        mask = np.zeros(SIZE, dtype=bool)
        mask[y : y + 10, x : x + 12] = True
        semantic[mask] = class_id
        segments.append((class_id, True, mask))
    segments += [(class_id, False, semantic == class_id) for class_id in stuff]
    return Scene(rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8), semantic, segments)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def script(name: str) -> ModuleType:
    """A script of datasets/, imported."""
    if str(SCRIPTS) not in sys.path:
        sys.path.insert(0, str(SCRIPTS))
    module_name = name.removesuffix(".py").replace(".", "_")
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, SCRIPTS / name)
        sys.modules[module_name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module_name])
    return sys.modules[module_name]


@contextlib.contextmanager
def registered_below(root: Path) -> Iterator[None]:
    """All builtin data sets, Detectron2's too, are registered below ``root``, for a while."""
    catalogs = (DatasetCatalog, MetadataCatalog)
    before = [dict(catalog.data) for catalog in catalogs]
    for catalog in catalogs:
        catalog.data.clear()
    detectron2_builtin.register_all_coco(str(root))
    detectron2_builtin.register_all_ade20k(str(root))
    detectron2_builtin.register_all_cityscapes(str(root))
    detectron2_builtin.register_all_cityscapes_panoptic(str(root))
    register_builtin(root)
    try:
        yield
    finally:
        for catalog, data in zip(catalogs, before):
            catalog.data.clear()
            catalog.data.update(data)


def paint_ade20k(root: Path, split: str = "val", count: int = 2) -> dict[str, Scene]:
    """Wall, sky; two beds, a clock: classes 0, 2, 7 and 148 of the 150."""
    root = root / "ADEChallengeData2016"
    folder = {"train": "training", "val": "validation"}[split]
    numbers = {c["id"]: i for i, c in enumerate(load_categories("ade20k_instance_100"), start=1)}
    scenes = {f"ADE_{split}_{i + 1:08d}": scene((0, 2), (7, 148), seed=i) for i in range(count)}
    for stem, painted in scenes.items():
        save(root / "images" / folder / f"{stem}.jpg", painted.picture)
        labels = (painted.semantic + 1).astype(np.uint8)
        save(root / "annotations" / folder / f"{stem}.png", labels)
        instances = np.zeros((*SIZE, 3), dtype=np.uint8)
        for i, (class_id, mask) in enumerate(painted.things, start=1):
            instances[mask] = (numbers[class_id], i, 0)
        save(root / "annotations_instance" / folder / f"{stem}.png", instances)
    return scenes


def paint_ade20k_full(root: Path, split: str = "val", count: int = 2) -> dict[str, Scene]:
    """Classes 0, 846, 300 and 7 of the 847, and one object that is none of them."""
    folder = {"train": "training", "val": "validation"}[split]
    source = root / "ADE20K_2021_17_01" / "images" / "ADE" / folder / "urban" / "street"
    ids = np.array([category["id"] for category in load_categories("ade20k_full_847")])
    scenes = {f"ADE_{split}_{i + 1:08d}": scene((0, 846), (300, 7), seed=i) for i in range(count)}
    for stem, painted in scenes.items():
        save(source / f"{stem}.jpg", painted.picture)
        numbers = np.where(painted.semantic == VOID, 0, ids[painted.semantic])
        numbers[0, :5] = 1  # is no class of the 847
        segments = np.stack([numbers // 256 * 10, numbers % 256, 0 * numbers], axis=-1)
        save(source / f"{stem}_seg.png", segments.astype(np.uint8))
    return scenes


def paint_coco(root: Path, split: str = "val", count: int = 2) -> dict[str, Scene]:
    """The first and the last stuff class; two dogs, a toothbrush. Panoptic and instances."""
    root, folder = root / "coco", f"{split}2017"
    contents = [{"images": [], "annotations": [], "categories": COCO_CATEGORIES} for _ in "pi"]
    panoptic, instances = contents
    instances["categories"] = [c for c in COCO_CATEGORIES if c["isthing"]]
    scenes = {f"{i + 1:012d}": scene((80, 132), (16, 79), seed=i) for i in range(count)}
    for image_id, (stem, painted) in enumerate(scenes.items(), start=1):
        save(root / folder / f"{stem}.jpg", painted.picture)
        image = {"id": image_id, "file_name": f"{stem}.jpg", "height": SIZE[0], "width": SIZE[1]}
        ids = np.zeros(SIZE, dtype=np.int64)
        segments = []
        for i, (class_id, thing, mask) in enumerate(painted.segments, start=1):
            ids[mask] = 1000 * i
            y, x = (axis.min() for axis in np.nonzero(mask))
            segment = {
                "id": 1000 * i,
                "category_id": COCO_CATEGORIES[class_id]["id"],
                "iscrowd": 0,
                "area": int(mask.sum()),
                "bbox": [int(x), int(y), int(np.ptp(np.nonzero(mask)[1])) + 1, 1],
            }
            segments.append(segment)
            if thing:  # a rectangle of 12 x 10
                x, y = int(x), int(y)
                polygon = [x, y, x + 12, y, x + 12, y + 10, x, y + 10]
                number = len(instances["annotations"]) + 1
                extra = {"id": number, "image_id": image_id, "segmentation": [polygon]}
                instances["annotations"].append(segment | extra | {"bbox": [x, y, 12, 10]})
        colors = np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=-1)
        save(root / f"panoptic_{folder}" / f"{stem}.png", colors.astype(np.uint8))
        panoptic["annotations"].append(
            {"image_id": image_id, "file_name": f"{stem}.png", "segments_info": segments}
        )
        for content in contents:
            content["images"].append(image)
    (root / "annotations").mkdir(exist_ok=True)
    for kind, content in zip(("panoptic", "instances"), contents):
        (root / "annotations" / f"{kind}_{folder}.json").write_text(json.dumps(content))
    return scenes


def paint_coco_stuff_10k(root: Path, split: str = "test", count: int = 2) -> dict[str, Scene]:
    """Classes 0, 170, 100 and 7 of the 171."""
    root = root / "coco" / "coco_stuff_10k"
    scenes = {
        f"COCO_train2014_{i + 1:012d}": scene((0, 170), (100, 7), seed=i) for i in range(count)
    }
    for stem, painted in scenes.items():
        save(root / "images" / f"{stem}.jpg", painted.picture)
        (root / "annotations").mkdir(exist_ok=True)
        labels = (painted.semantic + 2).astype(np.uint8)  # 1: unlabeled
        scipy.io.savemat(root / "annotations" / f"{stem}.mat", {"S": labels})
    (root / "imageLists").mkdir(exist_ok=True)
    (root / "imageLists" / f"{split}.txt").write_text("\n".join(scenes) + "\n")
    return scenes


def paint_mapillary_vistas(root: Path, split: str = "val", count: int = 2) -> dict[str, Scene]:
    """Road, sky; two cars, a person, which are classes 13, 27, 55 and 19 of the 65."""
    root = root / "mapillary_vistas" / {"train": "training", "val": "validation"}[split]
    categories = load_categories("mapillary_vistas_65")
    content = {"images": [], "annotations": [], "categories": categories}
    scenes = {f"vistas_{split}_{i}": scene((13, 27), (55, 19), seed=i) for i in range(count)}
    for stem, painted in scenes.items():
        save(root / "images" / f"{stem}.jpg", painted.picture)
        labels = np.where(painted.semantic == VOID, 65, painted.semantic).astype(np.uint8)
        save(root / "labels" / f"{stem}.png", labels)
        ids = np.zeros((*SIZE, 3), dtype=np.uint8)
        segments = []
        for i, (class_id, _, mask) in enumerate(painted.segments, start=1):
            ids[mask] = (i, 0, 0)
            segments.append({"id": i, "category_id": categories[class_id]["id"], "iscrowd": 0})
        save(root / "panoptic" / f"{stem}.png", ids)
        size = {"height": SIZE[0], "width": SIZE[1]}
        content["images"].append({"id": stem, "file_name": f"{stem}.jpg", **size})
        content["annotations"].append(
            {"image_id": stem, "file_name": f"{stem}.png", "segments_info": segments}
        )
    (root / "panoptic" / "panoptic_2018.json").write_text(json.dumps(content))
    return scenes


def paint_cityscapes(root: Path, split: str = "val", count: int = 2) -> dict[str, Scene]:
    """Road, sky; two cars, a person, which are classes 0, 10, 13 and 11 of the 19."""
    root = root / "cityscapes"
    scenes = {f"ulm_{i:06d}_000019": scene((0, 10), (13, 11), seed=i) for i in range(count)}
    for stem, painted in scenes.items():
        save(root / "leftImg8bit" / split / "ulm" / f"{stem}_leftImg8bit.png", painted.picture)
        prefix = root / "gtFine" / split / "ulm" / f"{stem}_gtFine_"
        label_ids, instance_ids = (np.zeros(SIZE, dtype=np.uint16) for _ in range(2))
        objects = []
        for i, (class_id, thing, mask) in enumerate(painted.segments):
            category = CITYSCAPES_CATEGORIES[class_id]
            label_ids[mask] = category["id"]
            instance_ids[mask] = category["id"] * 1000 + i if thing else category["id"]
            y, x = np.nonzero(mask)
            corners = [
                (x.min(), y.min()),
                (x.max(), y.min()),
                (x.max(), y.max()),
                (x.min(), y.max()),
            ]
            polygon = [[int(a), int(b)] for a, b in corners]
            objects.insert(0, {"label": category["name"], "polygon": polygon})
        save(Path(f"{prefix}labelIds.png"), label_ids.astype(np.uint8))
        save(Path(f"{prefix}instanceIds.png"), instance_ids)
        annotation = {"imgHeight": SIZE[0], "imgWidth": SIZE[1], "objects": objects}
        Path(f"{prefix}polygons.json").write_text(json.dumps(annotation))
    return scenes
