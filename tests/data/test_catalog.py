import json

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mask2former.data import build_test_loader, build_train_loader, register_catalog
from mask2former.data.build import class_difference, load_records
from mask2former.data.catalog import register_dataset
from mask2former.data.formats import load_semantic
from mask2former.data.picture import apply_label_map
from mask2former.errors import ConfigError, DatasetError


@pytest.fixture
def write_catalog(tmp_path, request):
    """Write a catalog of one COCO instances set and return its path; undo the registration."""
    name = f"test_{request.node.name}"
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 10, "height": 8}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 30,
                "bbox": [0, 0, 4, 4],
                "area": 16,
                "iscrowd": 0,
                "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]],
            }
        ],
        "categories": [{"id": 30, "name": "nut"}, {"id": 10, "name": "date"}],
    }

    def write(entry=None, **changes):
        (tmp_path / "x.json").write_text(json.dumps(content | changes))
        entry = entry or {"format": "coco_instances", "image_root": "images", "json": "x.json"}
        (tmp_path / "catalog.yaml").write_text(json.dumps({name: entry}))
        return tmp_path / "catalog.yaml"

    write.name = name
    yield write
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_coco_instances(write_catalog):
    assert register_catalog(write_catalog()) == [write_catalog.name]
    register_catalog(write_catalog())  # again: harmless
    metadata = MetadataCatalog.get(write_catalog.name)
    assert metadata.thing_classes == ["date", "nut"]  # by category id
    (record,) = DatasetCatalog.get(write_catalog.name)
    assert record["annotations"][0]["category_id"] == 1
    assert record["file_name"].endswith("images/a.jpg")


def test_coco_panoptic(sample_root):
    metadata = MetadataCatalog.get("sample_val")
    content = json.loads((sample_root / "annotations" / "panoptic_val.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    things = {c["name"] for c in content["categories"] if c["isthing"]}
    assert set(metadata.thing_classes) == things
    ids = metadata.stuff_dataset_id_to_contiguous_id
    assert sorted(ids.values()) == list(range(len(names)))
    assert all(metadata.stuff_classes[i] == names[id_] for id_, i in ids.items())
    assert sorted(metadata.thing_dataset_id_to_contiguous_id.values()) == list(range(len(things)))
    records = DatasetCatalog.get("sample_val")
    assert len(records) == len(content["annotations"])
    for record, annotation in zip(records, content["annotations"]):
        for ours, theirs in zip(record["segments_info"], annotation["segments_info"]):
            assert metadata.stuff_classes[ours["category_id"]] == names[theirs["category_id"]]
            assert ours["isthing"] == (names[theirs["category_id"]] in things)


@pytest.fixture
def semantic_folders(tmp_path):
    """Two pictures with label maps (7: road, 26: car, 3: unlabelled), and one without."""
    labels = np.full((8, 10), 7, dtype=np.uint8)
    labels[:2], labels[2:4] = 26, 3
    for name in ("x/a", "x/b", "c"):
        for folder in ("pictures", "labels"):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 10, 3), np.uint8)).save(tmp_path / f"pictures/{name}.jpg")
        if name != "c":
            Image.fromarray(labels).save(tmp_path / f"labels/{name}.png")
    return tmp_path


def test_semantic_folders(semantic_folders, sample_cfg, caplog):
    entry = {
        "format": "semantic",
        "image_root": "pictures",
        "label_root": "labels",
        "classes": [{"name": "road", "color": [1, 2, 3]}, {"name": "car", "color": [4, 5, 6]}],
        "label_map": {7: 0, 26: 1},
    }
    (semantic_folders / "catalog.yaml").write_text(yaml.safe_dump({"test_road": entry}))
    register_catalog(semantic_folders / "catalog.yaml")
    metadata = MetadataCatalog.get("test_road")
    assert metadata.stuff_classes == ["road", "car"] and metadata.ignore_label == 255
    assert metadata.evaluator_type == "sem_seg" and metadata.stuff_colors[1] == [4, 5, 6]
    records = DatasetCatalog.get("test_road")
    assert [record["image_id"] for record in records] == ["x/a", "x/b"]
    assert "c.jpg has no counterpart" in caplog.text
    sample_cfg.DATASETS.TRAIN = ("test_road",)
    sample_cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    sample_cfg.INPUT.RANDOM_FLIP = "none"
    sample_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
    x = next(iter(build_train_loader(sample_cfg)))[0]["instances"]
    assert x.gt_classes.tolist() == [0, 1]
    areas = x.gt_masks.flatten(1).float().mean(1)
    torch.testing.assert_close(areas, torch.tensor([0.5, 0.25]))
    sample_cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 65  # the data set's own counts
    assert next(iter(build_train_loader(sample_cfg)))[0]["instances"].gt_classes.tolist() == [0, 1]
    MetadataCatalog.get("test_other").set(ignore_label=7)
    DatasetCatalog.register("test_other", list)
    sample_cfg.DATASETS.TRAIN = ("test_road", "test_other")
    with pytest.raises(ConfigError, match="different labels for ignored pixels .*test_other': 7"):
        build_train_loader(sample_cfg)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"classes": "road"}, "classes must be a list"),
        ({"classes": [1]}, "classes must be a list of names"),
        ({"ignore_value": 1}, "ignore_value 1 is also the number of class 'car'"),
        ({"label_map": {7: 2}}, "label_map leads to class 2, but there are classes 0 to 1"),
        ({"label_map": {7: None}}, "label_map must map"),
        ({"ignore_value": -1}, "ignore_value is -1.*label_map"),
        ({"image_root": 2017}, "image_root is 2017; write a path"),
    ],
)
def test_malformed_semantic_entries(semantic_folders, change, message):
    entry = {"format": "semantic", "image_root": "pictures", "label_root": "labels"}
    entry |= {"classes": ["road", "car"]} | change
    (semantic_folders / "catalog.yaml").write_text(yaml.safe_dump({"test_bad": entry}))
    with pytest.raises(DatasetError, match=message):
        register_catalog(semantic_folders / "catalog.yaml")


def test_semantic_folders_without_a_pair(tmp_path):
    entry = {"format": "semantic", "image_root": str(tmp_path), "label_root": str(tmp_path)}
    register_dataset("test_no_pair", entry | {"classes": ["road"]})
    with pytest.raises(DatasetError, match="no picture below .* has a label map of the same name"):
        DatasetCatalog.get("test_no_pair")


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"format": "voc"}, r"format is 'voc'; it must be one of"),
        ({"format": "coco_instances", "image_root": "images"}, r"missing keys \['json'\]"),
        (
            {"format": "coco_instances", "image_root": "images", "json": "x.json", "jsn": 1},
            r"unknown keys \['jsn'\]",
        ),
        (
            {"format": "coco_instances", "image_root": "photos", "json": "x.json"},
            r"image_root .*photos does not exist",
        ),
    ],
)
def test_malformed_entries(write_catalog, entry, message):
    with pytest.raises(DatasetError, match=message):
        register_catalog(write_catalog(entry))


def test_missing_and_broken_catalogs(tmp_path):
    message = r"nowhere\.yaml does not exist \(DATASETS\.CATALOG.*make_sample_dataset\.py"
    with pytest.raises(DatasetError, match=message):
        register_catalog(tmp_path / "nowhere.yaml")
    (tmp_path / "c.yaml").write_text("- a\n- b\n")
    with pytest.raises(DatasetError, match="must map data set names"):
        register_catalog(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text("a: [")
    with pytest.raises(DatasetError, match="no valid YAML"):
        register_catalog(tmp_path / "c.yaml")


def test_a_name_in_use(sample_root):
    entry = {"format": "coco_instances", "image_root": "x", "json": "y"}
    with pytest.raises(DatasetError, match="sample_val is registered already"):
        register_dataset("sample_val", entry)


def test_unknown_category_id(write_catalog):
    path = write_catalog(categories=[{"id": 10, "name": "date"}])
    register_catalog(path)
    with pytest.raises(DatasetError, match=r"x\.json: Encountered category_id=30"):
        DatasetCatalog.get(write_catalog.name)


def test_unknown_panoptic_category_id(sample_root, tmp_path):
    path = sample_root / "annotations" / "panoptic_val.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"][0]["category_id"] = 999
    (tmp_path / "p.json").write_text(json.dumps(content))
    entry = {
        "format": "coco_panoptic",
        "image_root": str(sample_root / "val"),
        "panoptic_json": str(tmp_path / "p.json"),
        "panoptic_root": str(sample_root / "annotations" / "panoptic_val"),
    }
    register_dataset("test_unknown_panoptic", entry)
    with pytest.raises(DatasetError, match=r"p\.json: segment \d+ of image id \d+ .* 999"):
        DatasetCatalog.get("test_unknown_panoptic")


def test_before_the_first_iteration(write_catalog, sample_cfg, tmp_path):
    sample_cfg.DATASETS.TRAIN = ("nowhere_train",)
    with pytest.raises(ConfigError, match="nowhere_train .*is not registered"):
        build_train_loader(sample_cfg)
    register_catalog(write_catalog())
    sample_cfg.DATASETS.TRAIN = (write_catalog.name,)
    sample_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 1
    with pytest.raises(DatasetError, match=r"a\.jpg \(.*: class 1 .*NUM_CLASSES 1"):
        build_train_loader(sample_cfg)
    (tmp_path / "images" / "a.jpg").unlink()
    with pytest.raises(
        DatasetError,
        match=r"ERROR missing file .*\s+.*a\.jpg .*picture does not exist",
    ):
        build_test_loader(sample_cfg, write_catalog.name)
    sample_cfg.INPUT.DATASET_MAPPER_NAME = "coco_panoptic"
    with pytest.raises(ConfigError, match="INPUT.DATASET_MAPPER_NAME is 'coco_panoptic'"):
        build_train_loader(sample_cfg)


def test_loaders(sample_cfg):
    batch = next(iter(build_train_loader(sample_cfg)))
    assert len(batch) == sample_cfg.SOLVER.IMS_PER_BATCH
    assert all(len(x["instances"]) for x in batch)
    assert len(list(build_test_loader(sample_cfg, "sample_val"))) == 4


def test_an_unreadable_picture_ends_evaluation_in_one_line(sample_cfg, sample_root, capsys):
    """Also from a worker process, whose errors arrive with a traceback in them."""
    from mask2former.errors import report_user_errors

    sample_cfg.DATALOADER.NUM_WORKERS = 1
    loader = build_test_loader(sample_cfg, "sample_val")
    path = sorted((sample_root / "val").iterdir())[0]
    content = path.read_bytes()
    path.write_bytes(content[:500])
    try:
        with pytest.raises(SystemExit) as stop, report_user_errors():
            list(loader)
    finally:
        path.write_bytes(content)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {path} cannot be read as a picture")


def test_pictures_and_label_maps_in_one_folder(tmp_path):
    """Which file is the picture must not be guessed."""
    for name in ("0.jpg", "0.png"):
        Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / name)
    entry = {"image_root": str(tmp_path), "label_root": str(tmp_path)}
    with pytest.raises(DatasetError, match=r"0\.jpg and .*0\.png differ in their suffix only"):
        load_semantic("both", entry)


def test_negative_labels_are_ignored_unless_named():
    labels = np.array([[-1, 7], [26, 1000]])
    assert apply_label_map(labels, {7: 0, 26: 1}, 255).tolist() == [[255, 0], [1, 255]]
    assert apply_label_map(labels, {7: 0, -1: 1}, 255).tolist() == [[1, 0], [255, 255]]


@pytest.mark.parametrize(
    "categories, message",
    [
        ([{"id": 30}], r"x\.json: category .* has no 'name'"),
        ([{"id": 30, "name": "a"}, {"id": "b", "name": "b"}], "ids are texts, others numbers"),
    ],
)
def test_categories_that_cannot_be_registered(write_catalog, categories, message):
    with pytest.raises(DatasetError, match=message):
        register_catalog(write_catalog(categories=categories))


def test_data_sets_of_different_classes_are_not_trained_on_together(sample_cfg, tmp_path):
    for folder in ("pictures", "labels"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / folder / "a.png")
    roots = {"image_root": str(tmp_path / "pictures"), "label_root": str(tmp_path / "labels")}
    for name, classes in (("test_ab", ["a", "b"]), ("test_ba", ["b", "a"])):
        register_dataset(name, {"format": "semantic", "classes": classes, **roots})
    assert class_difference("test_ab", "test_ab") is None
    try:
        with pytest.raises(ConfigError, match="class 0 is 'a' in data set test_ab and 'b' in"):
            load_records(sample_cfg, ("test_ab", "test_ba"), training=True)
    finally:
        for name in ("test_ab", "test_ba"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
