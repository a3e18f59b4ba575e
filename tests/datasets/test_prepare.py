"""The preparation scripts: what they write, and what they say of files that do not fit."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.io
from builtin_trees import (
    SCRIPTS,
    SIZE,
    paint_ade20k,
    paint_ade20k_full,
    paint_cityscapes,
    paint_coco,
    paint_coco_stuff_10k,
    paint_mapillary_vistas,
    save,
    script,
)
from PIL import Image

from mask2former.data.builtin import load_categories
from mask2former.data.panoptic_png import rgb2id
from mask2former.errors import DatasetError


def run(name, root, *arguments, split="val", workers=1):
    main = script(f"prepare_{name}.py").main
    return main(["--root", str(root), "--splits", split, "--workers", str(workers), *arguments])


def pixels(path):
    return np.asarray(Image.open(path))


def files(root):
    return sorted(path for path in root.rglob("*") if path.is_file())


def test_ade20k_semantic_labels_count_from_0(tmp_path):
    scenes = paint_ade20k(tmp_path, count=5)
    assert run("ade20k_sem_seg", tmp_path, workers=2) == 0
    folder = tmp_path / "ADEChallengeData2016" / "annotations_detectron2" / "validation"
    assert len(files(folder)) == 5
    for stem, painted in scenes.items():
        labels = pixels(folder / f"{stem}.png")
        np.testing.assert_array_equal(labels.astype(int), painted.semantic % 256)  # void: 255


def test_ade20k_instances(tmp_path):
    scenes = paint_ade20k(tmp_path)
    assert run("ade20k_ins_seg", tmp_path) == 0
    content = json.loads((tmp_path / "ADEChallengeData2016/ade20k_instance_val.json").read_text())
    assert [image["id"] for image in content["images"]] == [20210, 20211]
    assert content["images"][0]["file_name"] == "ADE_val_00000001.jpg"
    assert [a["id"] for a in content["annotations"]] == list(range(1, 7))
    first = content["annotations"][0]
    assert first["image_id"] == 20210 and first["category_id"] == 7
    assert first["bbox"] == [4, 8, 12, 10] and first["area"] == 120  # as the scene has it
    assert [a["category_id"] for a in content["annotations"][:3]] == [
        class_id for class_id, _ in scenes["ADE_val_00000001"].things
    ]
    assert {c["id"]: c["name"] for c in content["categories"]}[148] == "clock"


def test_ade20k_things_cover_stuff(tmp_path):
    """The first bed's upper half, and all of the sky, lie on other labels of the semantic maps."""
    scenes = paint_ade20k(tmp_path, count=1)
    root = tmp_path / "ADEChallengeData2016"
    ((stem, painted),) = scenes.items()
    labels = np.array(pixels(root / "annotations" / "validation" / f"{stem}.png"))
    bed = painted.things[0][1]
    labels[painted.semantic == 2] = 1  # all stuff is wall ...
    labels[bed] = np.where(np.arange(SIZE[0])[:, None] < 13, 1, 3).repeat(SIZE[1], 1)[bed]  # or sky
    save(root / "annotations" / "validation" / f"{stem}.png", labels)
    output = root / "ade20k_panoptic_val.json"

    def areas():
        (annotation,) = json.loads(output.read_text())["annotations"]
        return [(s["category_id"], s["area"]) for s in annotation["segments_info"]]

    assert run("ade20k_pan_seg", tmp_path) == 0
    wall = int(np.isin(painted.semantic, (0, 2)).sum())
    objects = [(7, 120), (7, 120), (148, 120)]
    assert areas() == [(0, wall + 60), (2, 60), *objects]  # what was labelled, as published
    ids = rgb2id(pixels(root / "ade20k_panoptic_val" / f"{stem}.png"))
    assert len(np.unique(ids[bed])) == 1
    assert (ids[~np.isin(painted.semantic, (0, 2, 7, 148))] == 0).all()
    output.unlink()
    assert run("ade20k_pan_seg", tmp_path, "--visible") == 0
    assert areas() == [(0, wall), *objects]  # what is seen


def test_ade20k_panoptic_ids_are_the_colours_of_the_registration(tmp_path):
    paint_ade20k(tmp_path, count=1)
    assert run("ade20k_pan_seg", tmp_path) == 0
    content = json.loads((tmp_path / "ADEChallengeData2016/ade20k_panoptic_val.json").read_text())
    assert content["categories"] == load_categories("ade20k_150")
    colors = {c["id"]: np.array(c["color"]) for c in content["categories"]}
    ids = [(s["category_id"], s["id"]) for s in content["annotations"][0]["segments_info"]]
    assert len({id_ for _, id_ in ids}) == 5
    first = {}
    for class_id, id_ in ids:
        first.setdefault(class_id, id_)
    assert first == {class_id: rgb2id(colors[class_id]) for class_id in (0, 2, 7, 148)}
    new_id = script("prepare_ade20k_pan_seg.py").new_id  # two classes share a colour
    assert new_id(48, {new_id(6, set())}) != new_id(6, set()) == new_id(48, set())


def test_ade20k_image_ids():
    image_id = lambda stem: script("_prepare.py").ade20k_image(stem, SIZE)["id"]  # noqa: E731
    assert image_id("ADE_train_00000001") == 0
    assert image_id("ADE_train_00020210") == 20209
    assert image_id("ADE_val_00002000") == 22209
    with pytest.raises(DatasetError, match=r"photo\.jpg is not named as ADE20K's"):
        image_id("photo")


@pytest.mark.parametrize(
    "size, expected",
    [((400, 900), None), ((1024, 768), (683, 512)), ((768, 1024), (512, 683))],
)
def test_ade20k_full_size(size, expected):
    assert script("prepare_ade20k_full_sem_seg.py").new_size(*size) == expected


def test_ade20k_full_shrinks_large_pictures(tmp_path):
    (stem,) = paint_ade20k_full(tmp_path, count=1)
    (picture,) = tmp_path.rglob("*.jpg")
    segments = picture.with_name(f"{stem}_seg.png")
    for path in (picture, segments):
        with Image.open(path) as image:
            image.resize((1120, 800), Image.Resampling.NEAREST).save(path)
    assert run("ade20k_full_sem_seg", tmp_path) == 0
    root = tmp_path / "ADE20K_2021_17_01"
    labels = pixels(root / "annotations_detectron2" / "validation" / f"{stem}.tif")
    assert labels.shape == (512, 717) and labels.dtype == np.uint16
    assert pixels(root / "images_detectron2/validation" / f"{stem}.jpg").shape == (512, 717, 3)
    assert set(np.unique(labels)) == {0, 7, 300, 846, 65535}


def test_coco_labels_are_positions_in_the_table(tmp_path):
    scenes = paint_coco(tmp_path)
    assert run("coco_semantic_annos_from_panoptic_annos", tmp_path) == 0
    for stem, painted in scenes.items():
        labels = pixels(tmp_path / "coco" / "panoptic_semseg_val2017" / f"{stem}.png")
        np.testing.assert_array_equal(labels.astype(int), painted.semantic % 256)


def test_coco_stuff_10k_from_hdf5(tmp_path):
    """The official files are of MATLAB's version 7.3: HDF5, columns first, after 512 bytes."""
    h5py = pytest.importorskip("h5py")
    ((stem, painted),) = paint_coco_stuff_10k(tmp_path, count=1).items()
    root = tmp_path / "coco" / "coco_stuff_10k"
    path = root / "annotations" / f"{stem}.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["S"] = (painted.semantic + 2).T.astype(np.float64)
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    path.write_bytes(header + path.read_bytes()[len(header) :])
    assert run("coco_stuff_10k_v1.0_sem_seg", tmp_path, split="test") == 0
    labels = pixels(root / "annotations_detectron2" / "test" / f"{stem}.png")
    np.testing.assert_array_equal(labels.astype(int), painted.semantic % 256)


def test_cityscapes_by_the_official_scripts(tmp_path):
    pytest.importorskip("cityscapesscripts")
    scenes = paint_cityscapes(tmp_path)
    assert run("cityscapes", tmp_path) == 0
    root = tmp_path / "cityscapes" / "gtFine"
    for stem, painted in scenes.items():
        labels = pixels(root / "val" / "ulm" / f"{stem}_gtFine_labelTrainIds.png")
        np.testing.assert_array_equal(labels.astype(int), painted.semantic % 256)
    content = json.loads((root / "cityscapes_panoptic_val.json").read_text())
    assert [a["image_id"] for a in content["annotations"]] == list(scenes)
    before = {path: path.stat().st_mtime_ns for path in files(root)}
    assert run("cityscapes", tmp_path) == 0
    assert before == {path: path.stat().st_mtime_ns for path in files(root)}
    (root / "val" / "ulm" / f"{stem}_gtFine_labelTrainIds.png").unlink()
    polygons = root / "val" / "ulm" / f"{stem}_gtFine_polygons.json"
    polygons.write_text(polygons.read_text().replace('"car"', '"cat"'))
    assert run("cityscapes", tmp_path) == 1


def test_cityscapes_without_the_official_scripts(tmp_path, monkeypatch):
    monkeypatch.setattr(script("prepare_cityscapes.py"), "MISSING", ImportError("none"))
    with pytest.raises(DatasetError, match=r"leftImg8bit/val does not exist; the pictures"):
        run("cityscapes", tmp_path)
    paint_cityscapes(tmp_path)
    with pytest.raises(DatasetError, match="pip install cityscapesscripts"):
        run("cityscapes", tmp_path)


PREPARED = [
    ("ade20k_sem_seg", paint_ade20k, "val"),
    ("ade20k_ins_seg", paint_ade20k, "val"),
    ("ade20k_pan_seg", paint_ade20k, "val"),
    ("ade20k_full_sem_seg", paint_ade20k_full, "val"),
    ("coco_semantic_annos_from_panoptic_annos", paint_coco, "val"),
    ("coco_stuff_10k_v1.0_sem_seg", paint_coco_stuff_10k, "test"),
]


@pytest.mark.parametrize("name, paint, split", PREPARED)
def test_finished_files_are_kept(tmp_path, name, paint, split):
    paint(tmp_path, split)
    downloaded = set(files(tmp_path))
    assert run(name, tmp_path, split=split) == 0
    made = sorted(set(files(tmp_path)) - downloaded)
    stamps = [path.stat().st_mtime_ns for path in made]
    assert run(name, tmp_path, split=split) == 0
    assert [path.stat().st_mtime_ns for path in made] == stamps
    content = made[-1].read_bytes()
    made[-1].unlink()
    assert run(name, tmp_path, split=split) == 0
    assert made[-1].read_bytes() == content
    assert sorted(set(files(tmp_path)) - downloaded) == made
    # A picture and its label map are made together, a json after its pictures.
    others = {p: stamp for p, stamp in zip(made, stamps) if p.stem != made[-1].stem}
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in others.items())


def test_nothing_is_left_of_an_interrupted_write(tmp_path):
    write_whole = script("_prepare.py").write_whole

    def write(path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "x.png", write)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "name, paint, split", [*PREPARED, ("mapillary_vistas", paint_mapillary_vistas, "val")]
)
def test_an_empty_root(tmp_path, name, paint, split):
    with pytest.raises(DatasetError, match=r"does not exist; .* belong there"):
        run(name, tmp_path, split=split)


def damage_ade20k(root):
    folder = root / "ADEChallengeData2016"
    labels = folder / "annotations" / "validation"
    save(labels / "ADE_val_00000001.png", np.full(SIZE, 151, dtype=np.uint8))
    save(labels / "ADE_val_00000002.png", np.zeros((9, 9), dtype=np.uint8))
    (labels / "ADE_val_00000003.png").write_bytes(b"no picture")
    (labels / "ADE_val_00000004.png").unlink()


def test_damaged_semantic_labels_are_listed(tmp_path, capsys):
    paint_ade20k(tmp_path, count=5)
    damage_ade20k(tmp_path)
    assert run("ade20k_sem_seg", tmp_path, workers=2) == 1
    printed = capsys.readouterr().out
    assert "4 problems" in printed
    assert "00001.png has the label 151, but the largest is 150" in printed
    assert "00002.png is 9 x 9 pixels, but its picture is 56 x 40" in printed
    assert "00003.png cannot be read as a picture" in printed
    assert "ADE_val_00000004.png is missing" in printed
    (made,) = files(tmp_path / "ADEChallengeData2016" / "annotations_detectron2")
    assert made.name == "ADE_val_00000005.png"
    assert run("ade20k_pan_seg", tmp_path) == 1  # rather no json than one that lacks pictures
    assert not (tmp_path / "ADEChallengeData2016" / "ade20k_panoptic_val.json").exists()


@pytest.mark.parametrize("red, green", [(101, 1), (0, 1)])
def test_damaged_instance_labels_are_listed(tmp_path, capsys, red, green):
    paint_ade20k(tmp_path, count=1)
    path = tmp_path / "ADEChallengeData2016/annotations_instance/validation/ADE_val_00000001.png"
    save(path, np.full((*SIZE, 3), (red, green, 0), dtype=np.uint8))
    assert run("ade20k_ins_seg", tmp_path) == 1
    assert f"object 1 has the categories [{red}]" in capsys.readouterr().out
    assert not (tmp_path / "ADEChallengeData2016" / "ade20k_instance_val.json").exists()


def test_damaged_coco_annotations_are_listed(tmp_path, capsys):
    paint_coco(tmp_path, count=3)
    path = tmp_path / "coco" / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"][0]["category_id"] = 12  # COCO has no such class
    content["annotations"][1]["segments_info"].pop()
    content["annotations"][2]["image_id"] = 99
    path.write_text(json.dumps(content))
    assert run("coco_semantic_annos_from_panoptic_annos", tmp_path) == 1
    printed = capsys.readouterr().out
    assert "segment 1000 has the category 12" in printed
    assert "segment 5000 has the category None" in printed
    assert "belongs to image id 99" in printed


def test_another_version_of_coco_stuff_is_refused(tmp_path, capsys):
    (stem,) = paint_coco_stuff_10k(tmp_path, count=1)
    path = tmp_path / "coco" / "coco_stuff_10k" / "annotations" / f"{stem}.mat"
    scipy.io.savemat(path, {"S": np.full(SIZE, 182, dtype=np.uint8)})
    assert run("coco_stuff_10k_v1.0_sem_seg", tmp_path, split="test") == 1
    assert "download v1.0" in capsys.readouterr().out


def test_damaged_mapillary_vistas_is_listed(tmp_path, capsys):
    paint_mapillary_vistas(tmp_path)
    root = tmp_path / "mapillary_vistas" / "validation"
    save(root / "labels" / "vistas_val_0.png", np.full(SIZE, 66, dtype=np.uint8))
    (root / "panoptic" / "vistas_val_1.png").unlink()
    assert run("mapillary_vistas", tmp_path) == 1
    printed = capsys.readouterr().out
    assert "vistas_val_0.png has the label 66" in printed
    assert "panoptic/vistas_val_1.png is missing" in printed
    path = root / "panoptic" / "panoptic_2018.json"
    content = json.loads(path.read_text())
    content["categories"][4]["name"] = "Guard"
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"categories \[5\] are not those of version 1\.2"):
        run("mapillary_vistas", tmp_path)


def test_the_command_line(tmp_path):
    """One line and exit status 2 if the layout is wrong; the root comes from the environment."""
    command = [sys.executable, "-W", "ignore", SCRIPTS / "prepare_ade20k_sem_seg.py"]
    environment = os.environ | {"DETECTRON2_DATASETS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: {tmp_path}/ADEChallengeData2016/images/training does not exist")
