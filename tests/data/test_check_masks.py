import numpy as np
import pycocotools.mask
import pytest

from mask2former.data.check.masks import mask_area, mask_fault, rle_runs


def test_runs_and_areas_of_rle():
    """Against pycocotools, and runs against the differences of the pixels."""
    random = np.random.default_rng(1)
    for density in (0, 0.01, 0.3, 0.5, 1):
        for size in ((1, 1), (7, 300), (200, 130)):
            mask = np.asfortranarray(random.random(size) < density).astype(np.uint8)
            rle = pycocotools.mask.encode(mask)
            flat = np.concatenate(([0], mask.ravel(order="F"), [2]))
            expected = np.diff(np.concatenate(([0], np.flatnonzero(np.diff(flat)))))
            runs = rle_runs(rle["counts"])
            assert rle_runs(rle["counts"].decode()) == runs and sum(runs) == mask.size
            assert [r for r in runs if r] == [r for r in expected if r]
            assert mask_area(rle, size, expected=0) == mask.sum()
            assert mask_fault(rle, size) is None


def test_areas_of_polygons():
    square = [10, 10, 30, 10, 30, 30, 10, 30]
    assert mask_area([square], (40, 40), expected=400) == 400
    # Twice the same square is one, which the sum of both does not tell.
    assert mask_area([square, square], (40, 40), expected=400) == pytest.approx(400, abs=1)
