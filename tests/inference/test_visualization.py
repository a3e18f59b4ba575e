import json
from dataclasses import replace

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

from mask2former.inference import Instances, Panoptic, Prediction, Semantic
from mask2former.inference.results import ResultWriter, save_cutouts
from mask2former.inference.visualization import (
    LEAST_SIDE,
    MOST_SIDE,
    PaletteVisualizer,
    classes_in,
    contact_sheet,
    displayable,
    draw_prediction,
    drawing_metadata,
    fit_labels,
    legend,
)

TASKS = ["panoptic", "instance", "semantic"]


@pytest.fixture
def metadata(sample_root):
    return MetadataCatalog.get("sample_val")


@pytest.fixture
def drawing(metadata):
    return drawing_metadata(metadata, metadata.stuff_classes)


@pytest.fixture
def prediction(metadata):
    """The left half is a person (score 0.9), the right half sky (score 0.4)."""
    ids = np.ones((40, 60), np.int32)
    ids[:, 30:] = 2
    names = metadata.stuff_classes
    segments = [
        {"id": 1, "category_id": 0, "isthing": True, "score": 0.9},
        {"id": 2, "category_id": 4, "isthing": False, "score": 0.4},
    ]
    masks = np.stack([ids == 1, ids == 2])
    classes, scores = np.array([0, 1]), np.array([0.9, 0.4], np.float32)
    return Prediction(
        40,
        60,
        panoptic=Panoptic.of(ids.copy(), segments, names),
        instances=Instances.of(masks, classes, scores, names),
        semantic=Semantic(ids, tuple(names)),
    )


@pytest.mark.parametrize("task", TASKS)
def test_drawing_marks_the_segments(prediction, drawing, task):
    image = np.full((40, 60, 3), 127, np.uint8)
    drawn = draw_prediction(image, prediction, drawing, task)
    assert drawn.shape == (LEAST_SIDE, LEAST_SIDE * 60 // 40, 3)
    left, right = drawn[20:60, 100], drawn[20:60, -100]  # away from the labels in the middle
    assert (left.std(0) < 30).all()
    assert np.abs(left.mean(0) - right.mean(0)).max() > 10


@pytest.mark.parametrize("task", TASKS)
def test_empty_predictions_are_drawn(drawing, task):
    names = drawing.stuff_classes
    nothing = np.zeros((0, 40, 60), bool), np.zeros(0, np.int64), np.zeros(0, np.float32)
    empty = Prediction(
        40,
        60,
        panoptic=Panoptic.of(np.zeros((40, 60), np.int32), [], names),
        instances=Instances.of(*nothing, names),
        semantic=Semantic(np.full((40, 60), len(names), np.int32), tuple(names)),
    )
    drawn = draw_prediction(np.full((40, 60, 3), 99, np.uint8), empty, drawing, task)
    assert (np.abs(drawn.astype(int) - 99) <= 1).all()


def test_huge_pictures_are_drawn_smaller(drawing):
    labels = np.zeros((3000, 6000), np.int32)
    prediction = Prediction(*labels.shape, semantic=Semantic(labels, tuple(drawing.stuff_classes)))
    drawn = draw_prediction(np.zeros((*labels.shape, 3), np.uint8), prediction, drawing)
    assert drawn.shape == (MOST_SIDE // 2, MOST_SIDE, 3)


def test_what_was_not_asked_for_cannot_be_drawn(drawing):
    with pytest.raises(ValueError, match="no instance to draw"):
        draw_prediction(np.zeros((40, 60, 3), np.uint8), Prediction(40, 60), drawing, "instance")


def test_label_maps_are_resized_without_mixing():
    labels = np.array([[0, 1], [2, 70000]])
    expected = labels.repeat(3, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(fit_labels(labels, (6, 4)), expected)
    np.testing.assert_array_equal(fit_labels(expected, (2, 2)), labels)


def test_colors(metadata):
    names = metadata.stuff_classes
    own = drawing_metadata(metadata, names)
    assert own.thing_colors == own.stuff_colors == metadata.stuff_colors
    safe = drawing_metadata(metadata, [str(i) for i in range(21)], color_blind_safe=True)
    assert len(set(safe.stuff_colors)) == 21
    assert all(0 <= value <= 255 for color in safe.stuff_colors for value in color)
    other = drawing_metadata(metadata, [str(i) for i in range(200)])  # not this data set's
    assert len(other.stuff_colors) == 200


def test_legend_shows_the_colors(prediction, drawing):
    assert classes_in(prediction) == [0, 4]  # what is drawn: panoptic comes first
    assert classes_in(replace(prediction, panoptic=None)) == [0, 1]
    assert classes_in(replace(prediction, panoptic=None, instances=None)) == [1, 2]
    strip = legend([0, 4], drawing, 400)
    assert strip.shape[0] == 400
    for class_id in (0, 4):
        assert (strip == drawing.stuff_colors[class_id]).all(-1).sum() > 80
    assert not (strip == drawing.stuff_colors[1]).all(-1).any()
    narrow = [legend(list(range(n)), drawing, 72, columns=1) for n in (1, 3, 9)]  # three lines fit
    assert len({strip.shape for strip in narrow}) == 1
    assert not (narrow[2] == drawing.stuff_colors[3]).all(-1).any()
    columns = legend(list(range(9)), drawing, 72)
    assert columns.shape[1] == 3 * legend([0], drawing, 72).shape[1]


def test_names_with_dollars_are_no_formulas(prediction, metadata):
    names = [r"a $\foo{$ b", *metadata.stuff_classes[1:]]
    image = np.zeros((40, 60, 3), np.uint8)
    assert draw_prediction(image, prediction, drawing_metadata(metadata, names)).any()


def test_things_have_the_colors_of_the_legend(prediction, metadata):
    safe = drawing_metadata(metadata, metadata.stuff_classes, color_blind_safe=True)
    image = np.zeros((300, 450, 3), np.uint8)
    first, again = (draw_prediction(image, prediction, safe) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    red, green, blue = first[20, 20].astype(float)  # of the person, shown through
    expected = np.array(safe.thing_colors[0], float)
    shown = np.array([red, green, blue])
    assert shown @ expected > 0.99 * np.linalg.norm(shown) * np.linalg.norm(expected)


@pytest.mark.parametrize("position", [(0, 150), (450, 150), (200, 0), (200, 300)])
def test_labels_are_within_the_picture(drawing, position):
    visualizer = PaletteVisualizer(np.zeros((300, 450, 3), np.uint8), drawing)
    output = visualizer.draw_text("a long label", position)
    extent = output.ax.texts[-1].get_window_extent(output.canvas.get_renderer())
    assert extent.x0 > -1 and extent.y0 > -1
    assert extent.x1 < output.fig.bbox.width + 1 and extent.y1 < output.fig.bbox.height + 1


@pytest.mark.parametrize("y", [0, 150, 300])
def test_labels_do_not_hide_each_other(drawing, y):
    visualizer = PaletteVisualizer(np.zeros((300, 450, 3), np.uint8), drawing)
    for name in ("first", "second", "third"):
        output = visualizer.draw_text(name, (200, y))
    renderer = output.canvas.get_renderer()
    extents = [text.get_window_extent(renderer) for text in output.ax.texts]
    assert all(extent.count_overlaps(extents) == 1 for extent in extents)  # itself


def test_outlines_part_neighbours_of_a_class_and_run_around_holes(drawing):
    ids = np.ones((480, 640), np.int32)
    ids[:, 320:] = 2
    ids[200:280, 100:200] = 3  # in a hole of stuff
    segments = [
        {"id": 1, "category_id": 4, "isthing": False, "score": 0.9},
        {"id": 2, "category_id": 0, "isthing": True, "score": 0.9},
        {"id": 3, "category_id": 5, "isthing": False, "score": 0.9},
    ]
    neighbours = Panoptic.of(ids, segments, drawing.stuff_classes)
    drawn = draw_prediction(
        np.zeros((480, 640, 3), np.uint8), Prediction(480, 640, neighbours), drawing
    ).astype(int)
    for at in (np.s_[30, 317:323], np.s_[197:203, 120], np.s_[230, 97:103]):
        assert drawn[at].min(1).max() > 150, at  # white somewhere near the border


def test_cutouts(prediction, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    save_cutouts(image, prediction, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["001_person.png", "002_sky.png"]
    cut = np.asarray(Image.open(tmp_path / "002_sky.png"))
    np.testing.assert_array_equal(cut[..., :3], image[:, 30:])
    assert (cut[..., 3] == 255).all()
    for folder, kept in (("of instances", "instances"), ("of classes", "semantic")):
        one_kind = Prediction(40, 60, **{kept: getattr(prediction, kept)})
        save_cutouts(image, one_kind, tmp_path / folder)
        first, second = sorted((tmp_path / folder).iterdir())
        expected = {"instances": "001_person.png", "semantic": "002_car.png"}  # labels 1 and 2
        assert first.name == expected[kept]
        np.testing.assert_array_equal(np.asarray(Image.open(first))[..., :3], image[:, :30])
        np.testing.assert_array_equal(np.asarray(Image.open(second))[..., :3], image[:, 30:])


def test_huge_raw_pictures_are_shown_between_the_quantiles_of_some_pixels():
    raw = np.zeros((3000, 20, 2), np.float32)
    raw[:, :, 0] = np.linspace(-500, 1500, 3000)[:, None]
    shown = displayable(raw, "raw")
    assert shown.shape == (3000, 20, 3) and shown.dtype == np.uint8
    expected = np.clip((raw[:, :, 0] + 480) / 1960 * 255, 0, 255)
    assert abs(shown[:, :, 1] - expected).max() < 2


def test_results_carry_the_category_ids_of_the_data_set(prediction, metadata, tmp_path):
    writer = ResultWriter(tmp_path, metadata, metadata.stuff_classes, prediction.tasks)
    writer.add("a", "a.jpg", prediction)
    writer.close()
    things = metadata.thing_dataset_id_to_contiguous_id
    results = json.loads((tmp_path / "instances.json").read_text())
    assert [things[r["category_id"]] for r in results] == [0, 1]
    assert results[1]["bbox"] == [30, 0, 30, 40]
    panoptic = json.loads((tmp_path / "panoptic.json").read_text())
    (annotation,) = panoptic["annotations"]
    assert panoptic["images"] == [{"id": 1, "file_name": "a.jpg", "height": 40, "width": 60}]
    contiguous = metadata.stuff_dataset_id_to_contiguous_id
    categories = {c["id"]: (c["name"], c["isthing"]) for c in panoptic["categories"]}
    assert set(categories) == set(contiguous)
    names = [categories[s["category_id"]] for s in annotation["segments_info"]]
    assert names == [("person", 1), ("sky", 0)]
    assert [contiguous[s["category_id"]] for s in annotation["segments_info"]] == [0, 4]
    assert [s["bbox"] for s in annotation["segments_info"]] == [[0, 0, 30, 40], [30, 0, 30, 40]]
    assert np.asarray(Image.open(tmp_path / "semantic/a.png")).tolist()[0] == [1] * 30 + [2] * 30


def test_contact_sheet():
    red, blue = np.zeros((2, 30, 60, 3), np.uint8)
    red[..., 0], blue[..., 2] = 200, 200
    sheet = contact_sheet([[red, blue], [blue]], cell=60)
    assert sheet.shape == (2 * 66 + 6, 2 * 66 + 6, 3)
    assert sheet[36, 36].tolist() == [200, 0, 0]
    assert sheet[36, 102].tolist() == [0, 0, 200]
    assert sheet[102, 102].tolist() == [255, 255, 255]


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
