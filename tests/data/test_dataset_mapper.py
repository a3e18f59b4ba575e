import shutil
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from mask2former.data import MAPPERS, PictureMapper
from mask2former.data.catalog import register_dataset
from mask2former.data.panoptic_png import id2rgb, rgb2id
from mask2former.errors import DatasetError

HEIGHT, WIDTH = 40, 60


@pytest.fixture
def record(tmp_path):
    """A square drawn as polygon, one as RLE, one as bitmap, a crowd; and the same as label maps."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    ids = np.zeros((HEIGHT, WIDTH), np.int32)
    semantic = np.full((HEIGHT, WIDTH), 255, np.uint8)
    annotations = []
    for i, x in enumerate((0, 15, 30, 45)):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[10:20, x : x + 10] = True
        image[mask] = 50 + 50 * i
        ids[mask] = 1000 + i
        semantic[mask] = i
        rle = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        polygon = [[x, 10, x + 10, 10, x + 10, 20, x, 20]]
        annotations.append(
            {
                "bbox": [x, 10, 10, 10],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": i,
                "iscrowd": int(i == 3),
                "segmentation": [polygon, rle, mask.astype(np.uint8), rle][i],
            }
        )
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(id2rgb(ids)).save(tmp_path / "panoptic.png")
    Image.fromarray(semantic).save(tmp_path / "semantic.png")
    return {
        "file_name": str(tmp_path / "image.png"),
        "image_id": 7,
        "height": HEIGHT,
        "width": WIDTH,
        "annotations": annotations,
        "pan_seg_file_name": str(tmp_path / "panoptic.png"),
        "sem_seg_file_name": str(tmp_path / "semantic.png"),
        "segments_info": [
            {"id": 1000 + i, "category_id": i, "iscrowd": int(i == 3)} for i in range(4)
        ],
    }


@pytest.fixture
def plain_cfg(tiny_cfg):
    """No augmentation but the identity."""
    tiny_cfg.INPUT.MIN_SIZE_TRAIN = (HEIGHT,)
    tiny_cfg.INPUT.RANDOM_FLIP = "none"
    tiny_cfg.INPUT.IMAGE_SIZE = WIDTH
    tiny_cfg.INPUT.MIN_SCALE = tiny_cfg.INPUT.MAX_SCALE = 1.0
    return tiny_cfg


def masks_by_class(output):
    instances = output["instances"]
    return dict(zip(instances.gt_classes.tolist(), instances.gt_masks.numpy()))


@pytest.mark.parametrize("name", MAPPERS)
def test_masks_are_where_the_objects_are(plain_cfg, record, name):
    output = MAPPERS[name](plain_cfg)(record)
    image = output["image"].numpy()
    masks = masks_by_class(output)
    # Crowds take no part; a semantic label map does not know crowds.
    assert set(masks) == ({0, 1, 2, 3} if name.endswith("semantic") else {0, 1, 2})
    for i, mask in masks.items():
        assert mask.shape == image.shape[1:]
        assert mask.sum() == 100
        assert (image[:, mask] == 50 + 50 * i).all()


@pytest.mark.parametrize("name", MAPPERS)
def test_picture_and_masks_move_together(plain_cfg, record, name):
    plain_cfg.INPUT.RANDOM_FLIP = "horizontal"
    plain_cfg.INPUT.MIN_SIZE_TRAIN = (2 * HEIGHT,)
    plain_cfg.INPUT.MAX_SIZE_TRAIN = 4 * WIDTH
    plain_cfg.INPUT.IMAGE_SIZE = 2 * WIDTH
    mapper = MAPPERS[name](plain_cfg)
    sides = set()
    for _ in range(12):
        output = mapper(record)
        for i, mask in masks_by_class(output).items():
            y, x = np.nonzero(mask)
            assert 380 <= len(x) <= 420
            inner = output["image"].numpy()[0, y.min() + 3 : y.max() - 2, x.min() + 3 : x.max() - 2]
            assert (inner == 50 + 50 * i).all()
            sides.add((i, bool(x.mean() > WIDTH)))
    assert {(0, False), (0, True)} <= sides  # both orientations were drawn


def test_padding(plain_cfg, record):
    plain_cfg.INPUT.SIZE_DIVISIBILITY = 64
    for name in ("mask_former_panoptic", "mask_former_instance"):
        output = MAPPERS[name](plain_cfg)(record)
        assert output["image"].shape == (3, 64, 64)
        assert (output["image"][:, HEIGHT:] == 128).all()
        masks = masks_by_class(output)
        assert set(masks) == {0, 1, 2}
        assert not any(mask[HEIGHT:].any() or mask[:, WIDTH:].any() for mask in masks.values())
    semantic = MAPPERS["mask_former_semantic"](plain_cfg)(record)
    assert set(masks_by_class(semantic)) == {0, 1, 2, 3}  # padding is ignored, no class


def test_crop(plain_cfg, record):
    plain_cfg.INPUT.CROP.ENABLED = True
    plain_cfg.INPUT.CROP.TYPE = "absolute"
    plain_cfg.INPUT.CROP.SIZE = [16, 24]
    plain_cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    for name in ("mask_former_semantic", "mask_former_panoptic", "mask_former_instance"):
        output = MAPPERS[name](plain_cfg)(record)
        assert output["image"].shape == (3, 16, 24)
        for i, mask in masks_by_class(output).items():
            assert (output["image"][0].numpy()[mask] == 50 + 50 * i).all()


def test_objects_that_left_the_crop(plain_cfg, record):
    """As published: instance LSJ drops them, the others keep them with empty masks."""
    plain_cfg.INPUT.MIN_SCALE = plain_cfg.INPUT.MAX_SCALE = 4.0
    dropped = MAPPERS["coco_instance_lsj"](plain_cfg)
    kept = MAPPERS["coco_panoptic_lsj"](plain_cfg)
    for _ in range(5):
        assert all(mask.any() for mask in masks_by_class(dropped(record)).values())
        assert len(kept(record)["instances"]) == 3


@pytest.mark.parametrize("name", ["mask_former_instance", "coco_instance_lsj"])
def test_pictures_of_crowds_or_nothing(plain_cfg, record, name):
    for annotations in ([], record["annotations"][3:]):
        output = MAPPERS[name](plain_cfg)(record | {"annotations": annotations})
        assert len(output["instances"]) == 0
        assert output["instances"].gt_masks.shape[1:] == output["image"].shape[1:]


def test_color_jitter_changes_colours_only(plain_cfg, record):
    plain_cfg.INPUT.COLOR_AUG_SSD = True
    mapper = MAPPERS["mask_former_panoptic"](plain_cfg)
    outputs = [mapper(record) for _ in range(8)]
    assert len({output["image"].numpy().tobytes() for output in outputs}) > 1
    for output in outputs:
        assert all(mask.sum() == 100 for mask in masks_by_class(output).values())


def test_inference_mapper(plain_cfg, record):
    plain_cfg.INPUT.MIN_SIZE_TEST = 20
    output = PictureMapper(plain_cfg)(record)
    assert output["image"].shape == (3, 20, 30)
    assert (output["height"], output["width"]) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("damage", ["missing", "truncated", "text", "size"])
def test_bad_pictures_are_named(plain_cfg, record, caplog, damage):
    path = record["file_name"]
    good = record | {"file_name": shutil.copy(path, f"{path}.good.png")}
    if damage == "missing":
        path += ".gone"
        record = record | {"file_name": path}
    elif damage == "truncated":
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[: len(content) // 2])
    elif damage == "text":
        Path(path).write_text("not a picture")
    else:
        record = record | {"width": record["width"] + 1}
    with pytest.raises(DatasetError, match=path):
        PictureMapper(plain_cfg)(record)
    mapper = MAPPERS["mask_former_panoptic"](plain_cfg)
    with pytest.raises(DatasetError, match=path):
        mapper(record)
    # Once under way, training goes on without the picture, and says so.
    mapper(good)
    assert mapper(record)["file_name"] == good["file_name"]
    assert f"left out of training: {path}" in caplog.text


def test_records_without_the_ground_truth_the_mapper_needs(plain_cfg, record):
    del record["pan_seg_file_name"], record["sem_seg_file_name"]
    for name in ("mask_former_semantic", "mask_former_panoptic", "coco_panoptic_lsj"):
        with pytest.raises(DatasetError, match=r"another INPUT\.DATASET_MAPPER_NAME"):
            MAPPERS[name](plain_cfg)(record)


def test_every_sample_picture_maps(sample_cfg):
    for name in MAPPERS:
        mapper = MAPPERS[name](sample_cfg)
        for item in DatasetCatalog.get("sample_train"):
            assert mapper(item)["image"].shape[0] == 3


def test_ids_survive_the_png():
    ids = np.array([[0, 1, 255], [256, 65536, 2**24 - 1]])
    assert (rgb2id(id2rgb(ids)) == ids).all()


def test_pixels_without_a_label_are_marked_if_asked(sample_cfg, sample_root):
    """Padding, void and crowds, for every mapper; nothing is marked by default."""
    (record, *_) = DatasetCatalog.get("sample_train")
    record["annotations"] = [
        {"category_id": 0, "iscrowd": 0, "segmentation": [[0, 0, 9, 0, 9, 9, 0, 9]]},
        {"category_id": 0, "iscrowd": 1, "segmentation": [[20, 0, 30, 0, 30, 10, 20, 10]]},
    ]
    sample_cfg.INPUT.IMAGE_SIZE = sample_cfg.INPUT.SIZE_DIVISIBILITY = 160
    sample_cfg.INPUT.MIN_SCALE = sample_cfg.INPUT.MAX_SCALE = 0.5
    sample_cfg.INPUT.RANDOM_FLIP = "none"
    for name, mapper in MAPPERS.items():
        sample_cfg.MODEL.MASK_FORMER.EXCLUDE_IGNORED = False
        assert "ignored" not in mapper(sample_cfg)(record)
        sample_cfg.MODEL.MASK_FORMER.EXCLUDE_IGNORED = True
        x = mapper(sample_cfg)(record)
        ignored = x["ignored"]
        assert ignored.shape == x["image"].shape[1:] == (160, 160)
        assert ignored[-1, -1] and not (ignored & x["instances"].gt_masks).any(), name
        if "instance" in name:  # the crowd, then background
            scale = x["instances"].gt_masks[0, 0].sum() / 9
            y = int(4 * scale)
            assert ignored[y, int(25 * scale)] and not ignored[y, int(15 * scale)]
        else:
            labelled = x["instances"].gt_masks.any(0)
            assert torch.equal(ignored, ~labelled)


def test_large_scale_jitter_pads_masks_with_nothing(plain_cfg, record):
    plain_cfg.INPUT.IMAGE_SIZE = 2 * WIDTH
    plain_cfg.INPUT.MIN_SCALE = plain_cfg.INPUT.MAX_SCALE = 0.5
    for name in ("coco_instance_lsj", "coco_panoptic_lsj"):
        masks = masks_by_class(MAPPERS[name](plain_cfg)(record))
        assert [mask.sum() for mask in masks.values()] == [100, 100, 100]


def test_a_panoptic_png_of_another_size_is_named(plain_cfg, record):
    Image.fromarray(np.zeros((HEIGHT, WIDTH + 1, 3), np.uint8)).save(record["pan_seg_file_name"])
    with pytest.raises(DatasetError, match=r"panoptic.png is 61 x 40 pixels.* 60 x 40"):
        MAPPERS["mask_former_panoptic"](plain_cfg)(record)


def test_known_number(shared_data):
    """The cats of COCO 39769 at 800 x 1066: the areas as Hugging Face's tests of DETR have them."""
    root = shared_data / "coco"
    entry = {
        "format": "coco_panoptic",
        "image_root": str(root / "val2017"),
        "panoptic_json": str(root / "annotations" / "panoptic_val2017.json"),
        "panoptic_root": str(root / "annotations" / "panoptic_val2017"),
    }
    register_dataset("cats_known_number", entry)
    records = {r["image_id"]: r for r in DatasetCatalog.get("cats_known_number")}
    mapper = MAPPERS["mask_former_panoptic"](
        augmentations=[T.Resize((800, 1066))],
        image_format="RGB",
        ignore_label=255,
        num_classes=133,
        size_divisibility=0,
        reads_semantic=False,
    )
    output = mapper(records[39769])
    assert output["image"].shape == (3, 800, 1066)
    assert len(output["instances"]) == 6
    assert output["instances"].gt_masks.sum() == 822873
