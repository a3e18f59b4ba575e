"""Planted faults: each is found, named with its file and id, and told how to be mended."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mask2former.data.build import load_records
from mask2former.data.catalog import register_dataset
from mask2former.data.check import check_dataset, record_findings
from mask2former.data.check.report import load_mended
from mask2former.data.check.sheet import annotation_sheet, draw_annotations
from mask2former.data.panoptic_png import id2rgb, rgb2id
from mask2former.errors import DatasetError

ROOT = Path(__file__).resolve().parents[2]
SIZE = (40, 60)
PICTURES = 9


@pytest.fixture
def instances_cfg(tiny_cfg):
    tiny_cfg.INPUT.DATASET_MAPPER_NAME = "coco_instance_lsj"
    tiny_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
    tiny_cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 100
    tiny_cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = True
    tiny_cfg.TEST.DETECTIONS_PER_IMAGE = 50
    return tiny_cfg


def annotation(number, image_id, **changes):
    x = 5 + 10 * (number % 3)
    rle = {"segmentation": [[x, 5, x + 8, 5, x + 8, 15, x, 15]], "bbox": [x, 5, 8, 10]}
    item = {"id": number, "image_id": image_id, "category_id": 10 + number % 2, "iscrowd": 0}
    return item | {"area": 80} | rle | changes


def write_instances(root, name, *, plant=lambda content, folder: None):
    """Nine pictures with three objects each, registered as ``name``."""
    folder = root / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    images = []
    for i in range(PICTURES):
        pixels = random.integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
        size = {"height": SIZE[0], "width": SIZE[1]}
        images.append({"id": i, "file_name": f"{i}.jpg", **size})
    annotations = [annotation(i, i // 3) for i in range(3 * PICTURES)]
    categories = [{"id": 10, "name": "nut"}, {"id": 11, "name": "bolt"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    plant(content, folder)
    (root / "instances.json").write_text(json.dumps(content))
    entry = {
        "format": "coco_instances",
        "image_root": str(folder),
        "json": str(root / "instances.json"),
    }
    register_dataset(name, entry)
    return name


def plant_ten(content, folder):
    images, annotations = content["images"], content["annotations"]
    annotations[0]["category_id"] = 77
    (folder / "1.jpg").unlink()
    whole = (folder / "2.jpg").read_bytes()
    (folder / "2.jpg").write_bytes(whole[: len(whole) // 2])
    images[3] |= {"width": SIZE[0], "height": SIZE[1]}
    annotations[13]["id"] = annotations[12]["id"]
    for item in annotations[15:18]:
        item["iscrowd"] = 1
    annotations += [annotation(1000 + i, 7) for i in range(300)]
    small = pycocotools.mask.encode(np.ones((10, 20), np.uint8, order="F"))
    annotations[24]["segmentation"] = small | {"counts": small["counts"].decode()}
    content["annotations"] = [a for a in annotations if a["image_id"] != 6]


EXPECTED = {
    "wrong id": r"ERROR unknown category \(1\)\n  \S+instances.json \(image id 0, annotation id 0\)"
    r": category_id 77 is not among the categories; add the category, or correct the id",
    "missing file": r"ERROR missing file \(1\)\n  \S+/1.jpg \(image id 1\): this picture does not "
    r"exist; add it, correct the folder .*, or remove the entry",
    "truncated JPEG": r"ERROR unreadable file \(1\)\n  \S+/2.jpg \(image id 2\): cannot be read as "
    r"a picture \(.*truncated.*\); replace the file or leave it out",
    "swapped size": r"ERROR picture of another size \(1\)\n  \S+/3.jpg \(image id 3\): the picture "
    r"is 60 x 40 pixels, its annotations say 40 x 60; width and height are swapped: correct them",
    "duplicate id": r"ERROR duplicate annotation id \(1\)\n  \S+instances.json \(annotation id 12\)"
    r": 2 entries have this id; number them apart",
    "crowd only": r"WARNING only crowds \(1\)\n  \S+/5.jpg \(image id 5\): the picture has only "
    r"crowds \(3\) and is left out of training",
    "empty": r"WARNING empty picture \(1\)\n  \S+/6.jpg \(image id 6\): the picture has no "
    r"annotation and is left out of training",
    "ignore = class": r"WARNING ignore value is a class \(1\)\n  data set \S+ \(MODEL.SEM_SEG_HEAD."
    r"IGNORE_VALUE 1\): 1 is also the number of class 'bolt'.*no label maps; choose a value that",
    "300 objects": r"WARNING more objects than queries \(1\)\n  \S+/7.jpg \(image id 7\): 303 "
    r"objects, .*raise MODEL.MASK_FORMER.NUM_OBJECT_QUERIES above 303",
    "300 detections": r"WARNING more objects than detections \(1\)\n  \S+/7.jpg \(image id 7\): 303"
    r" objects, but at most 50 .*raise TEST.DETECTIONS_PER_IMAGE to 303",
    "RLE of another size": r"ERROR RLE of another size \(1\)\n  \S+instances.json \(image id 8, "
    r"annotation id 24\): the RLE is 20 x 10 pixels, the picture 60 x 40; encode the mask again",
}


def test_ten_planted_faults(instances_cfg, tmp_path):
    name = write_instances(tmp_path, "planted", plant=plant_ten)
    instances_cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 1
    report = check_dataset(name, instances_cfg)
    assert not report.ok and len(report.records) == PICTURES
    text = report.text(limit=None)
    for fault, pattern in EXPECTED.items():
        assert re.search(pattern, text), fault
    assert len([f for f in report.findings if f.severity == "error"]) == 6
    assert {f.kind for f in report.findings if f.severity == "warning"} == {
        *("only crowds", "empty picture", "ignore value is a class"),
        *("more objects than queries", "more objects than detections"),
    }


def test_nothing_to_complain_about(instances_cfg, tmp_path):
    report = check_dataset(write_instances(tmp_path, "clean"), instances_cfg)
    assert report.ok and not report.findings
    assert report.classes == [("nut", 14, 9, 0), ("bolt", 13, 9, 0)]
    assert "3.0 on average, 3 at most" in report.text() and "nothing to" in report.text()


def no_key(key):
    return {key: REMOVED}


REMOVED = object()
HALF = {"size": list(SIZE), "counts": [100, 50]}


@pytest.mark.parametrize(
    "changes, severity, kind, message",
    [
        ({"image_id": 99}, "error", "unknown image", "its image is not among the images"),
        ({"bbox": [50, 5, 30, 10]}, "warning", "box", "leaves the picture of 60 x 40 pixels"),
        ({"bbox": [5, 5, 0, 10]}, "warning", "box", "has no area"),
        ({"bbox": [5, 5, 8]}, "error", "malformed entry", "'bbox' is [5, 5, 8], and must be four"),
        ({"bbox": [5, 5, float("nan"), 8]}, "error", "malformed entry", "must be four numbers"),
        ({"segmentation": [[1, 2, 3, 4]]}, "error", "polygon of fewer than 3", "draw it again"),
        ({"segmentation": []}, "error", "object without mask", "neither learnt nor found"),
        (no_key("segmentation"), "error", "object without mask", "neither learnt nor found"),
        ({"segmentation": ["x"]}, "error", "malformed entry", "must be polygons"),
        ({"segmentation": HALF}, "error", "damaged RLE", "cover 150 pixels, the picture has 2400"),
        ({"segmentation": HALF | {"counts": "a~\x7f"}}, "error", "damaged RLE", "are no RLE"),
        ({"segmentation": [[9, 9] * 3]}, "warning", "empty mask", "has no pixel"),
        ({"area": 8000}, "warning", "wrong area", "'area' is 8000, and its mask has 80 pixels"),
        (no_key("area"), "warning", "no area", "the mask has 80 pixels: add that"),
        ({"area": "80"}, "warning", "no area", "no 'area' that is a number"),
        ({"iscrowd": 2}, "error", "malformed entry", "'iscrowd' is 2, and must be 0 or 1"),
        ({"ignore": 1}, "error", "malformed entry", "mark crowds by iscrowd"),
        (no_key("id"), "error", "malformed entry", "there is no 'id'; add it: a number or a text"),
        ({"category_id": None}, "error", "malformed entry", "'category_id' is None"),
    ],
)
def test_annotations(instances_cfg, tmp_path, changes, severity, kind, message):
    def plant(content, folder):
        item = content["annotations"][4] | changes
        content["annotations"][4] = {k: v for k, v in item.items() if v is not REMOVED}

    name = write_instances(tmp_path, f"annotations_{tmp_path.name}", plant=plant)
    report = check_dataset(name, instances_cfg)
    (finding,) = report.findings
    assert finding.kind.startswith(kind) and message in finding.message
    assert finding.severity == severity and finding.file.endswith("instances.json")
    where = "annotations, entry 5" if kind == "malformed entry" else "annotation id 4"
    assert where in finding.id and len(report.records) == PICTURES


def test_area_is_needed_for_evaluation(instances_cfg, tmp_path):
    name = write_instances(
        tmp_path, "no_area", plant=lambda content, _: content["annotations"][4].pop("area")
    )
    instances_cfg.DATASETS.TEST = (name,)
    (finding,) = check_dataset(name, instances_cfg).findings
    assert (finding.severity, finding.kind) == ("error", "no area")


@pytest.mark.parametrize(
    "key, changes, id_, message",
    [
        ("images", {"height": None}, "images, entry 3, id 2", "'height' is None, and must be a wh"),
        ("images", {"id": "two"}, "images, id 'two'", "a text, those of others are numbers"),
        ("images", {"file_name": 7}, "images, entry 3, id 2", "must be a text"),
        ("images", None, "images, entry 3", "None is no entry of keys and values"),
    ],
)
def test_images(instances_cfg, tmp_path, key, changes, id_, message):
    """A malformed one, and each of its annotations, which belong to none."""

    def plant(content, folder):
        content[key][2] = changes and content[key][2] | changes

    name = write_instances(tmp_path, f"images_{tmp_path.name}", plant=plant)
    report = check_dataset(name, instances_cfg)
    first, *rest = report.findings
    assert first.kind == "malformed entry" and first.id == id_ and message in first.message
    assert [f.kind for f in rest] == ["unknown image"] * 3 and len(report.records) == 8


def test_a_loader_that_fails(instances_cfg, tmp_path):
    def load():
        raise RuntimeError("no network")

    DatasetCatalog.register("fails", load)
    MetadataCatalog.get("fails").set(thing_classes=["a", "b", "c"])
    report = check_dataset("fails", instances_cfg)
    assert [f.kind for f in report.findings] == ["cannot be loaded", "number of classes"]
    assert "RuntimeError: no network" in report.findings[0].message and not report.ok
    name = write_instances(tmp_path, "no_images", plant=lambda content, _: content.pop("images"))
    (finding,) = check_dataset(name, instances_cfg).findings
    assert finding.kind == "unreadable json" and "no list of 'images'" in finding.message


def test_training_is_not_refused_for_what_does_no_harm(instances_cfg, tmp_path):
    """A class that no object has, and an ignore value that nothing uses."""

    def plant(content, folder):
        content["categories"].append({"id": 12, "name": "screw"})

    name = write_instances(tmp_path, "harmless", plant=plant)
    instances_cfg.DATASETS.TRAIN = (name,)
    instances_cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 1
    assert len(load_records(instances_cfg, [name], training=True)) == PICTURES
    found = record_findings([name], DatasetCatalog.get(name), instances_cfg)
    assert [(f.severity, f.kind) for f in found] == [
        ("warning", "number of classes"),
        ("warning", "ignore value is a class"),
    ]


def test_classes_and_channels(instances_cfg, tmp_path):
    name = write_instances(tmp_path, "too_few_classes")
    instances_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 1
    instances_cfg.MODEL.PIXEL_MEAN = instances_cfg.MODEL.PIXEL_STD = [1.0]
    report = check_dataset(name, instances_cfg)
    text = report.text()
    assert "the data set has 2 classes; set NUM_CLASSES to 2" in text
    assert "class 1 (counted from 0) does not fit MODEL.SEM_SEG_HEAD.NUM_CLASSES 1" in text
    assert "the picture has 3 channels, the model takes 1" in text
    assert "... and 4 more" in text and "... and" not in report.text(limit=None)


def test_panoptic_png_and_json(sample_cfg, sample_root, tmp_path):
    """A segment without an entry, an entry without pixels, a wrong area, a wrong category."""
    content = json.loads((sample_root / "annotations" / "panoptic_val.json").read_text())
    folder = tmp_path / "panoptic"
    folder.mkdir()
    for entry in content["annotations"]:
        name = entry["file_name"]
        png = Image.open(sample_root / "annotations" / "panoptic_val" / name)
        (folder / name).write_bytes(Path(png.filename).read_bytes())
    first, second, third = content["annotations"][:3]
    removed = first["segments_info"].pop()
    second["segments_info"][0]["id"] = 2**24 - 5
    third["segments_info"][0]["area"] += 1
    third["segments_info"][1]["category_id"] = 999
    fourth = content["annotations"][3]["segments_info"]
    fourth.append(dict(fourth[0], id=0))
    path = folder / content["annotations"][3]["file_name"]
    ids = rgb2id(np.asarray(Image.open(path)))
    Image.fromarray(id2rgb(ids[:-1])).save(path)
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    entry = {
        "format": "coco_panoptic",
        "image_root": str(sample_root / "val"),
        "panoptic_json": str(tmp_path / "panoptic.json"),
        "panoptic_root": str(folder),
    }
    register_dataset("panoptic_faults", entry)
    sample_cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 50
    report = check_dataset("panoptic_faults", sample_cfg)
    found = [(f.kind, f.id) for f in report.findings if "class" not in f.kind]
    one, two, three = (a["image_id"] for a in (first, second, third))
    assert ("segment without entry", f"image id {one}, segment id {removed['id']}") in found
    assert ("segment without pixels", f"image id {two}, segment id {2**24 - 5}") in found
    kinds = [kind for kind, _ in found]
    assert kinds.count("segment of another area") == 1 + (
        # of the picture that lost a row, too
        sum("image id 4" in f.id for f in report.findings if f.kind == "segment of another area")
    )
    unknown = third["segments_info"][1]["id"]
    assert [kind for kind, id_ in found if id_ == f"image id {three}, segment id {unknown}"] == [
        "unknown category"
    ]
    assert {"unknown category", "label map of another size", "malformed entry"} <= set(kinds)
    assert any("'id' is 0, and must be a number from 1" in f.message for f in report.findings)


def test_semantic_label_maps(tiny_cfg, tmp_path):
    for folder in ("pictures", "labels"):
        (tmp_path / folder).mkdir()
    labels = np.zeros(SIZE, np.uint8)
    labels[:10], labels[10:12], labels[12:13] = 1, 255, 7
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "pictures" / "a.png")
    Image.fromarray(labels).save(tmp_path / "labels" / "a.png")
    roots = {"image_root": str(tmp_path / "pictures"), "label_root": str(tmp_path / "labels")}
    classes = ["floor", "wall", "ceiling"]
    register_dataset("rooms", {"format": "semantic", "classes": classes, **roots})
    tiny_cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    tiny_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    report = check_dataset("rooms", tiny_cfg)
    value, missing = report.findings
    assert value.kind == "value that is no class" and value.id == "image id a, value 7"
    assert "60 pixels" in value.message and missing.kind == "class without an object"
    assert [row[3] for row in report.classes] == [27 * 60, 600, 0]
    # The data set's own value counts; where it has none, that of the config does.
    tiny_cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 2
    records = DatasetCatalog.get("rooms")
    (unused,) = record_findings(["rooms"], records, tiny_cfg)
    assert unused.severity == "warning" and "the data set's own 255 counts" in unused.message
    MetadataCatalog.get("rooms_of_detectron2").set(stuff_classes=classes)
    (used,) = record_findings(["rooms_of_detectron2"], records, tiny_cfg)
    assert used.severity == "error" and "'ceiling'" in used.message
    tiny_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 1  # then all other values are background
    assert "value that is no class" not in {
        f.kind for f in check_dataset("rooms", tiny_cfg).findings
    }
    tiny_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
    with pytest.raises(DatasetError, match="the data set has 3 classes; set NUM_CLASSES to 3"):
        load_records(tiny_cfg, ["rooms"], training=True)


def test_sheet_shows_the_annotations(instances_cfg, tmp_path):
    name = write_instances(tmp_path, "drawn", plant=plant_ten)
    records = [r for r in load_mended(name) if not r["file_name"].endswith(("1.jpg", "2.jpg"))]
    drawn = {r["image_id"]: draw_annotations(r, name, "RGB") for r in records}
    # Everything but the empty picture; also what is left of the one with the RLE of another size.
    for id_, (picture, annotated) in drawn.items():
        height = min(len(picture), len(annotated))  # matplotlib rounds the other way
        assert height >= 426
        difference = np.abs(picture[:height].astype(int) - annotated[:height]).mean()
        assert (difference > 3) == (id_ != 6)
    sheets = [annotation_sheet(name, records[i:], image_format="RGB", count=4) for i in (0, 3)]
    assert all(sheet.shape == (2 * 426 + 30, 4 * 426 + 6, 3) for sheet in sheets)
    assert (sheets[0] != sheets[1]).mean() > 0.2
    missing = [{"file_name": "nowhere.jpg", "annotations": []}]
    assert annotation_sheet(name, missing, image_format="RGB", count=4) is None


def test_the_cheap_form_opens_no_file(instances_cfg, tmp_path, monkeypatch):
    name = write_instances(tmp_path, "cheap")
    records = DatasetCatalog.get(name)
    (tmp_path / "images" / "3.jpg").unlink()

    def refuse(*args, **kwargs):
        raise AssertionError(f"{args} was opened")

    monkeypatch.setattr("builtins.open", refuse)
    (finding,) = record_findings([name], records, instances_cfg)
    assert finding.kind == "missing file" and finding.id == "image id 3"


@pytest.mark.parametrize("plant, status", [(lambda content, folder: None, 0), (plant_ten, 1)])
def test_tool(instances_cfg, tmp_path, monkeypatch, capsys, plant, status):
    name = write_instances(tmp_path, f"tool_{status}", plant=plant)
    instances_cfg.DATASETS.TRAIN = (name,)
    (tmp_path / "config.yaml").write_text(instances_cfg.dump())
    output = tmp_path / "check"
    arguments = [str(tmp_path / "config.yaml"), "--output", str(output), "SOLVER.MAX_ITER", "1"]
    monkeypatch.setattr(sys, "argv", ["check_dataset.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "tools" / "check_dataset.py"), run_name="__main__")
    assert stop.value.code == status
    findings = json.loads((output / "findings.json").read_text())[name]
    assert bool(findings) == bool(status)
    assert f"{6 if status else 0} errors" in capsys.readouterr().out
    assert Image.open(output / f"{name}.png").width > 1000


@pytest.mark.parametrize("name", ["sample_train", "sample_val"])
def test_the_sample_data_set_has_no_error(sample_cfg, name):
    report = check_dataset(name, sample_cfg)
    assert report.ok and len(report.records) == (6 if name == "sample_train" else 4)
    assert sum(row[3] for row in report.classes) > 0.9 * sum(
        record["height"] * record["width"] for record in report.records
    )


def test_tool_with_a_name_that_is_not_registered(instances_cfg, tmp_path, monkeypatch, capsys):
    (tmp_path / "config.yaml").write_text(instances_cfg.dump())
    arguments = [str(tmp_path / "config.yaml"), "--dataset", "nowhere", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["check_dataset.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "tools" / "check_dataset.py"), run_name="__main__")
    assert stop.value.code == 2 and "nowhere" in capsys.readouterr().err
