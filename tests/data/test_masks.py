"""Many masks at once against the same transforms, one mask at a time."""

import numpy as np
import pycocotools.mask
import pytest
from detectron2.data import transforms as T

from mask2former.data.masks import transform_masks, transform_segments
from mask2former.data.panoptic_png import id2rgb, rgb2id

SIZE = (30, 44)


@pytest.fixture(params=[0.4, 1.0, 2.3], ids="scale {}".format)
def transforms(request):
    """Resized, cropped, mirrored; the smallest is padded as well."""
    height, width = (round(side * request.param) for side in SIZE)
    image = np.zeros(SIZE, np.uint8)
    augmentations = [
        T.Resize((height, width)),
        T.FixedSizeCrop((29, 29)),
        T.RandomFlip(1.0),
    ]
    return T.AugmentationList(augmentations)(T.AugInput(image))


@pytest.mark.parametrize("count", [0, 3, 254, 255, 300])
def test_segments(transforms, count):
    random = np.random.default_rng(count)
    segment_ids = random.choice(2**24 - 2, count, replace=False) + 1
    ids = random.choice([0, 77, *segment_ids], SIZE)
    expected = rgb2id(transforms.apply_segmentation(id2rgb(ids)))
    masks = transform_segments(ids, segment_ids.tolist(), transforms)
    assert masks.shape == (count, 29, 29) and masks.dtype == bool
    for mask, segment_id in zip(masks, segment_ids):
        np.testing.assert_array_equal(mask, expected == segment_id)


@pytest.mark.parametrize("count", [0, 1, 8, 19])
def test_bitmaps_and_rle(transforms, count):
    bitmaps = np.random.default_rng(count).random((count, *SIZE)) < 0.5
    mixed = [
        pycocotools.mask.encode(np.asfortranarray(m.astype(np.uint8))) if i % 2 else m
        for i, m in enumerate(bitmaps)
    ]
    masks = transform_masks(mixed, transforms, original_size=SIZE, size=(29, 29))
    assert masks.shape == (count, 29, 29)
    for mask, bitmap in zip(masks, bitmaps):
        expected = transforms.apply_segmentation(bitmap.astype(np.uint8))
        np.testing.assert_array_equal(mask, expected == 1)


def test_polygons_keep_their_place_among_bitmaps(transforms):
    square = [[8, 6, 20, 6, 20, 18, 8, 18]]
    bitmap = np.zeros(SIZE, bool)
    bitmap[6:18, 8:20] = True
    masks = transform_masks(
        [bitmap, square, bitmap * 0, square], transforms, original_size=SIZE, size=(29, 29)
    )
    assert not masks[2].any()
    np.testing.assert_array_equal(masks[1], masks[3])
    assert (masks[0] ^ masks[1]).sum() <= 0.2 * masks[0].sum()  # corners round otherwise
