import json

import pytest

from mask2former.errors import DatasetError
from mask2former.evaluation.instance import average_precision


@pytest.mark.parametrize(
    "iou_type, expected",
    [
        ("segm", {"AP": 0.319545, "AP50": 0.562288, "AP75": 0.298927}),
        ("bbox", {"AP": 0.504581}),
    ],
)
def test_known_numbers(shared_data, iou_type, expected):
    root = shared_data / "coco_eval_val2014_100"
    results = root / f"instances_val2014_fake{iou_type}100_results.json"
    figures = average_precision(root / "instances_val2014_100.json", results, iou_type=iou_type)
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-6)


@pytest.fixture
def truth(tmp_path):
    path = tmp_path / "gt.json"
    annotation = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [0, 0, 4, 4],
        "area": 16,
        "iscrowd": 0,
        "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]],
    }
    content = {
        "images": [{"id": 1, "height": 8, "width": 8}],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "cat"}],
    }
    path.write_text(json.dumps(content))
    return path


def write_results(folder, *results):
    path = folder / "results.json"
    path.write_text(json.dumps(results))
    return path


BOX = {"image_id": 1, "category_id": 1, "score": 0.9, "bbox": [0, 0, 4, 4]}


def test_perfect_and_empty_results(truth, tmp_path):
    perfect = average_precision(truth, write_results(tmp_path, BOX), iou_type="bbox")
    assert perfect["AP"] == pytest.approx(1)
    assert average_precision(truth, write_results(tmp_path), iou_type="bbox")["AP"] == 0


def test_misfits_are_named(truth, tmp_path):
    with pytest.raises(DatasetError, match=r"results for 1 pictures .* image id 7"):
        average_precision(truth, write_results(tmp_path, BOX | {"image_id": 7}))
    with pytest.raises(DatasetError, match="without 'segmentation'"):
        average_precision(truth, write_results(tmp_path, BOX))
    with pytest.raises(DatasetError, match=r"none\.json does not exist"):
        average_precision(truth, tmp_path / "none.json")
    with pytest.raises(DatasetError, match="must hold a list"):
        average_precision(truth, truth)
