"""Sample scenes on disk, in COCO's formats: panoptic PNG and json, instances json, semantic PNG."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from .scene import Scene

# Ids with gaps, as COCO's: whoever reads the set has to map them. Ascending, things first, so that
# a category's rank is its index in the semantic PNG.
CATEGORIES: tuple[dict[str, Any], ...] = tuple(
    {"id": id_, "name": name, "supercategory": group, "isthing": isthing, "color": color}
    for id_, name, group, isthing, color in (
        (1, "person", "person", 1, [220, 20, 60]),
        (3, "car", "vehicle", 1, [20, 60, 170]),
        (5, "balloon", "vehicle", 1, [250, 170, 30]),
        (8, "tree", "plant", 1, [20, 120, 70]),
        (20, "sky", "outdoor", 0, [70, 130, 180]),
        (21, "mountain", "outdoor", 0, [150, 120, 90]),
        (25, "water", "outdoor", 0, [90, 215, 235]),
        (26, "grass", "outdoor", 0, [150, 235, 150]),
        (30, "road", "outdoor", 0, [128, 64, 128]),
    )
)
IGNORED = 255  # in the semantic PNG; in the panoptic PNG, ignored pixels have id 0
_RANK = {category["name"]: rank for rank, category in enumerate(CATEGORIES)}


def write_split(root: Path, split: str, scenes: Iterable[Scene]) -> None:
    """Write pictures and annotations of one split under ``root``.

    Pictures are numbered from 1: ``root/<split>/<12 digits>.jpg``, and PNGs of the same name in
    ``root/annotations/panoptic_<split>`` and ``root/annotations/semantic_<split>``.
    """
    annotations = root / "annotations"
    pictures = root / split
    panoptic_root = annotations / f"panoptic_{split}"
    semantic_root = annotations / f"semantic_{split}"
    for folder in (pictures, panoptic_root, semantic_root):
        folder.mkdir(parents=True)
    images, panoptic, instances = [], [], []
    for image_id, scene in enumerate(scenes, start=1):
        stem = f"{image_id:012d}"
        height, width = scene.index.shape
        images.append(
            {"id": image_id, "file_name": f"{stem}.jpg", "height": height, "width": width}
        )
        Image.fromarray(scene.image).save(pictures / f"{stem}.jpg", quality=90)
        ids = _segment_ids(scene)
        Image.fromarray(_to_rgb(ids[scene.index])).save(panoptic_root / f"{stem}.png")
        Image.fromarray(_semantic(scene)).save(semantic_root / f"{stem}.png")
        segments = _describe(scene, ids[1:].tolist())
        panoptic.append(
            {"image_id": image_id, "file_name": f"{stem}.png", "segments_info": segments}
        )
        for number, segment in enumerate(segments, start=1):
            if CATEGORIES[_rank_of(scene, number)]["isthing"]:
                shape = _encode(scene.index == number, bool(segment["iscrowd"]))
                record = {"id": len(instances) + 1, "image_id": image_id, "segmentation": shape}
                instances.append(segment | record)
    info = {"description": "Generated scenes for trying Mask2Former out"}
    things = [category for category in CATEGORIES if category["isthing"]]
    _dump(annotations / f"panoptic_{split}.json", info, images, panoptic, list(CATEGORIES))
    _dump(annotations / f"instances_{split}.json", info, images, instances, things)


def _dump(path: Path, info: dict, images: list, annotations: list, categories: list) -> None:
    content = {
        "info": info,
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    path.write_text(json.dumps(content))


def _rank_of(scene: Scene, number: int) -> int:
    """Contiguous class index of segment ``number`` (1, 2, ...)."""
    return _RANK[scene.segments[number - 1].category]


def _segment_ids(scene: Scene) -> np.ndarray:
    """Panoptic id of each value of the index map, (S + 1,) int64; 0 stays 0 (ignored).

    The PNG shows the first segment of a category in the category's colour, each further one in a
    shade that is still free.
    """
    ids = [0]
    for number in range(1, len(scene.segments) + 1):
        red, green, blue = CATEGORIES[_rank_of(scene, number)]["color"]
        step = 0
        while (id_ := red + 256 * ((green + 13 * step) % 256) + 65536 * blue) in ids:
            step += 1
        ids.append(id_)
    return np.asarray(ids, np.int64)


def _to_rgb(ids: np.ndarray) -> np.ndarray:
    """COCO's colours of panoptic ids (h, w): id = R + 256 G + 65536 B."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)


def _semantic(scene: Scene) -> np.ndarray:
    """(h, w) uint8 contiguous class indices, ``IGNORED`` where the scene has none."""
    ranks = [_RANK[segment.category] for segment in scene.segments]
    return np.asarray([IGNORED, *ranks], np.uint8)[scene.index]


def _describe(scene: Scene, ids: list[int]) -> list[dict[str, Any]]:
    """COCO's ``segments_info`` of a scene."""
    segments = []
    for number, (id_, segment) in enumerate(zip(ids, scene.segments), start=1):
        mask = scene.index == number
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y = int(columns[0]), int(rows[0])
        segments.append(
            {
                "id": id_,
                "category_id": CATEGORIES[_RANK[segment.category]]["id"],
                "area": int(mask.sum()),
                "bbox": [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1],
                "iscrowd": int(segment.iscrowd),
            }
        )
    return segments


def _encode(mask: np.ndarray, iscrowd: bool) -> list[list[float]] | dict[str, Any]:
    """COCO ``segmentation`` of a bool mask (h, w) that decodes to the same pixels.

    Polygons if possible, run lengths for masks with holes (compressed) and crowds (plain counts).
    """
    if iscrowd:
        columns_first = mask.ravel(order="F").astype(np.int8)
        edges = np.flatnonzero(np.diff(columns_first, prepend=0, append=0))
        counts = np.diff(edges, prepend=0).tolist()
        rest = mask.size - sum(counts)
        return {"size": list(mask.shape), "counts": counts + [rest] * (rest > 0)}
    polygons = _polygons(mask)
    height, width = mask.shape
    if polygons:
        drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
        if np.array_equal(drawn.astype(bool), mask):
            return polygons
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}


def _polygons(mask: np.ndarray) -> list[list[float]] | None:
    """Outlines of a mask, flat [x0, y0, x1, y1, ...] each; None if it has holes."""
    # On a grid twice as fine, the outline runs within the border pixels, not through their centres.
    fine = np.kron(mask.astype(np.uint8), np.ones((2, 2), np.uint8))
    contours, hierarchy = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if (hierarchy[0, :, 3] >= 0).any():
        return None
    return [((contour.reshape(-1) + 0.5) / 2).tolist() for contour in contours]
