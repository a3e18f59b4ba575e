"""Rows at a time against the whole map at once."""

import pytest
import torch
from torch.nn import functional as F

from mask2former.modeling import row_maps
from mask2former.modeling.postprocessing import (
    instance_inference,
    panoptic_inference,
    semantic_inference,
)
from mask2former.modeling.row_maps import RowMaps


@pytest.fixture
def thin_bands(monkeypatch):
    """Bands of eight rows."""
    monkeypatch.setitem(row_maps.BAND_ELEMENTS, "cpu", 1)
    monkeypatch.setattr(row_maps, "LEAST_ROWS", 8)


def interpolate(maps, size):
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize(
    "padded, image, output",
    [
        ((64, 96), (64, 96), (64, 96)),
        ((64, 96), (50, 83), (50, 83)),
        ((64, 96), (50, 83), (31, 190)),
        ((64, 96), (61, 90), (7, 5)),
        ((16, 24), (16, 24), (201, 37)),
        ((3, 2), (1, 1), (20, 9)),
    ],
)
def test_resizing(thin_bands, padded, image, output):
    maps = torch.randn(5, 16, 24, dtype=torch.float64)
    expected = interpolate(maps, padded)[:, : image[0], : image[1]]
    expected = interpolate(expected, output)
    resized = RowMaps.of(maps).resize(padded).crop(image).resize(output)
    bands = list(resized.bands())
    assert len(bands) == -(-output[0] // 8)
    torch.testing.assert_close(torch.cat([band for _, band in bands], 1), expected)
    torch.testing.assert_close(resized.whole(), expected)


def test_functions_of_maps_that_are_resized(thin_bands):
    maps = torch.randn(5, 16, 24, dtype=torch.float64)
    squares = (
        RowMaps.of(maps)
        .resize((40, 40))
        .map(lambda x, out: out.copy_(x[:2] ** 2), 2)
        .resize((30, 50))
    )
    expected = interpolate(interpolate(maps, (40, 40))[:2] ** 2, (30, 50))
    torch.testing.assert_close(squares.whole(), expected)


def test_semantic_scores_in_bands(thin_bands):
    """Bands are written where they belong, also where the last is lower and the rest is cut off."""
    classes, masks = torch.randn(6, 4), torch.randn(6, 9, 12)
    maps = RowMaps.of(masks).resize((36, 48)).crop((30, 41))
    probabilities = classes.softmax(-1)[:, :-1]
    expected = interpolate(masks, (36, 48))[:, :30, :41].sigmoid()
    expected = torch.einsum("qk,qhw->khw", probabilities, expected)
    scores = semantic_inference(classes, maps)
    assert len(list(scores.bands())) == 4
    torch.testing.assert_close(scores.whole(), expected)
    torch.testing.assert_close(torch.cat([band for _, band in scores.bands()], 1), expected)


def test_no_maps(thin_bands):
    assert RowMaps.of(torch.zeros(0, 4, 6)).resize((20, 9)).whole().shape == (0, 20, 9)


def test_bands_change_nothing(monkeypatch):
    """Panoptic and instance segmentation are the same in many bands as in one."""
    classes, masks = 4 * torch.randn(12, 5), 4 * torch.randn(12, 9, 14)

    def segment(elements):
        monkeypatch.setitem(row_maps.BAND_ELEMENTS, "cpu", elements)
        monkeypatch.setattr(row_maps, "LEAST_ROWS", 8)

        def resize(logits):
            return RowMaps.of(logits).resize((70, 80))

        ids, segments = panoptic_inference(
            classes,
            masks,
            resize,
            thing_ids={0, 1},
            object_mask_threshold=0.5,
            overlap_threshold=0.3,
        )
        return ids, segments, instance_inference(classes, masks, resize, topk=20)

    (ids, segments, instances), (thin_ids, thin_segments, thin) = segment(1 << 20), segment(1)
    assert len(segments) > 2 and segments == thin_segments
    assert torch.equal(ids, thin_ids)
    assert ids.unique().tolist()[-len(segments) :] == [s["id"] for s in segments]
    assert [int((ids == s["id"]).sum()) for s in segments] == [s["area"] for s in segments]
    assert torch.equal(instances.pred_masks, thin.pred_masks)
    assert torch.equal(instances.pred_boxes.tensor, thin.pred_boxes.tensor)
    torch.testing.assert_close(instances.scores, thin.scores)
