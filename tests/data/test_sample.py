"""The sample data set: deterministic, and every format says the same about every pixel."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

from mask2former.data import sample
from mask2former.data.sample import FolderTakenError, generate_sample_dataset, sample_scene

COUNTS = {"train": 10, "val": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sample") / "set"
    return generate_sample_dataset(root, num_train=COUNTS["train"], num_val=COUNTS["val"])


@pytest.fixture(scope="module", params=["train", "val"])
def split(request) -> str:
    return request.param


def read_json(root: Path, kind: str, split: str) -> dict:
    return json.loads((root / "annotations" / f"{kind}_{split}.json").read_text())


def read_ids(root: Path, split: str, name: str) -> np.ndarray:
    """(h, w) panoptic ids of a PNG, by COCO's formula."""
    rgb = np.asarray(Image.open(root / "annotations" / f"panoptic_{split}" / name), np.int64)
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_same_parameters_give_the_same_bytes_whatever_the_counts(root, tmp_path):
    fewer = contents(generate_sample_dataset(tmp_path / "set", num_train=4, num_val=3))
    full = contents(root)
    for name in fewer.keys() - {"sample.json"}:
        if not name.endswith("_train.json"):
            assert fewer[name] == full[name], name
    assert sum(name.endswith(".jpg") for name in fewer) == 7
    of_four = read_json(tmp_path / "set", "instances", "train")["annotations"]
    assert of_four == read_json(root, "instances", "train")["annotations"][: len(of_four)]


def test_splits_and_seeds_differ():
    pictures = [sample_scene("train", 0), sample_scene("val", 0), sample_scene("train", 0, seed=1)]
    assert len({picture.image.tobytes() for picture in pictures}) == 3


def test_picture_sizes(root, split):
    images = read_json(root, "panoptic", split)["images"]
    assert len(images) == COUNTS[split]
    for image in images:
        with Image.open(root / split / image["file_name"]) as picture:
            assert picture.mode == "RGB" and picture.format == "JPEG"
            assert picture.size == (image["width"], image["height"])
        assert min(image["width"], image["height"]) >= 96
        assert max(image["width"], image["height"]) <= 160
    assert len({(image["width"], image["height"]) for image in images}) > 1
    assert images == read_json(root, "instances", split)["images"]


def test_panoptic_json_is_what_the_png_shows(root, split):
    content = read_json(root, "panoptic", split)
    categories = {category["id"]: category for category in content["categories"]}
    assert [a["image_id"] for a in content["annotations"]] == [i["id"] for i in content["images"]]
    for annotation, image in zip(content["annotations"], content["images"]):
        ids = read_ids(root, split, annotation["file_name"])
        assert ids.shape == (image["height"], image["width"])
        segments = annotation["segments_info"]
        assert {s["id"] for s in segments} == set(np.unique(ids).tolist()) - {0}
        assert len({s["id"] for s in segments}) == len(segments)
        stuff = [s["category_id"] for s in segments if not categories[s["category_id"]]["isthing"]]
        assert len(set(stuff)) == len(stuff)
        for segment in segments:
            rows, columns = np.nonzero(ids == segment["id"])
            assert segment["area"] == len(rows) >= 0.006 * ids.size
            x, y = columns.min(), rows.min()
            assert segment["bbox"] == [x, y, columns.max() - x + 1, rows.max() - y + 1]
            assert not segment["iscrowd"] or categories[segment["category_id"]]["isthing"]


def test_category_ids_have_gaps_and_things_come_first():
    ids = [category["id"] for category in sample.CATEGORIES]
    isthing = [category["isthing"] for category in sample.CATEGORIES]
    assert ids == sorted(set(ids)) and max(ids) > len(ids)
    assert isthing == sorted(isthing, reverse=True)
    assert sum(isthing) >= 3 and len(isthing) - sum(isthing) >= 2


def test_every_category_occurs(root):
    pictures = [a for split in COUNTS for a in read_json(root, "panoptic", split)["annotations"]]
    seen = {s["category_id"] for picture in pictures for s in picture["segments_info"]}
    assert seen == {category["id"] for category in sample.CATEGORIES}


def test_semantic_png_is_the_rank_of_the_category(root, split):
    content = read_json(root, "panoptic", split)
    ranked = sorted(category["id"] for category in content["categories"])
    for annotation in content["annotations"]:
        name = annotation["file_name"]
        ids = read_ids(root, split, name)
        expected = np.full(ids.shape, 255)
        for segment in annotation["segments_info"]:
            expected[ids == segment["id"]] = ranked.index(segment["category_id"])
        with Image.open(root / "annotations" / f"semantic_{split}" / name) as semantic:
            assert semantic.mode == "L"
            np.testing.assert_array_equal(np.asarray(semantic), expected)


def test_instances_decode_to_the_panoptic_segments(root, split):
    """pycocotools' own loader: every thing of the panoptic set, pixel for pixel, polygons too."""
    coco = COCO(root / "annotations" / f"instances_{split}.json")
    content = read_json(root, "panoptic", split)
    things = {category["id"] for category in content["categories"] if category["isthing"]}
    assert set(coco.getCatIds()) == things
    for panoptic in content["annotations"]:
        ids = read_ids(root, split, panoptic["file_name"])
        segments = [s for s in panoptic["segments_info"] if s["category_id"] in things]
        instances = coco.loadAnns(coco.getAnnIds(imgIds=panoptic["image_id"]))
        assert len(instances) == len(segments)
        for instance, segment in zip(instances, segments):
            for key in ("category_id", "area", "bbox", "iscrowd"):
                assert instance[key] == segment[key]
            np.testing.assert_array_equal(coco.annToMask(instance), ids == segment["id"])


def test_instances_come_as_polygons_and_run_lengths(root):
    kinds = set()
    for annotation in read_json(root, "instances", "train")["annotations"]:
        shape = annotation["segmentation"]
        counts = None if isinstance(shape, list) else type(shape["counts"])
        kinds.add((counts, annotation["iscrowd"]))
    # Polygons, compressed run lengths (holes) and, for crowds, plain run lengths.
    assert kinds == {(None, 0), (str, 0), (list, 1)}


def test_ten_pictures_hold_every_case(root):
    content = read_json(root, "panoptic", "train")
    things = {category["id"] for category in content["categories"] if category["isthing"]}
    segments = [annotation["segments_info"] for annotation in content["annotations"]]
    assert any(segment["iscrowd"] for picture in segments for segment in picture)
    assert any(all(s["category_id"] not in things for s in picture) for picture in segments)
    ignored = [
        (read_ids(root, "train", annotation["file_name"]) == 0).mean()
        for annotation in content["annotations"]
    ]
    assert max(ignored) > 0.02 and min(ignored) == 0


def test_catalog_names_files_that_exist(root):
    catalog = yaml.safe_load((root / "catalog.yaml").read_text())
    assert list(catalog) == ["sample_train", "sample_val"]
    for entry in catalog.values():
        assert entry.pop("format") == "coco_panoptic"
        assert all((root / path).exists() for path in entry.values())


def test_a_complete_set_is_kept(root, monkeypatch):
    monkeypatch.setattr(sample, "write_split", None)  # would fail if it were called
    again = generate_sample_dataset(root, num_train=COUNTS["train"], num_val=COUNTS["val"])
    assert again == root


def test_other_parameters_are_refused(root):
    before = contents(root)
    with pytest.raises(FolderTakenError, match=r"set holds .* delete it, or choose another"):
        generate_sample_dataset(root, num_train=COUNTS["train"], num_val=COUNTS["val"], seed=1)
    assert contents(root) == before


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is no sample data set; choose another folder"):
        generate_sample_dataset(tmp_path, num_train=1, num_val=0)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(split, index, **options):
        if index == 1:
            raise KeyboardInterrupt
        return sample_scene(split, index, **options)

    monkeypatch.setattr(sample, "sample_scene", interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate_sample_dataset(tmp_path / "set", num_train=2, num_val=0)
    assert list(tmp_path.iterdir()) == []


def test_a_race_is_won_by_the_first(tmp_path, monkeypatch):
    """Two processes make the same set: the second finds the first one's in place, and uses it."""
    target = tmp_path / "set"
    write_split = sample.write_split

    def overtaken(made, split, scenes):
        write_split(made, split, scenes)
        if split == "val" and not target.exists():
            monkeypatch.setattr(sample, "write_split", write_split)
            generate_sample_dataset(target, num_train=1, num_val=1)

    monkeypatch.setattr(sample, "write_split", overtaken)
    assert generate_sample_dataset(target, num_train=1, num_val=1) == target
    assert list(tmp_path.iterdir()) == [target]


def test_the_command_line(tmp_path, monkeypatch, capsys):
    tool = Path(__file__).resolve().parents[2] / "tools" / "make_sample_dataset.py"
    arguments = [tmp_path / "set", "--train", "2", "--val", "1", "--seed", "0"]
    monkeypatch.setattr(sys, "argv", [str(tool), *map(str, arguments)])
    runpy.run_path(str(tool), run_name="__main__")
    assert "2 + 1 pictures" in capsys.readouterr().out
    by_default = generate_sample_dataset(tmp_path / "default", num_train=2, num_val=1)
    assert contents(tmp_path / "set") == contents(by_default)
