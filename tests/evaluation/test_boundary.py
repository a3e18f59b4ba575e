"""Boundaries, and Boundary PQ against the definitions worked out one segment at a time."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from mask2former.data.panoptic_png import rgb2id
from mask2former.evaluation.boundary import boundary_pixels, boundary_width, mask_boundary
from mask2former.evaluation.panoptic import panoptic_quality
from mask2former.evaluation.quality import (
    GROUPS,
    Segments,
    count_matches,
    panoptic_figures,
    sum_counts,
)


def eroded_boundary(mask):
    """d erosions with a 3 x 3 square, of the mask padded with zeros."""
    height, width = mask.shape
    padded = np.pad(mask.astype(np.uint8), 1)
    steps = max(1, round(0.02 * (height**2 + width**2) ** 0.5))
    inside = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=steps)
    return (padded - inside)[1:-1, 1:-1].astype(bool)


def test_width():
    assert boundary_width(300, 400) == 10
    assert boundary_width(8, 8) == 1


@pytest.mark.parametrize("size", [(40, 60), (150, 90), (300, 400)])
def test_all_boundaries_at_once_are_those_of_each_mask(size):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 5, (5, 6)).astype(np.uint16)
    labels = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_NEAREST)
    boundary = boundary_pixels(labels)
    for label in range(5):
        mask = labels == label
        assert (boundary & mask == eroded_boundary(mask)).all()
        assert (mask_boundary(mask.astype(np.uint8)) == eroded_boundary(mask)).all()


@pytest.fixture
def coco(shared_data):
    """The five COCO pictures and their shifted truth: pairs of segments, and the files."""
    root = shared_data / "coco"
    truth_json = root / "annotations" / "panoptic_val2017.json"
    shifted = root / "pred_shift8"
    files = (
        truth_json,
        shifted / "predictions.json",
        truth_json.with_suffix(""),
        shifted / "panoptic_png",
    )
    truth, prediction = (json.loads(path.read_text()) for path in files[:2])
    predictions = {a["image_id"]: a for a in prediction["annotations"]}
    pairs = []
    for annotation in truth["annotations"]:
        pair = []
        for side, folder in (
            (annotation, files[2]),
            (predictions[annotation["image_id"]], files[3]),
        ):
            ids = rgb2id(np.asarray(Image.open(folder / side["file_name"])))
            pair.append((ids, side["segments_info"]))
        pairs.append(pair)
    return pairs, truth["categories"], files, root


def test_counts_by_masks_give_the_known_numbers(coco):
    """The rules that Boundary PQ shares with PQ."""
    pairs, categories, _, root = coco
    counts = sum_counts(
        count_matches(*(Segments.from_ids(*side) for side in pair)) for pair in pairs
    )
    expected = json.loads((root / "EXPECTED_PQ.json").read_text())["shift8"]
    result = panoptic_figures(counts, categories)
    for group in GROUPS:
        assert result[group] == pytest.approx(expected[group], abs=1e-6)


def test_boundary_pq_by_definition(coco):
    """The IoU of every pair of segments of a class, and of their boundaries."""
    pairs, categories, files, _ = coco
    table = {c["id"]: [0.0, 0, 0] for c in categories}  # IoU of matches, predicted, true
    for (true_ids, true_infos), (ids, infos) in pairs:
        void = true_ids == 0
        crowds = {s["category_id"]: true_ids == s["id"] for s in true_infos if s["iscrowd"]}
        matched = set()
        for true in true_infos:
            if true["iscrowd"]:
                continue
            table[true["category_id"]][2] += 1
            a = true_ids == true["id"]
            for info in infos:
                b = ids == info["id"]
                if info["category_id"] != true["category_id"] or not (a & b).any():
                    continue
                edges = eroded_boundary(a), eroded_boundary(b) & ~void
                iou = min((x & y).sum() / (x | y).sum() for x, y in ((a, b & ~void), edges))
                if iou > 0.5:
                    table[true["category_id"]][0] += iou
                    matched.add(info["id"])
        for info in infos:
            b = ids == info["id"]
            ignored = b & (void | crowds.get(info["category_id"], False))
            if info["id"] in matched or ignored.sum() <= b.sum() / 2:
                table[info["category_id"]][1] += 1
    result = panoptic_quality(*files, boundary=True)
    seen = 0
    for category in categories:
        iou, predicted, true = table[category["id"]]
        if predicted + true:
            seen += 1
            expected = iou / ((predicted + true) / 2)
            actual = result["boundary"]["per_class"][category["name"]]["pq"]
            assert actual == pytest.approx(expected, abs=1e-12)
    assert seen == result["boundary"]["All"]["n"] == 35
    assert 0 < result["boundary"]["All"]["pq"] < result["All"]["pq"]
