"""16-bit and multi-channel pictures: INPUT.FORMAT raw."""

import cv2
import numpy as np
import pytest
import tifffile
import torch
from detectron2.modeling import build_model
from PIL import Image

from mask2former.data import MAPPERS, PictureMapper
from mask2former.data.picture import read_label_map, read_picture
from mask2former.errors import DatasetError

HEIGHT, WIDTH = 48, 64


@pytest.fixture
def values():
    """Five channels of large, non-integer-looking values."""
    return np.random.default_rng(0).integers(0, 60000, (HEIGHT, WIDTH, 5), dtype=np.uint16)


def write(path, array):
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="minisblack", planarconfig="contig")
    else:
        Image.fromarray(array).save(path)
    return str(path)


@pytest.mark.parametrize("name", ["a.npy", "a.tif"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_any_channels_keep_their_values(tmp_path, values, name, dtype):
    array = (values // 256 if dtype == "uint8" else values).astype(dtype)
    picture = read_picture(write(tmp_path / name, array), "raw")
    assert picture.dtype == np.float32
    np.testing.assert_array_equal(picture, array)


def test_planes_of_a_tiff_become_channels(tmp_path, values):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, values.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate"
    )
    np.testing.assert_array_equal(read_picture(str(path), "raw"), values)


def test_png_of_16_bits(tmp_path, values):
    grey, colour = values[:, :, 0], values[:, :, :3]
    path = write(tmp_path / "grey.png", grey)
    np.testing.assert_array_equal(read_picture(path, "raw")[:, :, 0], grey)
    cv2.imwrite(str(tmp_path / "colour.png"), colour[:, :, ::-1])  # OpenCV takes blue first
    np.testing.assert_array_equal(read_picture(str(tmp_path / "colour.png"), "raw"), colour)
    with pytest.raises(DatasetError, match="more than 8 bits a pixel; set INPUT.FORMAT raw"):
        read_picture(path, "RGB")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.npy", b"no array", "cannot be read as a picture"),
        ("a.tif", b"no tiff", "cannot be read as a picture"),
        ("a.png", b"no png", "OpenCV knows no such picture"),
        ("b.npy", np.zeros(4), r"its shape is \(1, 4, 1\)|channels"),
        ("c.npy", np.zeros((2, 3, 4, 5)), r"its shape is \(2, 3, 4, 5\)"),
        ("d.npy", np.full((2, 3), np.nan), "NaN or infinity"),
        ("e.npy", np.array([{}], object), "cannot be read as a picture"),
    ],
)
def test_errors_name_the_file(tmp_path, tiny_cfg, name, content, message):
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    tiny_cfg.INPUT.FORMAT = "raw"
    with pytest.raises(DatasetError, match=message) as e:
        PictureMapper(tiny_cfg)({"file_name": str(path)})
    assert name in str(e.value)


@pytest.fixture
def raw_cfg(tiny_cfg):
    tiny_cfg.INPUT.FORMAT = "raw"
    tiny_cfg.MODEL.PIXEL_MEAN = [30000.0, 30000.0, 30000.0, 30000.0, 20000.0]
    tiny_cfg.MODEL.PIXEL_STD = [15000.0] * 5
    tiny_cfg.INPUT.COLOR_AUG_SSD = True
    tiny_cfg.INPUT.SIZE_DIVISIBILITY = tiny_cfg.INPUT.IMAGE_SIZE = 128
    tiny_cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    return tiny_cfg


@pytest.fixture
def record(tmp_path, values):
    left = np.zeros((HEIGHT, WIDTH), np.uint8)
    left[:, : WIDTH // 2] = 1
    Image.fromarray(left).save(tmp_path / "semantic.png")
    Image.fromarray(np.dstack([left, left * 0, left * 0])).save(tmp_path / "panoptic.png")
    return {
        "file_name": write(tmp_path / "a.tif", values),
        "annotations": [{"category_id": 0, "segmentation": left}],
        "sem_seg_file_name": str(tmp_path / "semantic.png"),
        "pan_seg_file_name": str(tmp_path / "panoptic.png"),
        "segments_info": [{"id": 1, "category_id": 0}],
    }


@pytest.mark.parametrize("name", MAPPERS)
def test_every_mapper_trains_on_five_channels(raw_cfg, record, name, caplog):
    raw_cfg.INPUT.MIN_SCALE = raw_cfg.INPUT.MAX_SCALE = 0.5  # so that large-scale jitter pads
    mapped = MAPPERS[name](raw_cfg)(record)
    assert mapped["image"].shape == (5, 128, 128) and mapped["image"].dtype == torch.float32
    assert (mapped["image"][:, -1, -1] == 28000).all()  # padding: the mean
    assert mapped["image"].max() > 50000
    assert ("COLOR_AUG_SSD is left out" in caplog.text) == (not name.endswith("lsj"))
    losses = build_model(raw_cfg)([mapped])
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_channels_must_be_the_models(raw_cfg, record):
    raw_cfg.MODEL.PIXEL_MEAN, raw_cfg.MODEL.PIXEL_STD = [1.0] * 3, [1.0] * 3
    with pytest.raises(DatasetError, match=r"a.tif has 5 channels, and the model takes 3: give"):
        PictureMapper(raw_cfg)(record)


def test_label_maps_may_be_arrays(tmp_path):
    labels = np.array([[0, 65535], [3, 255]], np.uint16)
    np.testing.assert_array_equal(read_label_map(write(tmp_path / "a.npy", labels)), labels)
    with pytest.raises(DatasetError, match="b.npy does not exist"):
        read_label_map(str(tmp_path / "b.npy"))


def test_a_decoders_own_errors_name_the_file(tmp_path):
    path = tmp_path / "x.npy"
    path.write_bytes(b"PK\x03\x04 and no archive")
    with pytest.raises(DatasetError, match=r"x\.npy cannot be read as a picture"):
        read_picture(str(path), "raw")
