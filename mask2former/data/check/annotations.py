"""What COCO's json files hold before any loader has dropped, merged or refused it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from ...errors import DatasetError
from ..formats import read_json
from .entries import (
    CATEGORY,
    IMAGE,
    KEYED,
    OBJECT,
    PANOPTIC,
    PANOPTIC_CATEGORY,
    SEGMENT,
    Field,
    entry_fault,
    is_number,
)
from .findings import Finding, Severity
from .masks import box_fault, mask_area, mask_fault, same_area

Entry = dict[str, Any]


def json_findings(name: str, *, evaluated: bool) -> Iterator[Finding]:
    """Check the json files that a data set is registered with.

    Args:
        evaluated: whether it is evaluated on, and needs what only that needs.
    """
    metadata = MetadataCatalog.get(name)
    panoptic = metadata.get("panoptic_json")
    for path in dict.fromkeys((metadata.get("json_file"), panoptic)):
        if not path:
            continue
        try:
            yield from CocoFile(path, panoptic=path == panoptic).findings(evaluated)
        except (DatasetError, OSError) as error:
            message = str(error).removeprefix(f"{path} ")
            yield Finding("error", "unreadable json", path, "whole file", message)


class CocoFile:
    """Instances (``annotations`` are objects) or panoptic (``annotations`` are pictures).

    Attributes:
        images, categories, annotations: the well-formed entries.
        malformed: a finding for each of the others.

    Raises:
        DatasetError: the file is no JSON, or not COCO's.
    """

    def __init__(self, path: str, *, panoptic: bool) -> None:
        self.path, self.panoptic = path, panoptic
        self.content = read_json(path)
        self.malformed: list[Finding] = []
        self.images = self._of_one_type("images", self._well_formed("images", IMAGE))
        self.categories = self._of_one_type("categories", self._well_formed("categories", KEYED))
        if not self.categories:
            raise DatasetError(f"{path} has no category; add those of its annotations")
        # Their ids alone let the annotations be read.
        self._check(self.categories, PANOPTIC_CATEGORY if panoptic else CATEGORY, "categories")
        self.annotations = self._well_formed("annotations", PANOPTIC if panoptic else OBJECT)
        if panoptic:
            self.annotations = [
                a | {"segments_info": self._check(a["segments_info"], SEGMENT, _segments_of(a))}
                for a in self.annotations
            ]
        self.image_by_id = {image["id"]: image for image in reversed(self.images)}
        self.category_ids = {category["id"] for category in self.categories}

    def _well_formed(self, key: str, fields: Mapping[str, Field]) -> list[Entry]:
        entries = self.content.get(key) if isinstance(self.content, dict) else None
        if not isinstance(entries, list):
            raise DatasetError(
                f"{self.path} has no list of {key!r}; it is not a COCO file: write it again"
            )
        return self._check(entries, fields, key)

    def _check(self, entries: list[Any], fields: Mapping[str, Field], where: str) -> list[Entry]:
        """Those entries that have the form; the others go into ``malformed``."""
        kept = []
        for index, entry in enumerate(entries):
            if (fault := entry_fault(entry, fields)) is None:
                kept.append(entry)
                continue
            id_ = f", id {entry['id']}" if isinstance(entry, dict) and "id" in entry else ""
            id_ = f"{where}, entry {index + 1}{id_}"
            self.malformed.append(self.finding("malformed entry", id_, fault))
        return kept

    def _of_one_type(self, key: str, entries: list[Entry]) -> list[Entry]:
        """Without entries whose id is a text among numbers or the reverse: loaders sort them."""
        texts = [isinstance(entry["id"], str) for entry in entries]
        text = sum(texts) > len(texts) / 2
        for entry, other in zip(entries, texts):
            if other != text:
                id_ = f"{key}, id {entry['id']!r}"
                message = "this id is a {}, those of others are {}s; write them alike".format(
                    *(("number", "text") if text else ("text", "number"))
                )
                self.malformed.append(self.finding("malformed entry", id_, message))
        return [entry for entry, other in zip(entries, texts) if other == text]

    def knows_category(self, item: Entry) -> bool:
        return item["category_id"] in self.category_ids

    def finding(self, kind: str, id_: str, message: str, severity: Severity = "error") -> Finding:
        return Finding(severity, kind, self.path, id_, message)

    def findings(self, evaluated: bool) -> Iterator[Finding]:
        yield from self.malformed
        yield from self.duplicates("category id", [c["id"] for c in self.categories])
        yield from self.duplicates("image id", [image["id"] for image in self.images])
        if self.panoptic:
            yield from self.pictures_without_segments()
        else:
            yield from self.duplicates("annotation id", [a["id"] for a in self.annotations])
        for annotation in self.annotations:
            where = f"image id {annotation['image_id']}"
            if not self.panoptic:
                where += f", annotation id {annotation['id']}"
            if annotation["image_id"] not in self.image_by_id:
                yield self.finding(
                    "unknown image",
                    where,
                    "its image is not among the images of this file, and it counts for nothing; "
                    "add the image, or remove the annotation",
                )
            elif not self.panoptic:
                yield from self.shape_findings(annotation, where, evaluated)
            for item in annotation["segments_info"] if self.panoptic else [annotation]:
                if not self.knows_category(item):
                    segment = f", segment id {item['id']}" if self.panoptic else ""
                    yield self.finding(
                        "unknown category",
                        where + segment,
                        f"category_id {item['category_id']} is not among the categories; add the "
                        "category, or correct the id",
                    )

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

    def shape_findings(self, annotation: Entry, where: str, evaluated: bool) -> Iterator[Finding]:
        """Mask, area and box of an object; each fault is told once."""
        image = self.image_by_id[annotation["image_id"]]
        size = (image["height"], image["width"])
        segmentation = annotation.get("segmentation")
        if not segmentation:
            message = "it has no mask, and is neither learnt nor found; draw it, or remove it"
            yield self.finding("object without mask", where, message)
        elif fault := mask_fault(segmentation, size):
            # Polygons of too few points Detectron2's loader drops without a word.
            yield self.finding(fault[0], where, fault[1])
        else:
            yield from self.area_findings(annotation, size, where, evaluated)
        if fault := box_fault(annotation.get("bbox"), BoxMode.XYWH_ABS, size):
            yield self.finding("box", where, fault, "warning")

    def area_findings(
        self, annotation: Entry, size: tuple[int, int], where: str, evaluated: bool
    ) -> Iterator[Finding]:
        use = "small, medium and large objects are told apart by it"
        stated = annotation.get("area")
        known = is_number(stated)
        area = mask_area(annotation["segmentation"], size, expected=stated if known else 0)
        if not area:
            message = "its mask has no pixel in the picture; draw it again, or remove it"
            yield self.finding("empty mask", where, message, "warning")
        elif not known:
            yield self.finding(
                "no area",
                where,
                f"it has no 'area' that is a number: {use}, and evaluation stops; the mask has "
                f"{area:.0f} pixels: add that",
                "error" if evaluated else "warning",
            )
        elif not same_area(stated, area):
            yield self.finding(
                "wrong area",
                where,
                f"its 'area' is {stated:g}, and its mask has {area:.0f} pixels: {use}; correct it",
                "warning",
            )

    def mended(self) -> dict[str, Any]:
        """The content without the entries that keep loaders from reading the rest: malformed ones,
        repeated ids, and what belongs to no image or category.
        """
        annotations = [a for a in self.annotations if a["image_id"] in self.image_by_id]
        if self.panoptic:
            annotations = [
                a | {"segments_info": [s for s in a["segments_info"] if self.knows_category(s)]}
                for a in annotations
            ]
        else:
            first = {a["id"]: a for a in reversed(annotations)}
            annotations = [a for a in annotations if self.knows_category(a) and first[a["id"]] is a]
            annotations = [a for a in annotations if not self._has_damaged_rle(a)]
        images = list(self.image_by_id.values())[::-1]
        categories = list({c["id"]: c for c in self.categories}.values())
        return self.content | {
            "images": images,
            "categories": categories,
            "annotations": annotations,
        }

    def _has_damaged_rle(self, annotation: Entry) -> bool:
        image, mask = self.image_by_id[annotation["image_id"]], annotation.get("segmentation")
        fault = mask_fault(mask or None, (image["height"], image["width"]))
        return fault is not None and fault[0] == "damaged RLE"


def _segments_of(annotation: Entry) -> str:
    return f"image id {annotation['image_id']}, segments_info"
