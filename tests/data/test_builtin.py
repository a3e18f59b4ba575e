"""From the official files to the masks that the model is trained on, data set by data set."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from builtin_trees import (
    VOID,
    paint_ade20k,
    paint_ade20k_full,
    paint_cityscapes,
    paint_coco,
    paint_coco_stuff_10k,
    paint_mapillary_vistas,
    registered_below,
    script,
)
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES, COCO_CATEGORIES

from mask2former.data import MAPPERS, builtin
from mask2former.data.builtin import (
    check_builtin,
    load_categories,
    register_builtin,
)
from mask2former.errors import DatasetError

needs_cityscapesscripts = pytest.mark.skipif(
    importlib.util.find_spec("cityscapesscripts") is None, reason="needs cityscapesscripts"
)
needs_shapely = pytest.mark.skipif(
    importlib.util.find_spec("shapely") is None, reason="needs shapely"
)


@pytest.fixture
def root(tmp_path):
    with registered_below(tmp_path):
        yield tmp_path


def prepare(root, *names):
    for name in names:
        arguments = ["--root", str(root), "--splits", "val", "--workers", "1"]
        assert script(f"prepare_{name}.py").main(arguments) == 0


def map_all(name, mapper_name):
    """What the mapper makes, without augmentation, of each record: by name, classes and masks."""
    metadata = MetadataCatalog.get(name)
    mapper = MAPPERS[mapper_name](
        augmentations=[],
        image_format="RGB",
        ignore_label=metadata.get("ignore_label", 255),
        num_classes=len(metadata.get("stuff_classes") or metadata.thing_classes),
        size_divisibility=0,
        reads_semantic=mapper_name == "mask_former_semantic",
    )
    mapped = {}
    for record in DatasetCatalog.get(name):
        instances = mapper(record)["instances"]
        stem = record["file_name"].rpartition("/")[2].partition(".")[0]
        masks = instances.gt_masks.numpy()
        mapped[stem.removesuffix("_leftImg8bit")] = list(zip(instances.gt_classes.tolist(), masks))
    return mapped


def key(item):
    """Sorts classes and masks: by class and first pixel."""
    return item[0], int(np.argmax(item[1]))


def assert_same(mapped, expected):
    assert mapped.keys() == expected.keys()
    for stem, items in expected.items():
        ours, theirs = sorted(mapped[stem], key=key), sorted(items, key=key)
        assert [class_id for class_id, _ in ours] == [class_id for class_id, _ in theirs]
        for (_, mask), (_, painted) in zip(ours, theirs):
            np.testing.assert_array_equal(mask, painted)


def semantic_masks(scenes):
    return {
        stem: [(int(c), s.semantic == c) for c in np.unique(s.semantic) if c != VOID]
        for stem, s in scenes.items()
    }


def panoptic_masks(scenes):
    return {stem: [(c, mask) for c, _, mask in s.segments] for stem, s in scenes.items()}


@pytest.mark.parametrize(
    "name, paint, scripts",
    [
        ("ade20k_sem_seg_val", paint_ade20k, ["ade20k_sem_seg"]),
        ("ade20k_full_sem_seg_val", paint_ade20k_full, ["ade20k_full_sem_seg"]),
        ("mapillary_vistas_sem_seg_val", paint_mapillary_vistas, ["mapillary_vistas"]),
        pytest.param(
            "cityscapes_fine_sem_seg_val",
            paint_cityscapes,
            ["cityscapes"],
            marks=needs_cityscapesscripts,
        ),
    ],
)
def test_semantic(root, name, paint, scripts):
    scenes = paint(root)
    prepare(root, *scripts)
    assert_same(map_all(name, "mask_former_semantic"), semantic_masks(scenes))


def test_coco_stuff_10k(root):
    scenes = paint_coco_stuff_10k(root)
    main = script("prepare_coco_stuff_10k_v1.0_sem_seg.py").main
    assert main(["--root", str(root), "--splits", "test", "--workers", "1"]) == 0
    mapped = map_all("coco_2017_test_stuff_10k_sem_seg", "mask_former_semantic")
    assert_same(mapped, semantic_masks(scenes))


@pytest.mark.parametrize("mapper", ["mask_former_panoptic", "coco_panoptic_lsj"])
@pytest.mark.parametrize(
    "name, paint, scripts",
    [
        ("ade20k_panoptic_val", paint_ade20k, ["ade20k_sem_seg", "ade20k_pan_seg"]),
        ("coco_2017_val_panoptic", paint_coco, []),
        (
            "coco_2017_val_panoptic_with_sem_seg",
            paint_coco,
            ["coco_semantic_annos_from_panoptic_annos"],
        ),
        ("mapillary_vistas_panoptic_val", paint_mapillary_vistas, ["mapillary_vistas"]),
        pytest.param(
            "cityscapes_fine_panoptic_val",
            paint_cityscapes,
            ["cityscapes"],
            marks=needs_cityscapesscripts,
        ),
    ],
)
def test_panoptic(root, name, paint, scripts, mapper):
    scenes = paint(root)
    prepare(root, *scripts)
    assert_same(map_all(name, mapper), panoptic_masks(scenes))
    things = {c for s in scenes.values() for c, _ in s.things}
    for record in DatasetCatalog.get(name):
        for segment in record["segments_info"]:
            if "isthing" in segment:  # Detectron2 leaves it out for Cityscapes
                assert segment["isthing"] == (segment["category_id"] in things)
    if name != "coco_2017_val_panoptic":  # has no label maps
        assert_same(map_all(name, "mask_former_semantic"), semantic_masks(scenes))


@pytest.mark.parametrize("mapper", ["mask_former_instance", "coco_instance_lsj"])
@pytest.mark.parametrize(
    "name, paint, scripts",
    [
        ("ade20k_instance_val", paint_ade20k, ["ade20k_ins_seg"]),
        ("coco_2017_val", paint_coco, []),
    ],
)
def test_instance(root, name, paint, scripts, mapper):
    scenes = paint(root)
    prepare(root, *scripts)
    metadata = MetadataCatalog.get(name)
    table = "ade20k_150" if name.startswith("ade20k") else "coco"
    ids = [category["id"] for category in load_categories(table)]
    contiguous = metadata.thing_dataset_id_to_contiguous_id
    expected = {
        stem: [(contiguous[ids[c]], mask) for c, mask in s.things] for stem, s in scenes.items()
    }
    assert_same(map_all(name, mapper), expected)


@needs_cityscapesscripts
@needs_shapely
def test_cityscapes_instance(root):
    scenes = paint_cityscapes(root)
    mapped = map_all("cityscapes_fine_instance_seg_val", "mask_former_instance")
    for stem, painted in scenes.items():
        # Detectron2 rounds the polygons' corners off.
        ours = sorted(mapped[stem], key=lambda x: (x[0], x[1].argmax() // 28))
        theirs = sorted(painted.things, key=lambda x: (x[0], x[1].argmax() // 28))
        assert [c for c, _ in ours] == [c - 11 for c, _ in theirs]
        for (_, mask), (_, truth) in zip(ours, theirs):
            assert (mask & truth).sum() / (mask | truth).sum() > 0.9


def test_panoptic_and_instance_annotations_share_their_image_ids(root):
    paint_ade20k(root)
    prepare(root, "ade20k_sem_seg", "ade20k_pan_seg", "ade20k_ins_seg")
    names = ("ade20k_panoptic_val", "ade20k_instance_val")
    ids = [[record["image_id"] for record in DatasetCatalog.get(name)] for name in names]
    assert ids[0] == ids[1] == [20210, 20211]


def test_class_tables():
    ade = load_categories("ade20k_150")
    assert [c["name"] for c in ade] == ADE20K_SEM_SEG_CATEGORIES
    assert [c["id"] for c in ade] == list(range(150))
    things = [c["id"] for c in ade if c["isthing"]]
    assert [c["id"] for c in load_categories("ade20k_instance_100")] == things
    assert len({c["id"] for c in load_categories("ade20k_full_847")}) == 847
    stuff = {c["id"]: c["name"] for c in load_categories("coco_stuff_171")}
    assert len(stuff) == 171
    # COCO's panoptic table has the same ids for what it did not merge (those from 184 on).
    same = [c for c in COCO_CATEGORIES if c["id"] < 184]
    assert len(same) == 116
    assert all(stuff[c["id"]] == c["name"] for c in same)
    vistas = load_categories("mapillary_vistas_65")
    assert [c["id"] for c in vistas] == list(range(1, 66))
    assert sum(c["isthing"] for c in vistas) == 37


def test_metadata(root):
    panoptic = MetadataCatalog.get("ade20k_panoptic_val")
    assert (panoptic.evaluator_type, panoptic.ignore_label) == ("ade20k_panoptic_seg", 255)
    assert panoptic.label_divisor == 1000
    assert (len(panoptic.thing_classes), len(panoptic.stuff_classes)) == (100, 150)
    assert panoptic.thing_dataset_id_to_contiguous_id[148] == 148
    assert panoptic.json_file == str(root / "ADEChallengeData2016" / "ade20k_instance_val.json")
    assert panoptic.stuff_colors == MetadataCatalog.get("ade20k_sem_seg_val").stuff_colors
    coco = MetadataCatalog.get("coco_2017_val_panoptic_with_sem_seg")
    assert coco.sem_seg_root == str(root / "coco" / "panoptic_semseg_val2017")
    assert (len(coco.thing_classes), len(coco.stuff_classes)) == (80, 133)
    assert coco.stuff_dataset_id_to_contiguous_id[200] == 132
    vistas = MetadataCatalog.get("mapillary_vistas_panoptic_train")
    assert (vistas.ignore_label, len(vistas.thing_classes)) == (65, 65)
    assert len(vistas.thing_dataset_id_to_contiguous_id) == 37
    assert MetadataCatalog.get("ade20k_full_sem_seg_train").ignore_label == 65535
    stuff = MetadataCatalog.get("coco_2017_train_stuff_10k_sem_seg")
    assert stuff.stuff_dataset_id_to_contiguous_id[182] == 170


def test_every_data_set_of_the_published_configs_is_registered():
    text = (Path(__file__).parents[1] / "published" / "configs.json").read_text()
    names = set(re.findall(r'"DATASETS\.(?:TRAIN|TEST)": \["([^"]+)"\]', text))
    assert len(names) > 10
    assert names <= set(DatasetCatalog)


def test_registering_twice_changes_nothing(root):
    assert register_builtin(root / "elsewhere") == []
    assert str(root) in MetadataCatalog.get("ade20k_panoptic_val").image_root
    assert "elsewhere" not in MetadataCatalog.get("ade20k_panoptic_val").image_root


def test_what_is_missing_is_named(root):
    with pytest.raises(
        DatasetError, match=r"images/validation does not exist; the pictures .*down"
    ):
        DatasetCatalog.get("ade20k_panoptic_val")
    paint_ade20k(root)
    with pytest.raises(DatasetError, match=r"maps belong .*: python .*/prepare_ade20k_sem_seg\.py"):
        DatasetCatalog.get("ade20k_panoptic_val")
    prepare(root, "ade20k_sem_seg")
    message = r"panoptic_val does not .*: python datasets/prepare_ade20k_pan_seg\.py"
    with pytest.raises(DatasetError, match=message):
        DatasetCatalog.get("ade20k_panoptic_val")
    with pytest.raises(DatasetError, match=r"instance_val\.json .*prepare_ade20k_ins_seg\.py"):
        DatasetCatalog.get("ade20k_instance_val")
    prepare(root, "ade20k_pan_seg")
    assert len(DatasetCatalog.get("ade20k_panoptic_val")) == 2  # without instances


def test_what_is_missing_of_detectron2s_data_sets_is_named(root):
    with pytest.raises(DatasetError, match=r"coco_2017_val_panoptic .*val2017 does not exist"):
        check_builtin("coco_2017_val_panoptic")
    paint_coco(root)
    check_builtin("coco_2017_val_panoptic")
    paint_cityscapes(root)
    with pytest.raises(DatasetError, match=r"has no .*labelTrainIds\.png; run: .*cityscapes\.py"):
        check_builtin("cityscapes_fine_sem_seg_val")
    check_builtin("somebody_elses_train")


def test_the_root_comes_from_the_environment(root, monkeypatch):
    DatasetCatalog.data.clear()
    MetadataCatalog.data.clear()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root / "other"))
    spec = importlib.util.spec_from_file_location("mask2former.data.again", builtin.__file__)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    expected = root / "other" / "ADE20K_2021_17_01" / "images_detectron2" / "training"
    assert MetadataCatalog.get("ade20k_full_sem_seg_train").image_root == str(expected)
