"""What COCO's json files hold before any loader has dropped, merged or refused it."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from detectron2.data import MetadataCatalog

from ...errors import DatasetError
from ..formats import read_json
from .findings import Finding, Severity
from .records import polygon_fault


def json_findings(name: str) -> Iterator[Finding]:
    """Check the json files that a data set is registered with."""
    metadata = MetadataCatalog.get(name)
    panoptic = metadata.get("panoptic_json")
    for path in dict.fromkeys((metadata.get("json_file"), panoptic)):
        if not path:
            continue
        try:
            content = read_json(path)
            yield from CocoFile(path, content).findings()
        except (DatasetError, OSError, KeyError, TypeError) as error:
            yield Finding("error", "unreadable json", path, "whole file", _reason(error))


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"an entry has no {error.args[0]!r}, which COCO's format has; add it"
    return f"{error}; write it again in COCO's format"


def mended(path: str) -> dict[str, Any]:
    """A COCO file's content without the entries that keep loaders from reading the rest.

    These are repeated ids and what belongs to no image or category.
    """
    content = read_json(path)
    file = CocoFile(path, content)
    annotations = [a for a in file.annotations if a["image_id"] in file.image_ids]
    if file.panoptic:
        annotations = [
            a | {"segments_info": [s for s in a["segments_info"] if file.knows_category(s)]}
            for a in annotations
        ]
    else:
        unique = {a["id"]: a for a in reversed(annotations)}  # of several, the first
        annotations = [a for a in annotations if file.knows_category(a) and unique[a["id"]] is a]
    images = {image["id"]: image for image in reversed(file.images)}
    return content | {"images": list(images.values())[::-1], "annotations": annotations}


class CocoFile:
    """Instances (``annotations`` are objects) or panoptic (``annotations`` are pictures)."""

    def __init__(self, path: str, content: dict[str, Any]) -> None:
        self.path = path
        self.images: list[dict[str, Any]] = content["images"]
        self.annotations: list[dict[str, Any]] = content["annotations"]
        self.categories: list[dict[str, Any]] = content["categories"]
        self.image_ids = {image["id"] for image in self.images}
        self.category_ids = {category["id"] for category in self.categories}
        self.panoptic = any("segments_info" in annotation for annotation in self.annotations)

    def knows_category(self, item: dict[str, Any]) -> bool:
        return item["category_id"] in self.category_ids

    def finding(self, kind: str, id_: str, message: str, severity: Severity = "error") -> Finding:
        return Finding(severity, kind, self.path, id_, message)

    def findings(self) -> Iterator[Finding]:
        yield from self.duplicates("category id", [c["id"] for c in self.categories])
        yield from self.duplicates("image id", [image["id"] for image in self.images])
        if not self.panoptic:
            yield from self.duplicates("annotation id", [a["id"] for a in self.annotations])
        for annotation in self.annotations:
            where = f"image id {annotation['image_id']}"
            if not self.panoptic:
                where += f", annotation id {annotation['id']}"
            if annotation["image_id"] not in self.image_ids:
                yield self.finding(
                    "unknown image",
                    where,
                    "its image is not among the images of this file, and it counts for nothing; "
                    "add the image, or remove the annotation",
                )
            for item in annotation["segments_info"] if self.panoptic else [annotation]:
                if not self.knows_category(item):
                    segment = f", segment id {item['id']}" if self.panoptic else ""
                    yield self.finding(
                        "unknown category",
                        where + segment,
                        f"category_id {item['category_id']} is not among the categories; add the "
                        "category, or correct the id",
                    )
            # Detectron2's loader drops such polygons without a word.
            segmentation = annotation.get("segmentation")
            if isinstance(segmentation, list) and (fault := polygon_fault(segmentation)):
                yield self.finding(fault[0], where, fault[1])
        if self.panoptic:
            yield from self.pictures_without_segments()

    def duplicates(self, what: str, ids: list[Any]) -> Iterator[Finding]:
        for id_, count in Counter(ids).items():
            if count > 1:
                yield self.finding(
                    f"duplicate {what}",
                    f"{what} {id_}",
                    f"{count} entries have this id; number them apart",
                )

    def pictures_without_segments(self) -> Iterator[Finding]:
        annotated = {annotation["image_id"] for annotation in self.annotations}
        for image in self.images:
            if image["id"] not in annotated:
                yield self.finding(
                    "picture without annotation",
                    f"image id {image['id']}",
                    f"{image['file_name']} has no entry among the annotations and is left out; "
                    "annotate it, or remove the image",
                    "warning",
                )
