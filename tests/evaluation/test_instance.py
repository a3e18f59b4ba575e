import contextlib
import io
import json
import math

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import decode, encode, iou, toBbox

from mask2former.errors import DatasetError
from mask2former.evaluation.instance import FIGURES, average_precision


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


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_equals_pycocotools(shared_data, iou_type):
    """All twelve figures, and AP by class."""
    root = shared_data / "coco_eval_val2014_100"
    files = (
        root / "instances_val2014_100.json",
        root / f"instances_val2014_fake{iou_type}100_results.json",
    )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(files[0]))
        official = COCOeval(truth, truth.loadRes(str(files[1])), iou_type)
        official.evaluate()
        official.accumulate()
        official.summarize()
    result = average_precision(*files, iou_type=iou_type)
    assert [result[name] for name in FIGURES] == pytest.approx(official.stats.tolist(), abs=1e-12)
    for i, id_ in enumerate(official.params.catIds):
        precision = official.eval["precision"][:, :, i, 0, -1]
        expected = precision[precision > -1].mean() if (precision > -1).any() else np.nan
        actual = result["per_class"][truth.cats[id_]["name"]]
        assert actual == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_boundary_ap_is_pycocotools_on_the_smaller_iou(shared_data):
    """With the IoU of every pair of masks and of boundaries, eroded one pixel at a time."""

    class Official(COCOeval):
        def computeIoU(self, image_id, category_id):
            ious = super().computeIoU(image_id, category_id)
            if not len(ious):
                return ious
            truth, found = self._gts[image_id, category_id], self._dts[image_id, category_id]
            order = np.argsort([-dt["score"] for dt in found], kind="mergesort")
            sides = [edges_of([found[i] for i in order]), edges_of(truth)]
            crowd = np.array([gt["iscrowd"] for gt in truth], bool)
            edge_ious = np.array(iou(*sides, crowd.astype(int).tolist()))
            return np.where(crowd, ious, np.minimum(ious, edge_ious))

    def edges_of(annotations):
        edges = []
        for annotation in annotations:
            mask = np.pad(decode(annotation["segmentation"]), 1)
            inside, square = mask, np.ones((3, 3), np.uint8)
            for _ in range(round(0.02 * float(np.hypot(mask.shape[0] - 2, mask.shape[1] - 2)))):
                inside = cv2.erode(inside, square)
            edges.append(encode(np.asfortranarray((mask - inside)[1:-1, 1:-1])))
        return edges

    root = shared_data / "coco_eval_val2014_100"
    files = (
        root / "instances_val2014_100.json",
        root / "instances_val2014_fakesegm100_results.json",
    )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(files[0]))
        official = Official(truth, truth.loadRes(str(files[1])), "segm")
        official.evaluate()
        official.accumulate()
        official.summarize()
    result = average_precision(*files, iou_type="boundary")
    assert [result[name] for name in FIGURES] == pytest.approx(official.stats.tolist(), abs=1e-12)
    assert 0 < result["AP"] < average_precision(*files)["AP"]


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
    for iou_type in ("segm", "bbox", "boundary"):
        assert average_precision(truth, write_results(tmp_path), iou_type=iou_type)["AP"] == 0


def test_misfits_are_named(truth, tmp_path):
    with pytest.raises(DatasetError, match=r"results for 1 pictures .* image id 7"):
        average_precision(truth, write_results(tmp_path, BOX | {"image_id": 7}))
    with pytest.raises(DatasetError, match="without 'segmentation'"):
        average_precision(truth, write_results(tmp_path, BOX))
    with pytest.raises(DatasetError, match=r"none\.json does not exist"):
        average_precision(truth, tmp_path / "none.json")
    with pytest.raises(DatasetError, match="must hold a list"):
        average_precision(truth, truth)


def rle(*, height=8, width=8):
    """The 4 x 4 corner at the origin."""
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[:4, :4] = 1
    encoded = encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


MASK = {"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": rle()}


@pytest.mark.parametrize("changes", [{"id": 0}, {"iscrowd": None}], ids=["id 0", "no iscrowd"])
def test_truth_as_other_tools_write_it(truth, tmp_path, changes):
    """pycocotools alone says 0 for an annotation of id 0, and crashes without iscrowd."""
    content = json.loads(truth.read_text())
    content["annotations"][0] |= changes
    if content["annotations"][0]["iscrowd"] is None:
        del content["annotations"][0]["iscrowd"]
    truth.write_text(json.dumps(content))
    for iou_type in ("segm", "boundary"):
        figures = average_precision(truth, write_results(tmp_path, MASK), iou_type=iou_type)
        assert figures["AP"] == pytest.approx(1)


def test_no_figure_for_sizes_that_do_not_occur(truth, tmp_path):
    figures = average_precision(truth, write_results(tmp_path))
    assert figures["AP"] == figures["APs"] == 0
    assert math.isnan(figures["APm"]) and math.isnan(figures["APl"])


def test_boxes_beside_the_masks_change_nothing(shared_data, tmp_path):
    """Detectron2 saves both. The size of an object is its mask's then, too."""
    root = shared_data / "coco_eval_val2014_100"
    gt_json = root / "instances_val2014_100.json"
    pred_json = root / "instances_val2014_fakesegm100_results.json"
    results = json.loads(pred_json.read_text())
    boxed = [r | {"bbox": toBbox(r["segmentation"]).tolist()} for r in results]
    with_boxes = average_precision(gt_json, write_results(tmp_path, *boxed))
    without = average_precision(gt_json, pred_json)
    assert [with_boxes[name] for name in FIGURES] == [without[name] for name in FIGURES]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"category_id": 0}, r"results\.json: .* image id 1 has category_id 0, which .*gt\.json"),
        (
            {"segmentation": rle(height=9)},
            r"results\.json: .* image id 1 .* no RLE of size \[8, 8\]",
        ),
        ({"segmentation": [[0, 0, 4, 0, 4, 4]]}, r"no RLE of size \[8, 8\]"),
    ],
    ids=["category", "size", "polygon"],
)
def test_results_that_would_count_for_nothing_are_named(truth, tmp_path, changes, message):
    with pytest.raises(DatasetError, match=message):
        average_precision(truth, write_results(tmp_path, MASK | changes))


def test_malformed_files_are_named(truth, tmp_path):
    no_score = {key: value for key, value in MASK.items() if key != "score"}
    with pytest.raises(DatasetError, match=r"results\.json .* result 0 has no 'score'"):
        average_precision(truth, write_results(tmp_path, no_score))
    results = write_results(tmp_path, MASK)
    with pytest.raises(DatasetError, match=r"results\.json is no COCO instances json"):
        average_precision(results, results)
    (tmp_path / "binary.json").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DatasetError, match=r"binary\.json is no valid JSON"):
        average_precision(truth, tmp_path / "binary.json")
    with pytest.raises(DatasetError, match="cannot be read"):
        average_precision(truth, tmp_path)
    content = json.loads(truth.read_text())
    del content["annotations"][0]["area"]
    truth.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"gt\.json: annotation 1 of image id 1 has no 'area'"):
        average_precision(truth, results)
