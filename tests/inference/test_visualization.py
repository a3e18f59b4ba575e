import json

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from mask2former.inference.results import ResultWriter, keep_confident
from mask2former.inference.visualization import (
    LEAST_SIDE,
    contact_sheet,
    displayable,
    draw_prediction,
)


@pytest.fixture
def metadata(sample_root):
    return MetadataCatalog.get("sample_val")


@pytest.fixture
def prediction():
    """The left half is a person (score 0.9), the right half sky (score 0.4)."""
    ids = torch.ones(40, 60, dtype=torch.int32)
    ids[:, 30:] = 2
    segments = [
        {"id": 1, "category_id": 0, "isthing": True, "score": 0.9, "area": 1200},
        {"id": 2, "category_id": 4, "isthing": False, "score": 0.4, "area": 1200},
    ]
    instances = Instances((40, 60))
    instances.pred_masks = torch.stack([ids == 1, ids == 2])
    instances.scores = torch.tensor([0.9, 0.4])
    instances.pred_classes = torch.tensor([0, 1])
    return {
        "panoptic_seg": (ids, segments),
        "instances": instances,
        "sem_seg": torch.stack([(ids == c).float() for c in (1, 2)]),
    }


@pytest.mark.parametrize("kind", ["panoptic_seg", "instances", "sem_seg"])
def test_drawing_marks_the_segments(prediction, metadata, kind):
    image = np.full((40, 60, 3), 127, np.uint8)
    drawn = draw_prediction(image, {kind: prediction[kind]}, metadata)
    assert drawn.shape == (LEAST_SIDE, LEAST_SIDE * 60 // 40, 3)
    left, right = drawn[20:60, 100], drawn[20:60, -100]  # away from the labels in the middle
    assert (left.std(0) < 30).all()
    assert np.abs(left.mean(0) - right.mean(0)).max() > 10


def test_empty_predictions_are_drawn(metadata):
    image = np.zeros((40, 60, 3), np.uint8)
    instances = Instances((40, 60))
    instances.pred_masks = torch.zeros(0, 40, 60, dtype=torch.bool)
    instances.scores, instances.pred_classes = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    empty = torch.zeros(40, 60, dtype=torch.int32)
    for prediction in ({"instances": instances}, {"panoptic_seg": (empty, [])}):
        assert draw_prediction(image, prediction, metadata).shape[0] == LEAST_SIDE


def test_keep_confident(prediction):
    kept = keep_confident(prediction, 0.5)
    assert len(kept["instances"]) == 1
    ids, segments = kept["panoptic_seg"]
    assert [s["id"] for s in segments] == [1]
    assert ids.unique().tolist() == [0, 1]
    assert (ids[:, 30:] == 0).all()
    assert len(keep_confident(prediction, 0.0)["instances"]) == 2


def test_results_carry_the_category_ids_of_the_data_set(prediction, metadata, tmp_path):
    writer = ResultWriter(tmp_path, metadata)
    prediction["instances"].pred_boxes = Boxes(torch.tensor([[0, 0, 30, 40], [30, 0, 60, 40.0]]))
    writer.add("a", "a.jpg", prediction)
    writer.close()
    things = metadata.thing_dataset_id_to_contiguous_id
    results = json.loads((tmp_path / "instances.json").read_text())
    assert [things[r["category_id"]] for r in results] == [0, 1]
    assert results[1]["bbox"] == [30, 0, 30, 40]
    panoptic = json.loads((tmp_path / "panoptic.json").read_text())
    (annotation,) = panoptic["annotations"]
    assert panoptic["images"] == [{"id": 1, "file_name": "a.jpg"}]
    contiguous = metadata.stuff_dataset_id_to_contiguous_id
    categories = {c["id"]: (c["name"], c["isthing"]) for c in panoptic["categories"]}
    assert set(categories) == set(contiguous)
    names = [categories[s["category_id"]] for s in annotation["segments_info"]]
    assert names == [("person", 1), ("sky", 0)]
    assert [contiguous[s["category_id"]] for s in annotation["segments_info"]] == [0, 4]


def test_contact_sheet():
    red, blue = np.zeros((2, 30, 60, 3), np.uint8)
    red[..., 0], blue[..., 2] = 200, 200
    sheet = contact_sheet([[red, blue], [blue]], cell=60)
    assert sheet.shape == (2 * 66 + 6, 2 * 66 + 6, 3)
    assert sheet[36, 36].tolist() == [200, 0, 0]
    assert sheet[36, 102].tolist() == [0, 0, 200]
    assert sheet[102, 102].tolist() == [255, 255, 255]


def test_one_class_is_not_drawn_everywhere(tmp_path, metadata):
    ResultWriter(tmp_path, metadata).add("a", "a.jpg", {"sem_seg": torch.tensor([[[0.7, 0.3]]])})
    assert np.asarray(Image.open(tmp_path / "semantic/a.png")).tolist() == [[0, 1]]


def test_headings_stand_above_their_columns():
    cells = [[np.full((10, 10, 3), 127, np.uint8)] * 2]
    plain = contact_sheet(cells, cell=100)
    headed = contact_sheet(cells, cell=100, headings=["left", "right"])
    above = headed[: len(headed) - len(plain) + 6]
    np.testing.assert_array_equal(headed[len(above) :], plain[6:])
    assert (above[:, :100] < 255).any() and (above[:, 106:] < 255).any()


def test_raw_pictures_can_be_shown():
    ramp = np.linspace(1000, 5000, 101)[None, :, None] * np.array([1, 2, 3, 1e6])
    shown = displayable(ramp.astype(np.float32), "raw")
    assert shown.shape == (1, 101, 3) and shown.dtype == np.uint8
    assert (shown[0, 50] == 127).all() and (shown[0, 0] == 0).all() and (shown[0, -1] == 255).all()
    grey = displayable(ramp[:, :, :1].astype(np.float32), "raw")
    np.testing.assert_array_equal(grey, shown[:, :, [0, 0, 0]])
    blue_first = np.zeros((1, 1, 3), np.uint8) + np.array([9, 0, 0], np.uint8)
    assert displayable(blue_first, "BGR").tolist() == [[[0, 0, 9]]]
