"""Files that would score wrongly in silence, or end an evaluation with a traceback."""

import json

import numpy as np
import pytest
from PIL import Image

from mask2former.data.panoptic_png import id2rgb
from mask2former.errors import DatasetError
from mask2former.evaluation.instance import average_precision
from mask2former.evaluation.masks import panoptic_quality_of_masks
from mask2former.evaluation.panoptic import panoptic_quality
from mask2former.evaluation.semantic import count_folders

SQUARE = [[0, 0, 4, 0, 4, 4, 0, 4]]


def save_png(path, values):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(values).save(path)


def test_areas_that_do_not_fit_the_png(tmp_path):
    """panopticapi takes the truth's areas from the json, and so do we."""
    ids = np.zeros((10, 10), np.uint8)
    ids[:5] = 1
    save_png(tmp_path / "png" / "1.png", id2rgb(ids))
    for name, area in (("right", 50), ("stale", 3)):
        segments = [{"id": 1, "category_id": 1, "area": area, "iscrowd": 0}]
        content = {
            "categories": [{"id": 1, "name": "nut", "isthing": 1}],
            "images": [{"id": 1}],
            "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": segments}],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    prediction = tmp_path / "right.json", tmp_path / "png", tmp_path / "png"
    assert panoptic_quality(tmp_path / "right.json", *prediction)["All"]["pq"] == 1
    with pytest.raises(DatasetError, match="area"):
        panoptic_quality(tmp_path / "stale.json", *prediction)


@pytest.mark.parametrize("colours", [False, True])
def test_instances_that_share_a_grey_value(tmp_path, colours):
    """16-bit numbers are taken as they are; colours of one grey value are refused."""
    truth = np.full((8, 8), 256, np.uint16)
    truth[4:] = 300
    if colours:
        truth = np.where(truth[..., None] == 256, (255, 0, 0), (0, 130, 0)).astype(np.uint8)
    save_png(tmp_path / "truth.png", truth)
    save_png(tmp_path / "one.png", np.ones((8, 8), np.uint8))
    save_png(tmp_path / "classes.png", np.ones((8, 8), np.uint8))
    sides = {
        side: {"instances": name, "classes": "classes.png"}
        for side, name in (("truth", "truth.png"), ("prediction", "one.png"))
    }
    description = {
        "categories": [{"id": 1, "name": "nut", "isthing": 1}], "void": 0, "pictures": [sides]
    }  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps(description))
    if colours:
        with pytest.raises(DatasetError, match="same grey value"):
            panoptic_quality_of_masks(tmp_path / "x.json")
    else:
        assert panoptic_quality_of_masks(tmp_path / "x.json")["All"]["pq"] == 0


def instances(tmp_path, *, image=(), category=(), annotation=(), result=()):
    """AP of a perfect result, with something changed."""
    annotation = {
        **{"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 4, 4], "area": 16},
        "segmentation": SQUARE,
        **dict(annotation),
    }
    truth = {
        "images": [{"id": 1, "height": 8, "width": 8} | dict(image)],
        "categories": [{"id": 3, "name": "nut"} | dict(category)],
        "annotations": [annotation | {"id": 2, "image_id": 1, "segmentation": SQUARE}, annotation],
    }
    # Columns of 8: four of 4 pixels.
    rle = {"size": [8, 8], "counts": [0, 4, 4, 4, 4, 4, 4, 4, 36]}
    found = {"image_id": 1, "category_id": 3, "score": 0.9, "segmentation": rle} | dict(result)
    for content in (truth["images"][0], truth["categories"][0]):
        for key in [key for key, value in content.items() if value is None]:
            del content[key]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "result.json").write_text(json.dumps([found, found]))
    return average_precision(tmp_path / "truth.json", tmp_path / "result.json")["AP"]


def test_instances_of_no_picture_count_for_nothing(tmp_path):
    assert instances(tmp_path) == instances(tmp_path, annotation={"image_id": 1}) == 1
    # One object is left, which both results cover: the second is a false alarm of the same score.
    assert instances(tmp_path, annotation={"image_id": 99}) == pytest.approx(1)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image": {"id": None}}, "truth.json: image .* has no 'id'"),
        ({"category": {"name": None}}, "truth.json: category .* has no 'name'"),
        ({"annotation": {"segmentation": []}}, "annotation 1 of image id 1 has no mask"),
        (
            {"annotation": {"segmentation": {"size": [9, 9], "counts": [81]}}},
            "annotation 1 of image id 1: the RLE is 9 x 9 pixels",
        ),
        ({"result": {"score": None}}, "image id 1 has the score None"),
        ({"result": {"score": float("nan")}}, "image id 1 has the score nan"),
    ],
)
def test_instances_that_cannot_be_scored(tmp_path, change, message):
    with pytest.raises(DatasetError, match=message):
        instances(tmp_path, **change)


def test_label_maps_of_one_bit(tmp_path):
    labels = np.zeros((4, 6), bool)
    labels[:2] = True
    for side in ("truth", "prediction"):
        save_png(tmp_path / side / "a.png", labels)
    counts = count_folders(tmp_path / "truth", tmp_path / "prediction", num_classes=2, ignore=255)
    assert counts.figures(["a", "b"])["mIoU"] == 1


def test_label_maps_that_differ_in_their_suffix(tmp_path):
    for name in ("a.png", "a.tif"):
        save_png(tmp_path / "truth" / name, np.zeros((4, 6), np.uint8))
    with pytest.raises(DatasetError, match=r"a\.png and .*a\.tif differ in their suffix"):
        count_folders(tmp_path / "truth", tmp_path / "truth", num_classes=2, ignore=255)
