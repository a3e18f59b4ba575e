"""Tiles and whole pictures within an amount of memory."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from mask2former.errors import UserError
from mask2former.inference import Options, budget
from mask2former.inference.budget import budget_for, check_file

HELD, SIZE = 10**9, (6000, 8000)
MAPS = 4 * SIZE[0] * SIZE[1]
PANOPTIC = Options(tasks=("panoptic",))


@pytest.fixture
def machine(monkeypatch):
    """One that holds ``HELD`` bytes, and where drawing and writing cost nothing."""
    monkeypatch.setattr(budget, "resident_bytes", lambda: HELD)
    monkeypatch.setattr(budget, "keep_freed_memory", lambda *_, **__: None)  # of the tests
    monkeypatch.setattr(budget, "DRAWING", 0)
    monkeypatch.setattr(budget, "WRITING", 0)


def test_memory_limits_the_tile(predictor, machine, monkeypatch):
    model = budget.MEMORY_FACTOR * budget.tensor_bytes_per_pixel(predictor)
    room = HELD + MAPS + int((model + budget.TILE) * 700**2)
    assert budget_for(predictor, SIZE, room, PANOPTIC).tile == 640  # a multiple of 64 below 700
    # Half a pixel of the model for one of the picture: four times the pixels of the tile.
    room = HELD + MAPS + int((model + 4 * budget.TILE) * 700**2)
    half = budget_for(predictor, SIZE, room, PANOPTIC, scale=0.5)
    assert half.tile == 1280 and half.model_pixels == 640**2
    cleaned = budget_for(predictor, SIZE, room, Options(tasks=("panoptic",), clean_up=9), scale=0.5)
    assert cleaned.tile < half.tile
    two_maps = Options(tasks=("panoptic", "semantic"))
    assert budget_for(predictor, SIZE, room + MAPS, two_maps, scale=0.5) == half
    assert budget_for(predictor, SIZE, 10**12, PANOPTIC).tile == budget.LARGEST_TILE


def test_too_little_memory(predictor, machine, monkeypatch):
    with pytest.raises(UserError, match=r"8000 x 6000 pixels takes 1\.2\d GB.*--max-memory"):
        budget_for(predictor, SIZE, HELD + MAPS, PANOPTIC)
    monkeypatch.setattr(budget, "DRAWING", 1000)  # drawn with 2000 x 1500 pixels
    with pytest.raises(UserError, match=r"8000 x 6000 pixels takes 4\.\d\d GB.*--max-memory"):
        budget_for(predictor, SIZE, 4 * 10**9, PANOPTIC)
    assert budget_for(predictor, SIZE, 42 * 10**8, PANOPTIC).whole


def test_instance_masks_may_not_fit(predictor, machine):
    """Of 100 masks, two copies and what is inside of a band are there at once, and drawn ones."""
    size = (1000, 1500)
    options = Options(tasks=("instance",), most_instances=100)
    needed = HELD + 4 * 10**6 * 3 // 2 + 4 * 100 * 1000 * 1500
    assert budget_for(predictor, size, needed + 10**6, options).whole
    assert not budget_for(predictor, size, needed - 10**6, options).whole
    few = dataclasses.replace(options, most_instances=50)
    assert budget_for(predictor, size, needed - 10**6, few).whole


def test_files_that_are_too_large(predictor, machine, tmp_path):
    """By their headers: 14 bytes a pixel to decode; or the array, a map and the least tile."""
    path = tmp_path / "large.png"
    Image.new("L", (1000, 20_000)).save(path)
    check_file(predictor, path, HELD + 280_000_000, PANOPTIC)
    message = r"large\.png: a picture of 1000 x 20000 pixels takes 1\.28 GB.*1\.00 of which"
    with pytest.raises(UserError, match=message):
        check_file(predictor, path, HELD + 279_000_000, PANOPTIC)

    small = tmp_path / "small.png"
    Image.new("L", (100, 100)).save(small)
    model = budget.MEMORY_FACTOR * budget.tensor_bytes_per_pixel(predictor)
    least = HELD + 7 * 100**2 + int((model + budget.TILE) * budget.LEAST_TILE**2)
    check_file(predictor, small, least + 1, PANOPTIC)
    with pytest.raises(UserError, match=r"small\.png: a picture of 100 x 100"):
        check_file(predictor, small, least - 1000, PANOPTIC)

    (tmp_path / "text.png").write_text("no picture")
    check_file(predictor, tmp_path / "text.png", HELD, PANOPTIC)  # whoever reads it says so
    check_file(predictor, tmp_path / "missing.png", HELD, PANOPTIC)


def test_what_is_free_is_handed_back_before_it_counts(predictor, machine, monkeypatch, tmp_path):
    """After loading, 0.2 GB of a ResNet-50's process are free; with them, pictures were refused."""
    path = tmp_path / "small.png"
    Image.new("L", (100, 100)).save(path)
    held = [2 * HELD]
    monkeypatch.setattr(budget, "resident_bytes", lambda: held[0])
    monkeypatch.setattr(budget, "hand_back_memory", lambda: held.__setitem__(0, HELD))
    check_file(predictor, path, 2 * HELD, PANOPTIC)
    held[0] = 2 * HELD
    assert budget_for(predictor, (100, 100), 2 * HELD, PANOPTIC).whole


def test_resident_memory_grows_with_what_is_allocated():
    before = budget.resident_bytes()
    block = np.ones(50_000_000)
    assert budget.resident_bytes() - before > 0.9 * block.nbytes
