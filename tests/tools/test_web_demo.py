"""tools/web_demo.py without a server: what is refused, taken and shown; the command line."""

import argparse
import base64
import io
import json
import os
import re
import runpy
import shutil
import struct
import sys
import zipfile
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from halves import LIMITS, NAMES, QUERIES, Halves, save_picture, web_demo
from PIL import Image
from web import segmenting
from web.page import request_handler
from web.segmenting import PictureError, Segmenter, check, table, write_zip
from web.viewer import html_of

from mask2former.errors import UserError
from mask2former.inference import TASKS, Options


@pytest.fixture
def predictor():
    return Halves()


@pytest.fixture
def picture(tmp_path):
    return save_picture(tmp_path)


def handle(predictor, path, *, task="panoptic", score=0.5, area=0, clean_up=0, safe=False):
    """What the page would show."""
    handler = request_handler(Segmenter(predictor, LIMITS))
    ((html, _),) = handler(
        None if path is None else str(path), task, score, 0.7, area, clean_up, safe
    )
    return html


def png_header(path, width, height):
    """A PNG that ends where its pixels would begin."""
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT": b""}
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks.items()
        )
    )


# What is refused


@pytest.mark.parametrize("side", [2_000, 30_000])  # the second is Pillow's own limit, too
def test_too_many_pixels(predictor, tmp_path, side):
    png_header(tmp_path / "bomb.png", side, side)
    html = handle(predictor, tmp_path / "bomb.png")
    assert "bomb.png has" in html and "1,000,000 pixels that are taken" in html
    assert not predictor.calls and str(tmp_path) not in html


def test_too_many_bytes(tmp_path):
    (tmp_path / "a.png").write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(PictureError, match=r"a.png has 1.0 MB; at most 1 MB"):
        check(tmp_path / "a.png", LIMITS)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"not a picture", "text.jpg is not a picture in a format that is read: JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not a picture"),
        (b"", "text.jpg is not a picture"),
    ],
    ids=["text", "postscript", "empty"],
)
def test_no_picture(predictor, tmp_path, content, message):
    (tmp_path / "text.jpg").write_bytes(content)
    html = handle(predictor, tmp_path / "text.jpg")
    assert message in html and "role='alert'" in html


def test_truncated(predictor, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:9000])
    html = handle(predictor, tmp_path / "half.jpg")
    assert "half.jpg cannot be read" in html and "damaged" in html
    assert "annotations" not in html and str(tmp_path) not in html


def test_sixteen_bits(predictor, tmp_path):
    Image.fromarray(np.full((20, 20), 4000, np.uint16)).save(tmp_path / "deep.png")
    html = handle(predictor, tmp_path / "deep.png")
    assert (
        "deep.png has more than 8 bits for a colour; save it with 8 bits" in html
        and str(tmp_path) not in html
    )


def test_a_deleted_upload(predictor, tmp_path):
    assert "upload it again" in handle(predictor, tmp_path / "gone.jpg")


def test_no_picture_chosen(predictor):
    assert "Choose a picture" in handle(predictor, None)


def test_what_breaks_is_not_shown(predictor, picture, capsys):
    predictor.predict = lambda *_: 1 / 0
    html = handle(predictor, picture)
    assert "log says more" in html and "ZeroDivision" not in html
    assert "ZeroDivisionError" in capsys.readouterr().err


# What is taken


def test_the_model_sees_a_picture_once(predictor, picture, tmp_path):
    segmenter = Segmenter(predictor, LIMITS)
    first, again = (
        segmenter(picture, Options(tasks=("panoptic",), score_threshold=score))
        for score in (0.5, 0.7)
    )
    assert len(predictor.calls) == 1
    assert (len(first.rows), len(again.rows)) == (2, 1)
    Image.new("RGB", (600, 500)).save(picture)  # another one, in its place
    os.utime(picture, (1, 1))
    segmenter(picture, Options(tasks=("panoptic",), score_threshold=0.5))
    assert len(predictor.calls) == 2 and not predictor.calls[1].any()


def test_what_was_seen_is_forgotten(predictor, tmp_path, monkeypatch):
    """Beyond some memory, those that were not used for longest; and files that are deleted."""
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path in paths:
        Image.new("RGB", (64, 64)).save(path)
    segmenter, options = (
        Segmenter(predictor, LIMITS),
        Options(tasks=("panoptic",), score_threshold=0.5),
    )
    segmenter(paths[0], options)
    (kept,) = segmenter.seen.values()
    monkeypatch.setattr(segmenting, "MOST_KEPT", 3 * kept.mask_logits.nbytes)
    for number in (1, 2, 0, 3):
        segmenter(paths[number], options)
    assert [path for path, _ in segmenter.seen] == [paths[i] for i in (2, 0, 3)]
    paths[0].unlink()
    segmenter(paths[3], options)
    assert [path for path, _ in segmenter.seen] == [paths[i] for i in (2, 3)]
    assert len(predictor.calls) == 4


def test_animation(predictor, tmp_path):
    frames = [Image.new("RGB", (30, 20), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert "2 segments" in handle(predictor, tmp_path / "a.gif")
    assert (predictor.calls[0] == (255, 0, 0)).all()


def test_cmyk(predictor, tmp_path):
    Image.new("CMYK", (30, 20), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    assert "2 segments" in handle(predictor, tmp_path / "print.jpg")
    image = predictor.calls[0]
    assert image.shape == (20, 30, 3) and image[0, 0, 0] > 200 and image[0, 0, 1:].max() < 80


def test_transparency(predictor, tmp_path):
    Image.new("RGBA", (30, 20), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert "2 segments" in handle(predictor, tmp_path / "clear.png")
    assert (predictor.calls[0] == (255, 0, 0)).all()


def test_rotation(predictor, tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert "20 × 40 pixels" in handle(predictor, tmp_path / "turned.jpg")


def test_a_line(predictor, tmp_path):
    Image.new("RGB", (20_000, 1)).save(tmp_path / "line.png")
    assert "20,000 × 1 pixels" in handle(predictor, tmp_path / "line.png")


# What is shown


def test_options_reach_the_predictor(predictor, picture):
    handle(predictor, picture, task="instance", score=0.25, area=7, clean_up=9)
    assert predictor.options_seen[0] == Options(
        tasks=("instance",),
        score_threshold=0.25,
        overlap_threshold=0.7,
        minimum_area=7,
        clean_up=9,
    )


@pytest.mark.parametrize("task", TASKS)
def test_table(predictor, task):
    options = Options(tasks=(task,), score_threshold=0.0)
    prediction = predictor.segment(QUERIES, (50, 61), options)
    rows, labels = table(prediction, (100, 122))
    assert [row.name for row in rows] == (["car", NAMES[0]] if task != "instance" else list(NAMES))
    car = next(row for row in rows if row.name == "car")
    assert car.area == 31 * 50 and car.share == pytest.approx(31 / 61)
    assert car.box == (30, 0, 61, 50)
    assert car.score == (None if task == "semantic" else pytest.approx(0.6))
    number = 1 + rows.index(car)
    assert (labels[:, 60:] == number).all() and (labels[:, :60] == 3 - number).all()


def test_html(predictor, picture):
    html = handle(predictor, picture)
    assert "grass &lt;b&gt; 0.90" in html and "<b>" not in html
    assert "data-tip='car 0.60'" in html and "300, 0, 600, 500" in html
    none = handle(predictor, picture, score=0.95)
    assert "0 segments" in none and "lower the least score" in none


def test_colours(predictor, picture):
    segmenter = Segmenter(predictor, LIMITS)
    options = Options(tasks=("semantic",), score_threshold=0.5)
    usual, safe = (segmenter(picture, options, color_blind=c).drawing for c in (False, True))
    assert (usual != safe).any()


@pytest.mark.parametrize(
    "task, names",
    [
        ("panoptic", ["images.json", "overlay.png", "panoptic.json", "panoptic/street.png"]),
        ("instance", ["images.json", "instances.json", "overlay.png"]),
        ("semantic", ["images.json", "overlay.png", "semantic/street.png"]),
    ],
)
def test_zip(predictor, picture, tmp_path, task, names):
    result = Segmenter(predictor, LIMITS)(picture, Options(tasks=(task,), score_threshold=0.5))
    with zipfile.ZipFile(write_zip(result, predictor, tmp_path)) as archive:
        assert sorted(archive.namelist()) == names and archive.testzip() is None
        if task == "instance":
            found = json.loads(archive.read("instances.json"))
            assert [(f["category_id"], f["bbox"]) for f in found][1] == (20, [300, 0, 300, 500])


def test_many_segments_have_numbers_of_two_bytes(predictor, picture):
    result = Segmenter(predictor, LIMITS)(picture, Options(tasks=("semantic",), score_threshold=0))
    labels = np.full((1, 1), 300, np.int32)
    html = html_of(SimpleNamespace(**vars(result) | {"labels": labels}))
    encoded = re.search(r'class="labels".*?base64,([^"]+)', html).group(1)
    pixel = Image.open(io.BytesIO(base64.b64decode(encoded))).getpixel((0, 0))
    assert pixel[0] + 256 * pixel[1] == 300


# The command line


def arguments(**given):
    return argparse.Namespace(**{"config_file": None, "weights": None, "samples": None} | given)


def test_without_the_quickstart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="make quickstart.*--config-file and --weights"):
        web_demo.choose_model(arguments())
    assert web_demo.choose_model(arguments(config_file="a.yaml")) == ("a.yaml", None, [])


def test_with_the_quickstart(tmp_path, monkeypatch, picture):
    monkeypatch.chdir(tmp_path)
    web_demo.WEIGHTS.parent.mkdir(parents=True)
    web_demo.WEIGHTS.touch()
    web_demo.SAMPLES.mkdir(parents=True)
    shutil.copy(picture, web_demo.SAMPLES)
    config, weights, samples = web_demo.choose_model(arguments())
    assert (config, weights) == (str(web_demo.CONFIG), str(web_demo.WEIGHTS))
    assert samples == [web_demo.SAMPLES / picture.name]
    assert web_demo.choose_model(arguments(weights="b.pth"))[1] == "b.pth"


def test_the_error_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["web_demo.py"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(web_demo.__file__, run_name="__main__")
    assert re.fullmatch("error: there is no .*`make quickstart`.*\n", capsys.readouterr().err)


def test_samples_are_what_browsers_show(tmp_path):
    for name in ("a.png", "b.tif", "c.JPG"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    assert web_demo.find_samples([str(tmp_path)]) == [tmp_path / "a.png", tmp_path / "c.JPG"]
    with pytest.raises(UserError, match=r"b\.tif names no picture that a browser can show"):
        web_demo.find_samples([str(tmp_path / "b.tif")])


@pytest.mark.parametrize("option", ["--max-upload-mb", "--max-pixels", "--most-waiting"])
@pytest.mark.parametrize("value", ["0", "inf", "many"])
def test_limits_are_numbers(monkeypatch, capsys, option, value):
    monkeypatch.setattr(sys, "argv", ["web_demo.py", option, value])
    with pytest.raises(SystemExit, match="2"):
        web_demo.parse_arguments()
    assert f"argument {option}: " in capsys.readouterr().err
