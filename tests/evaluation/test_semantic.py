"""Semantic figures in closed form, from counts, folders and the evaluator."""

import json
import math

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator

from mask2former.errors import DatasetError
from mask2former.evaluation import SemanticEvaluator
from mask2former.evaluation.boundary import mask_boundary
from mask2former.evaluation.semantic import SemanticCounts, count_folders, quality_of_classes

NAMES = ["road", "car", "sky"]
TRUTH = np.array([[0, 0, 1, 1], [0, 0, 1, 255]])
PREDICTION = np.array([[0, 1, 1, 1], [0, 0, 0, 1]])


def counted(truth, prediction, k=3, **options):
    counts = SemanticCounts(k, ignore=255, **options)
    counts.add(np.asarray(truth), np.asarray(prediction))
    return counts


def test_hand_worked_case():
    """road: 3 of 4 and one too many; car: 2 of 3 and one too many; the ignored pixel is neither."""
    result = counted(TRUTH, PREDICTION).figures(NAMES)
    assert result["per_class"]["road"] == pytest.approx({"IoU": 3 / 5, "ACC": 3 / 4})
    assert result["per_class"]["car"] == pytest.approx({"IoU": 2 / 4, "ACC": 2 / 3})
    assert math.isnan(result["per_class"]["sky"]["IoU"])
    means = {key: result[key] for key in ("mIoU", "fwIoU", "mACC", "pACC")}
    expected = {
        "mIoU": (3 / 5 + 1 / 2) / 2,
        "fwIoU": 4 / 7 * 3 / 5 + 3 / 7 / 2,
        "mACC": (3 / 4 + 2 / 3) / 2,
        "pACC": 5 / 7,
    }
    assert means == pytest.approx(expected)


def test_a_class_that_is_only_predicted_counts_as_zero():
    result = counted([[0, 0]], [[0, 2]]).figures(NAMES)
    assert result["mIoU"] == pytest.approx((1 / 2 + 0) / 2)
    assert result["mACC"] == pytest.approx(1 / 2)  # of the classes that the truth has


def test_nothing_to_score_is_nan():
    result = counted([[255]], [[0]]).figures(NAMES)
    assert all(math.isnan(result[key]) for key in ("mIoU", "fwIoU", "mACC", "pACC"))


def test_files_may_say_that_nothing_is_predicted():
    result = counted([[0, 0, 1]], [[0, 255, 3]]).figures(NAMES)
    assert result["per_class"]["road"]["IoU"] == 1 / 2
    assert result["per_class"]["car"]["IoU"] == 0 and math.isnan(result["per_class"]["sky"]["IoU"])


@pytest.mark.parametrize("truth, prediction", [([[7]], [[0]]), ([[0]], [[7]]), ([[0]], [[0, 0]])])
def test_other_values_and_sizes_are_refused(truth, prediction):
    with pytest.raises(ValueError, match="value 7|size"):
        counted(truth, prediction)


def test_boundary_iou_by_definition():
    rng = np.random.default_rng(0)
    truth, prediction = (
        cv2.resize(rng.integers(0, 3, (3, 4)).astype(np.uint8), (160, 120), interpolation=0)
        for _ in range(2)
    )
    truth[:20, :50] = 255
    result = counted(truth, prediction, boundary=True).figures(NAMES)
    for i, name in enumerate(NAMES):
        a, b = (mask_boundary((x == i).astype(np.uint8)) > 0 for x in (truth, prediction))
        b &= truth != 255
        expected = (a & b).sum() / (a | b).sum()
        assert result["per_class"][name]["BoundaryIoU"] == pytest.approx(expected)
    values = [figures["BoundaryIoU"] for figures in result["per_class"].values()]
    assert result["BoundaryIoU"] == pytest.approx(np.mean(values))


def test_pq_of_classes():
    """road's IoU of 3/5 is a match; car's, 2 of 4 without the ignored pixel, is none."""
    result = quality_of_classes(counted(TRUTH, PREDICTION), NAMES)
    road, car = result["per_class"]["road"], result["per_class"]["car"]
    assert road == pytest.approx({"pq": 3 / 5, "sq": 3 / 5, "rq": 1})
    assert car == {"pq": 0, "sq": 0, "rq": 0}
    assert result["Stuff"]["n"] == 2 and math.isnan(result["Things"]["pq"])


def test_pq_passes_over_predictions_on_ignored_pixels():
    result = quality_of_classes(counted([[0, 255, 255]], [[0, 1, 1]]), NAMES)
    assert result["All"]["pq"] == 1 and result["All"]["n"] == 1


def test_one_class():
    """Two pixels of it, two predicted, one of them rightly; the others are background."""
    result = counted([[0, 0, 255, 255]], [[0, 1, 0, 1]], k=1).figures(["crack"])
    assert result["mIoU"] == pytest.approx(1 / 3) and result["pACC"] == 1 / 2


def write_maps(folder, **maps):
    for name, labels in maps.items():
        path = folder / f"{name.replace('__', '/')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.asarray(labels, np.uint8))


def test_folders(tmp_path):
    write_maps(tmp_path / "gt", a=TRUTH, x__b=[[2, 2]])
    write_maps(tmp_path / "pred", a=PREDICTION, x__b=[[2, 2]], unused=[[0]])
    result = count_folders(tmp_path / "gt", tmp_path / "pred", num_classes=3).figures(NAMES)
    assert result["mIoU"] == pytest.approx((3 / 5 + 1 / 2 + 1) / 3)
    (tmp_path / "pred" / "x" / "b.png").unlink()
    with pytest.raises(DatasetError, match=r"pred has no prediction for 1 .*b\.png"):
        count_folders(tmp_path / "gt", tmp_path / "pred", num_classes=3)
    write_maps(tmp_path / "pred", x__b=[[9, 2]])
    with pytest.raises(DatasetError, match=r"pred/x/b\.png, .*value 9.*3 classes"):
        count_folders(tmp_path / "gt", tmp_path / "pred", num_classes=3)


@pytest.fixture
def semantic_set(tmp_path):
    """Register a set of one picture by its classes and its label map."""
    names = []

    def register(classes, labels):
        name = f"test_semantic_{len(names)}"
        names.append(name)
        write_maps(tmp_path, truth=labels)
        record = {"file_name": "pictures/a.jpg", "sem_seg_file_name": str(tmp_path / "truth.png")}
        DatasetCatalog.register(name, lambda: [record])
        MetadataCatalog.get(name).set(stuff_classes=classes, ignore_label=255)
        return name, record

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("score, miou", [(0.4, 0.0), (0.5, 50.0), (0.9, 50.0)])
def test_one_class_is_no_full_marks_for_a_wrong_prediction(semantic_set, score, miou):
    """Half the picture is of the class, and all of it is predicted to be, or nothing."""
    name, record = semantic_set(["crack"], [[0, 255], [0, 255]])
    evaluator = SemanticEvaluator(dataset_name=name)
    evaluator.process([record], [{"sem_seg": torch.full((1, 2, 2), score)}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == miou


def test_equals_detectron2(semantic_set, tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (40, 50))
    labels[labels == 3] = 255
    name, record = semantic_set(NAMES, labels)
    scores = torch.from_numpy(rng.random((3, 40, 50)))
    official = SemSegEvaluator(name, distributed=False)
    evaluator = SemanticEvaluator(dataset_name=name, output_dir=tmp_path / "out")
    for each in (official, evaluator):
        each.reset()
        each.process([record], [{"sem_seg": scores}])
    figures = evaluator.evaluate()["sem_seg"]
    assert figures == pytest.approx(official.evaluate()["sem_seg"], abs=1e-9)
    # The kept prediction gives the same once more.
    write_maps(tmp_path / "gt", a=labels)
    folder = tmp_path / "out" / "semantic_png"
    again = count_folders(tmp_path / "gt", folder, num_classes=3).figures(NAMES)
    assert 100 * again["mIoU"] == figures["mIoU"]


def test_panoptic_truth_stands_in_for_label_maps(sample_root):
    """The sample's label maps and its segments say the same, but for the crowds."""
    records = DatasetCatalog.get("sample_val")
    evaluator = SemanticEvaluator(dataset_name="sample_val")
    compared = 0
    for record in records:
        without = {key: value for key, value in record.items() if key != "sem_seg_file_name"}
        labels, derived = evaluator._truth(record), evaluator._truth(without)
        here = derived != evaluator.ignore
        assert (labels[here] == derived[here]).all()
        compared += here.mean()
    assert compared / len(records) > 0.5


def test_saved_figures_are_valid_json(tmp_path):
    from mask2former.evaluation.report import save_json

    save_json({"a": float("nan"), "b": [np.float32(0.5), 1, "x", None, True]}, tmp_path / "x.json")
    content = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert content == {"a": None, "b": [0.5, 1, "x", None, True]}
