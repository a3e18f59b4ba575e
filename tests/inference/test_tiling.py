"""Tiles joined again, from a predictor that knows the truth, and from one that makes mistakes."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from mask2former.inference import Options, Panoptic, Prediction, Semantic, tiling
from mask2former.inference.canvas import Canvas
from mask2former.inference.tiling import segment_in_tiles, tiles_of
from mask2former.inference.visualization import fit_labels

NAMES = ("nut", "bean", "table", "plate")  # things, then stuff


def truth(height=300, width=420):
    """A class map and an id map: a plate on a table, and things on both."""
    y, x = np.mgrid[:height, :width]
    classes = np.where((y - 150) ** 2 + (x - 210) ** 2 < 110**2, 3, 2)
    random = np.random.default_rng(0)
    for _ in range(60):
        cy, cx, r = random.integers(10, height), random.integers(10, width), random.integers(5, 16)
        near = (y - cy) ** 2 + (x - cx) ** 2
        if (classes[near < (r + 2) ** 2] >= 2).all():  # things do not touch
            classes[near < r**2] = random.integers(0, 2)
    return classes.astype(np.int32)


def panoptic_of(classes):
    """Connected things are one each, stuff is one a class; ids in an order of their own."""
    ids, segments = np.zeros(classes.shape, np.int32), []
    for class_id in np.unique(classes):
        isthing = class_id < 2
        mask = classes == class_id
        parts, count = ndimage.label(mask) if isthing else (mask.astype(int), 1)
        for part in range(1, count + 1):
            segments.append(
                {
                    "id": len(segments) + 1,
                    "category_id": int(class_id),
                    "isthing": isthing,
                    "score": 0.9,
                }
            )
            ids[parts == part] = len(segments)
    return Panoptic.of(ids, segments, NAMES)


class Oracle:
    """Sees each tile as it is; the picture is the class map, in one channel."""

    options = Options(tasks=("panoptic", "semantic"))
    categories = NAMES

    def __init__(self, blind=False):
        self.blind, self.sizes = blind, []

    def resized(self, image, most_pixels):
        """For the overview; a blind one takes everything for a table."""
        return np.full_like(image, 2) if self.blind else image

    def predict(self, image):
        self.sizes.append(image.shape[:2])
        return image

    def segment(self, classes, size, options):
        classes = fit_labels(classes[:, :, 0] if classes.ndim == 3 else classes, size)
        return Prediction(
            *size, panoptic=panoptic_of(classes), semantic=Semantic(classes.copy(), NAMES)
        )


def same_segments(a, b):
    """Whether two maps differ in the numbers of their segments only."""
    pairs = np.unique(np.stack([a.ids.ravel(), b.ids.ravel()]), axis=1).T
    assert len(pairs) == len(a.segments) == len(b.segments)
    by_id = {s.id: s for s in a.segments}, {s.id: s for s in b.segments}
    for i, j in pairs.tolist():
        one, other = by_id[0][i], by_id[1][j]
        assert (one.category_id, one.area, one.box) == (other.category_id, other.area, other.box)
    return True


@pytest.mark.parametrize("overview", [True, False])
@pytest.mark.parametrize(("tile", "overlap"), [(128, 40), (200, 33), (97, 48), (1000, 250)])
def test_perfect_tiles_make_the_whole(tile, overlap, overview):
    classes = truth()
    joined = segment_in_tiles(Oracle(), classes, tile=tile, overlap=overlap, overview=overview)
    assert len(joined.panoptic.segments) > 20
    assert same_segments(joined.panoptic, panoptic_of(classes))
    np.testing.assert_array_equal(joined.semantic.labels, classes)


def test_tiles_add_what_the_overview_missed():
    """Things smaller than the overlap, all of them; what is larger is left to the overview."""
    classes = truth()
    joined = segment_in_tiles(Oracle(blind=True), classes, tile=128, overlap=40)
    expected = panoptic_of(np.where(classes < 2, classes, 2))
    assert same_segments(joined.panoptic, expected)


@pytest.mark.parametrize("step", [1, 2])
def test_tiles_that_see_more_sharpen_what_the_overview_saw(step):
    sharp = np.full((200, 200), 2, np.int32)
    sharp[80:110, 90:120] = 0
    oracle = Oracle()
    blurred = sharp.copy()
    blurred[76:110, 86:120] = 0
    oracle.resized = lambda image, most_pixels: blurred[::step, ::step]
    joined = segment_in_tiles(oracle, sharp, tile=128, overlap=64)
    assert same_segments(joined.panoptic, panoptic_of(sharp if step == 2 else blurred))


def test_seams_bring_no_stuff_that_is_nowhere_else():
    """Where a thing is smaller than the overview thought, the tile sees a plate; there is none."""
    sharp = np.full((200, 200), 2, np.int32)
    sharp[76:110, 86:120] = 3
    sharp[80:110, 90:120] = 0
    blurred = np.where(sharp == 3, 0, sharp)
    oracle = Oracle()
    oracle.resized = lambda image, most_pixels: blurred[::2, ::2]
    joined = segment_in_tiles(oracle, sharp, tile=128, overlap=64)
    assert {s.category for s in joined.panoptic.segments} == {"nut", "table"}


def test_a_thing_across_all_tiles_is_one_without_an_overview():
    classes = np.full((100, 400), 2, np.int32)
    classes[40:60] = 1
    joined = segment_in_tiles(Oracle(), classes, tile=100, overlap=30, overview=False)
    assert same_segments(joined.panoptic, panoptic_of(classes))


def test_neighbours_of_one_class_stay_two():
    classes = np.full((64, 128), 2, np.int32)
    classes[10:50, 20:60] = classes[10:50, 62:100] = 0
    joined = segment_in_tiles(Oracle(), classes, tile=80, overlap=40, overview=False)
    assert same_segments(joined.panoptic, panoptic_of(classes))


def test_tiles_cover_the_picture():
    for size, tile, overlap in [((300, 420), 128, 40), ((1, 999), 256, 64), ((50, 50), 64, 16)]:
        tiles = tiles_of(size, tile, overlap)
        owners = np.zeros(size, int)
        for part in tiles:
            assert part.bottom - part.top == min(tile, size[0])
            assert part.right - part.left == min(tile, size[1])
            owners[part.own_top : part.bottom, part.own_left : part.right] += 1
        assert (owners > 0).all()
        lefts = sorted({part.left for part in tiles})
        assert all(a + tile - b >= overlap for a, b in itertools.pairwise(lefts))


def test_least_area_counts_in_the_whole_picture():
    classes = np.full((64, 256), 2, np.int32)
    classes[30:34, 100:140] = 0  # 160 pixels, about half of them in each tile
    options = Options(tasks=("panoptic",), minimum_area=150)
    joined = segment_in_tiles(Oracle(), classes, options, tile=140, overlap=40, overview=False)
    assert [s.area for s in joined.panoptic.segments if s.isthing] == [160]
    options = Options(tasks=("instance",), minimum_area=161)
    joined = segment_in_tiles(Oracle(), classes, options, tile=140, overlap=40, overview=False)
    assert not joined.panoptic.segments and not joined.panoptic.ids.any()
    assert joined.semantic is None


@pytest.mark.parametrize("overview", [True, False])
def test_instances_alone_are_things_alone(overview):
    classes = truth(200, 260)
    joined = segment_in_tiles(
        Oracle(), classes, Options(tasks=("instance",)), tile=160, overlap=50, overview=overview
    )
    assert joined.panoptic.segments and all(s.isthing for s in joined.panoptic.segments)
    np.testing.assert_array_equal(joined.panoptic.ids > 0, classes < 2)


def test_a_thing_scores_what_its_surest_look_does():
    classes = np.full((100, 100), 2, np.int32)
    classes[30:60, 30:60] = 0
    whole = panoptic_of(classes)
    segments = tuple(replace(s, score=0.6) for s in whole.segments)
    canvas = Canvas(classes.shape)
    canvas.begin(Panoptic(whole.ids.copy(), segments))
    (tile,) = tiles_of(classes.shape, 100, 0)
    canvas.add_things(tile, whole)
    thing, _ = sorted(canvas.finish(NAMES, 0).segments, key=lambda s: not s.isthing)
    assert thing.isthing and thing.score == 0.9


def test_scale_and_progress():
    oracle, seen = Oracle(), []
    oracle.segment = lambda classes, size, options: Prediction(
        *size, panoptic=panoptic_of(np.full(size, 2, np.int32))
    )
    segment_in_tiles(
        oracle,
        np.zeros((100, 200, 3), np.uint8),
        Options(tasks=("panoptic",)),
        tile=100,
        overlap=0,
        scale=0.5,
        overview=False,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert oracle.sizes == [(50, 50), (50, 50)]
    assert seen == [(1, 2), (2, 2)]
    with pytest.raises(ValueError, match="overlap is 100, expected 0 to 99"):
        segment_in_tiles(oracle, np.zeros((9, 9, 3), np.uint8), tile=100, overlap=100)


def test_the_model_in_tiles(predictor):
    """One tile is the whole picture; several agree with it in size and classes."""
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    whole = predictor(picture)
    alone = segment_in_tiles(predictor, picture, tile=96, overlap=0, overview=False)
    np.testing.assert_array_equal(alone.panoptic.ids, whole.panoptic.ids)
    cut = segment_in_tiles(predictor, picture, tile=64, overlap=32)
    assert cut.panoptic.ids.shape == cut.semantic.labels.shape == (64, 96)
    assert set(np.unique(cut.panoptic.ids)) - {0} == {s.id for s in cut.panoptic.segments}


def test_one_channel_at_another_scale(monkeypatch, predictor):
    sizes = []
    monkeypatch.setattr(predictor, "predict", lambda image: sizes.append(image.shape))
    monkeypatch.setattr(predictor, "segment", lambda *_: None)
    tiling._segment(predictor, np.zeros((50, 70, 1), np.float32), 0.5, Options())
    assert sizes == [(25, 35, 1)]
