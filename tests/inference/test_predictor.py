"""The predictor against the model's own output, and what it takes and gives."""

import threading

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks
from PIL import Image
from pycocotools import mask as coco_mask

from mask2former.errors import ConfigError, DatasetError
from mask2former.inference import Options, Panoptic, Predictor
from mask2former.inference.cleanup import replace_small_regions
from mask2former.inference.picture import as_array
from mask2former.inference.predictor import config_of, metadata_of
from mask2former.modeling.postprocessing import instance_inference
from mask2former.modeling.row_maps import RowMaps


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def same(a, b):
    assert a.panoptic.segments == b.panoptic.segments
    np.testing.assert_array_equal(a.panoptic.ids, b.panoptic.ids)
    np.testing.assert_array_equal(a.instances.masks, b.instances.masks)
    np.testing.assert_array_equal(a.instances.scores, b.instances.scores)
    np.testing.assert_array_equal(a.semantic.labels, b.semantic.labels)
    return True


def model_output(predictor, picture):
    """The model called as Detectron2 calls it."""
    resized = predictor.resized(picture)
    image = torch.from_numpy(resized.transpose(2, 0, 1).copy())
    height, width = picture.shape[:2]
    with torch.inference_mode():
        return predictor.model([{"image": image, "height": height, "width": width}])[0]


def test_results_are_the_models(predictor, picture):
    expected = model_output(predictor, picture)
    prediction = predictor(picture, score_threshold=predictor.model.object_mask_threshold)
    ids, segments = expected["panoptic_seg"]
    np.testing.assert_array_equal(prediction.panoptic.ids, ids.numpy())
    assert len(segments) > 1
    for ours, theirs in zip(prediction.panoptic.segments, segments, strict=True):
        assert (ours.id, ours.category_id, ours.area) == (
            theirs["id"],
            theirs["category_id"],
            theirs["area"],
        )
        assert ours.category == predictor.categories[ours.category_id]
        box = BitMasks(torch.from_numpy(prediction.panoptic.mask(ours))[None]).get_bounding_boxes()
        assert list(ours.box) == box.tensor[0].tolist()

    np.testing.assert_array_equal(prediction.semantic.labels, expected["sem_seg"].argmax(0).numpy())

    found = expected["instances"]
    keep = found.scores >= predictor.model.object_mask_threshold
    found = found[keep & found.pred_masks.flatten(1).any(1)]
    found = found[found.scores.argsort(descending=True, stable=True)]
    assert len(found) == len(prediction.instances) > 0
    np.testing.assert_array_equal(prediction.instances.masks, found.pred_masks.numpy())
    np.testing.assert_array_equal(prediction.instances.classes, found.pred_classes.numpy())
    np.testing.assert_array_equal(prediction.instances.boxes, found.pred_boxes.tensor.numpy())
    for rle, mask in zip(prediction.instances.rles, prediction.instances.masks):
        np.testing.assert_array_equal(coco_mask.decode(rle).astype(bool), mask)


def test_every_form_of_a_picture_gives_the_same(predictor, picture, tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path)
    expected = predictor(picture)
    for form in (path, str(path), Image.open(path), torch.from_numpy(picture).permute(2, 0, 1)):
        assert same(predictor(form), expected)


def test_a_list_and_threads_give_what_single_pictures_give(predictor, picture):
    pictures = [picture, picture[:40], picture[:, :30]]
    alone = [predictor(p) for p in pictures]
    assert all(map(same, predictor(pictures), alone))
    together = [None] * 6

    def work(i):
        together[i] = predictor(pictures[i % 3])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(prediction, alone[i % 3]) for i, prediction in enumerate(together))


def test_blue_first_models_take_the_same_pictures(predictor, picture):
    expected = predictor(np.ascontiguousarray(picture[:, :, ::-1]))
    predictor.image_format = "BGR"
    assert same(predictor(picture), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (5, 7)])
def test_smallest_and_longest_pictures(predictor, size):
    prediction = predictor(np.zeros((*size, 3), np.uint8))
    assert prediction.panoptic.ids.shape == prediction.semantic.labels.shape == size
    assert prediction.instances.masks.shape[1:] == size


def test_most_pixels(predictor, picture):
    assert predictor.resized(picture).shape[0] == 64
    height, width, _ = predictor.resized(picture, 1000).shape
    assert 900 < height * width <= 1000
    assert width / height == pytest.approx(70 / 50, rel=0.05)
    assert predictor.run(picture, most_pixels=1000).panoptic.ids.shape == (50, 70)
    predictor.resize = T.ResizeShortestEdge(0)  # the config leaves pictures as they are
    assert predictor.resized(picture) is picture
    height, width, _ = predictor.resized(picture, 1000).shape
    assert 900 < height * width <= 1000


def test_grey_pictures(predictor, picture):
    grey = picture[:, :, 0]
    assert same(predictor(grey), predictor(np.stack([grey] * 3, axis=2)))
    assert same(predictor(torch.from_numpy(grey)[None]), predictor(grey))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p: p / 255, TypeError, "float64, expected uint8"),
        (lambda p: p.repeat(2, 2)[..., :4], ValueError, "4 channels.*drop alpha"),
        (lambda p: p[:0], ValueError, r"shape is \(0, 70, 3\)"),
        (lambda p: torch.from_numpy(p)[..., 0], ValueError, r"shape is \(50, 70\), expected \(C"),
        (lambda p: {"image": p}, TypeError, "not dict"),
        (lambda p: Image.fromarray(p[..., 0].astype(np.uint16)), ValueError, "I;16: more than 8"),
        (lambda p: Image.fromarray(p[..., 0] / np.float32(9)), ValueError, "mode is F: more than"),
        (lambda p: "/nowhere.png", DatasetError, "/nowhere.png does not exist"),
    ],
)
def test_what_is_no_picture(predictor, picture, change, error, message):
    with pytest.raises(error, match=message):
        predictor(change(picture))


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_only_the_task_that_is_asked_for(predictor, picture, task):
    prediction = predictor(picture, tasks=(task,))
    made = {
        "panoptic": prediction.panoptic,
        "instance": prediction.instances,
        "semantic": prediction.semantic,
    }
    assert [name for name, result in made.items() if result is not None] == [task]


def test_thresholds(predictor, picture):
    every = predictor(picture, score_threshold=0.0).instances
    low, high = every.scores.min(), every.scores.max()
    assert low < high
    some = predictor(picture, score_threshold=float((low + high) / 2)).instances
    assert 0 < len(some) < len(every)
    assert len(predictor(picture, score_threshold=1.0).panoptic.segments) == 0
    assert len(predictor(picture, score_threshold=0.0, most_instances=1).instances) <= 1
    areas = sorted(every.areas)
    least = areas[len(areas) // 2] + 1
    assert all(predictor(picture, score_threshold=0.0, minimum_area=least).instances.areas >= least)
    segments = predictor(picture, minimum_area=least).panoptic.segments
    assert all(segment.area >= least for segment in segments)


def test_one_label_per_query(predictor, picture):
    instances = predictor(picture, score_threshold=0.0, one_label_per_query=True).instances
    assert len(instances) == len({mask.tobytes() for mask in instances.masks})
    several = predictor(picture, score_threshold=0.0).instances
    assert len(several) > len({mask.tobytes() for mask in several.masks})


def test_one_label_is_the_best_one():
    logits = torch.tensor([[0.0, 3, 1, -9], [2, 0, 1, -9]])  # two queries, three classes
    masks = torch.full((2, 4, 4), 20.0)
    found = instance_inference(logits, masks, RowMaps.of, topk=100, one_label_per_query=True)
    pairs = sorted(zip(found.pred_classes.tolist(), found.scores.tolist()))
    expected = logits.softmax(-1)
    assert [c for c, _ in pairs] == [0, 1]
    torch.testing.assert_close(
        torch.tensor([s for _, s in pairs]), expected[[1, 0], [0, 1]], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("things",)}, "tasks is"),
        ({"tasks": "panoptic"}, "as a tuple"),
        ({"score_threshold": 1.5}, r"score_threshold is 1.5; it must be in \[0, 1\]"),
        ({"minimum_area": -1}, "minimum_area is -1"),
    ],
)
def test_options_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        Options(**change)


def test_clean_up_fills_holes_and_removes_islands():
    labels = np.zeros((20, 30), np.int32)
    labels[2:18, 2:14] = 1
    labels[8:10, 6:8] = 0  # a hole of 4
    labels[5, 20:23] = 2  # an island of 3
    labels[10:15, 18:28] = 2  # 50 pixels
    cleaned = replace_small_regions(labels, 5)
    expected = labels.copy()
    expected[8:10, 6:8] = 1
    expected[5, 20:23] = 0
    np.testing.assert_array_equal(cleaned, expected)
    np.testing.assert_array_equal(replace_small_regions(labels, 4)[8:10, 6:8], 0)
    mask = replace_small_regions(labels == 1, 5)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, expected == 1)
    np.testing.assert_array_equal(replace_small_regions(labels, 601), labels)  # nothing is large


def test_clean_up_reaches_the_results(predictor, picture):
    cleaned = predictor(picture, clean_up=100)
    for labels in (cleaned.panoptic.ids, cleaned.semantic.labels, *cleaned.instances.masks):
        np.testing.assert_array_equal(replace_small_regions(labels, 100), labels)


def test_segments_that_vanish_leave_the_map():
    ids = np.array([[1, 1, 2], [1, 1, 3]], np.int32)
    segments = [{"id": i, "category_id": 0, "isthing": True, "score": 0.5} for i in (1, 2, 3, 4)]
    panoptic = Panoptic.of(ids, segments, ["nut"], least_area=2)
    assert [s.id for s in panoptic.segments] == [1]
    assert panoptic.segments[0].box == (0, 0, 2, 2)
    assert panoptic.ids.tolist() == [[1, 1, 0], [1, 1, 0]]


def test_weights_are_needed(sample_cfg):
    with pytest.raises(ConfigError, match="there are no weights"):
        Predictor(sample_cfg)


def test_a_published_model_by_name(tmp_path):
    cfg = config_of("zoo://coco/panoptic/R50", ["TEST.PRECISION", "bfloat16"])
    assert cfg.MODEL.WEIGHTS == "zoo://coco/panoptic/R50"
    assert (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.TEST.PRECISION) == (133, "bfloat16")
    with pytest.raises(ConfigError, match="no such published model"):
        config_of("zoo://coco/panoptic/R51", [])


def test_raw_models_see_all_of_a_pil_image():
    image = Image.fromarray(np.arange(0, 48, dtype=np.uint16).reshape(6, 8) * 1000)
    np.testing.assert_array_equal(as_array(image, "raw")[..., 0], np.asarray(image))
    assert as_array(Image.new("RGBA", (5, 4)), "raw").shape == (4, 5, 4)


def test_overrides(predictor, sample_cfg):
    assert config_of(sample_cfg, ["INPUT.MIN_SIZE_TEST", 32]).INPUT.MIN_SIZE_TEST == 32
    assert sample_cfg.INPUT.MIN_SIZE_TEST != 32


def test_the_config_is_not_changed(predictor, sample_cfg):
    assert sample_cfg.MODEL.WEIGHTS == ""
    assert predictor.options.tasks == ("panoptic", "instance", "semantic")


def test_classes_of_the_data_set(sample_cfg):
    assert metadata_of(sample_cfg).name == "sample_val"
    sample_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES += 1
    with pytest.raises(
        ConfigError, match="data set sample_val has .* classes, the model .*NUM_CLA"
    ):
        metadata_of(sample_cfg)


def test_without_a_data_set(sample_cfg):
    sample_cfg.DATASETS.TRAIN = sample_cfg.DATASETS.TEST = ()
    sample_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    metadata = metadata_of(sample_cfg)
    assert metadata.thing_classes == metadata.stuff_classes == ["class 0", "class 1", "class 2"]
    assert metadata_of(sample_cfg) is metadata  # again: harmless
