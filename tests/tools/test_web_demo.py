"""tools/web_demo.py: its functions, its server over HTTP, and its page in a browser.

The predictor is a stand-in that finds the same halves in each picture, so answers are known.
"""

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
import time
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
from detectron2.data.catalog import Metadata
from PIL import Image

from mask2former.errors import UserError
from mask2former.inference import TASKS, Instances, Options, Panoptic, Prediction, Semantic
from mask2former.inference.picture import as_array

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
pytest.importorskip("gradio", reason='the page needs gradio: pip install "gradio>=6.31"')
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import web_demo  # noqa: E402
import web_requests  # noqa: E402
from web.page import Serving, request_handler, serve  # noqa: E402
from web.segmenting import Limits, PictureError, Segmenter, check, table, write_zip  # noqa: E402
from web.viewer import html_of  # noqa: E402

NAMES = ("grass <b>", "car")
LIMITS = Limits(bytes=1 << 20, pixels=1_000_000)


class Halves:
    """A predictor for which the left half is grass, surely, and the right a car, perhaps."""

    image_format = "RGB"
    categories = NAMES
    metadata = Metadata(
        stuff_classes=list(NAMES),
        thing_classes=list(NAMES),
        stuff_dataset_id_to_contiguous_id={10: 0},
        thing_dataset_id_to_contiguous_id={20: 1},
    )
    options = Options(overlap_threshold=0.7)
    model = SimpleNamespace(object_mask_threshold=0.5)

    def __init__(self):
        self.calls = []

    def read(self, picture):
        return as_array(picture, "RGB")

    def run(self, image, options):
        self.calls.append((image, options))
        height, width = image.shape[:2]
        right = np.arange(width)[None].repeat(height, axis=0) >= width // 2
        scores = np.array([0.9, 0.6], np.float32)
        kept = scores >= options.score_threshold
        if "panoptic" in options.tasks:
            ids = (right + 1).astype(np.int32)
            found = [
                {"id": i + 1, "category_id": i, "isthing": bool(i), "score": scores[i]}
                for i in range(2)
            ]
            for i in np.flatnonzero(~kept):
                ids[ids == i + 1] = 0
            return Prediction(height, width, panoptic=Panoptic.of(ids, found, NAMES))
        if "instance" in options.tasks:
            masks = np.stack([np.ones_like(right), right])[kept]  # they overlap
            classes = np.array([0, 1])[kept]
            return Prediction(
                height, width, instances=Instances.of(masks, classes, scores[kept], NAMES)
            )
        return Prediction(height, width, semantic=Semantic(right.astype(np.int32), NAMES))


@pytest.fixture
def predictor():
    return Halves()


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "street.jpg"
    Image.new("RGB", (600, 500), (90, 120, 40)).save(path)
    return path


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
    assert "deep.png has more than 8 bits a pixel" in html and str(tmp_path) not in html


def test_a_deleted_upload(predictor, tmp_path):
    assert "upload it again" in handle(predictor, tmp_path / "gone.jpg")


def test_no_picture_chosen(predictor):
    assert "Choose a picture" in handle(predictor, None)


def test_what_breaks_is_not_shown(predictor, picture, capsys):
    predictor.run = lambda *_: 1 / 0
    html = handle(predictor, picture)
    assert "log says more" in html and "ZeroDivision" not in html
    assert "ZeroDivisionError" in capsys.readouterr().err


# What is taken


def test_animation(predictor, tmp_path):
    frames = [Image.new("RGB", (30, 20), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert "2 segments" in handle(predictor, tmp_path / "a.gif")
    assert (predictor.calls[0][0] == (255, 0, 0)).all()


def test_cmyk(predictor, tmp_path):
    Image.new("CMYK", (30, 20), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    assert "2 segments" in handle(predictor, tmp_path / "print.jpg")
    image = predictor.calls[0][0]
    assert image.shape == (20, 30, 3) and image[0, 0, 0] > 200 and image[0, 0, 1:].max() < 80


def test_transparency(predictor, tmp_path):
    Image.new("RGBA", (30, 20), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert "2 segments" in handle(predictor, tmp_path / "clear.png")
    assert (predictor.calls[0][0] == (255, 0, 0)).all()


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
    assert predictor.calls[0][1] == Options(
        tasks=("instance",),
        score_threshold=0.25,
        overlap_threshold=0.7,
        minimum_area=7,
        clean_up=9,
    )


@pytest.mark.parametrize("task", TASKS)
def test_table(predictor, task):
    options = Options(tasks=(task,), score_threshold=0.0)
    prediction = predictor.run(np.zeros((50, 61, 3), np.uint8), options)
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
    with zipfile.ZipFile(write_zip(result, predictor.metadata, tmp_path)) as archive:
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


# The server


@pytest.fixture
def server(predictor, picture):
    """A page that is served, and a client of it."""
    httpx = pytest.importorskip("httpx")
    segmenter = Segmenter(predictor, LIMITS)
    with (
        serve(segmenter, Serving(most_waiting=8), "Test", [picture]) as url,
        httpx.Client(base_url=url, timeout=60, trust_env=False) as client,
    ):
        yield client


def files_kept():
    """Files in the folder of the server's uploads and results."""
    return [path for path in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if path.is_file()]


def test_request(server, predictor, picture):
    path = web_requests.upload(server, picture)
    html, button = web_requests.segment(server, path, task="instance", score=0.7)
    assert "1 segment in 600 × 500 pixels" in html and "0.90" in html
    assert predictor.calls[0][1].score_threshold == 0.7
    archive = server.get(button["value"]["url"])
    assert archive.status_code == 200 and archive.content[:2] == b"PK"
    html, button = web_requests.segment(server, web_requests.upload(server, Path(__file__)))
    assert "not a picture" in html and button["value"] is None


@pytest.mark.parametrize(
    "path, message",
    [
        ("/etc/passwd", None),  # gradio's own refusal, whose text it keeps to itself
        (str(ROOT / "README.md"), None),
        ("http://example.com/a.png", "Addresses are not fetched"),
    ],
)
def test_only_uploads_are_read(server, predictor, path, message):
    with pytest.raises(RuntimeError, match=message):
        web_requests.segment(server, path)
    assert not predictor.calls


def test_upload_limit(server, tmp_path):
    (tmp_path / "large.png").write_bytes(bytes(LIMITS.bytes + 1))
    httpx = pytest.importorskip("httpx")
    with pytest.raises(httpx.HTTPStatusError, match="413"):
        web_requests.upload(server, tmp_path / "large.png")
    assert not [path for path in files_kept() if path.stat().st_size > LIMITS.bytes // 2]


def test_a_full_queue_says_so(server, predictor, picture):
    run = predictor.run
    predictor.run = lambda *given: time.sleep(0.2) or run(*given)
    seconds, failures = web_requests.load(str(server.base_url), picture, 20)
    assert len(seconds) + len(failures) == 20 and len(seconds) >= 8
    assert failures and all("503" in failure for failure in failures)
    assert len(web_requests.load(str(server.base_url), picture, 2)[0]) == 2  # and goes on


def test_files_are_deleted(predictor, picture):
    httpx = pytest.importorskip("httpx")
    serving = Serving(keep_seconds=1)
    with serve(Segmenter(predictor, LIMITS), serving, "Test", [picture]) as url:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            at_first = len(files_kept())
            path = picture.with_name("other.png")
            Image.new("RGB", (9, 9)).save(path)
            web_requests.segment(client, web_requests.upload(client, path))
            assert len(files_kept()) == at_first + 2  # the upload and the zip
            end = time.monotonic() + 10
            while len(files_kept()) > at_first and time.monotonic() < end:
                time.sleep(0.2)
            assert len(files_kept()) == at_first
    assert not folder.exists()


def test_the_port_is_taken(server, predictor, picture):
    port = server.base_url.port
    with (
        pytest.raises(UserError, match=f"--port {port}"),
        serve(Segmenter(predictor, LIMITS), Serving(port=port), "Test"),
    ):
        pass


# The browser


@pytest.fixture
def page(server):
    """The page in a headless Chromium, and the addresses that it asks for."""
    reason = "needs playwright (pip install playwright) and chromium (apt-get install chromium)"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip(reason)
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(str(server.base_url))
        yield page, asked
        browser.close()


def test_in_the_browser(page, picture, tmp_path):
    """Upload, point, click, a higher threshold, download, a bad file; all from this server."""
    page, asked = page
    viewer = page.locator("#viewer")
    page.set_input_files("input[type=file]", picture)
    viewer.get_by_text("2 segments").wait_for(timeout=20_000)
    box = viewer.locator("canvas").bounding_box()
    right = box["x"] + 0.8 * box["width"], box["y"] + 0.5 * box["height"]
    page.wait_for_function("document.querySelector('#viewer canvas').dataset.number === '0'")
    page.mouse.move(*right)
    assert viewer.locator(".tip").inner_text() == "car 0.60"
    page.mouse.click(*right)
    details = viewer.locator(".details").inner_text()
    assert details.startswith("car (thing): score 0.60, area 150,000 pixels (50.0%), box from (300")
    assert viewer.locator("tr.chosen").count() == 1
    score = page.get_by_label("number input for Least score")
    score.fill("0.8")
    score.press("Enter")
    viewer.get_by_text("1 segment in").wait_for(timeout=20_000)
    with page.expect_download() as download:
        page.get_by_text("Download the results").click()
    download.value.save_as(tmp_path / "results.zip")
    with zipfile.ZipFile(tmp_path / "results.zip") as archive:
        assert (
            len(json.loads(archive.read("panoptic.json"))["annotations"][0]["segments_info"]) == 1
        )
    (tmp_path / "bad.png").write_text("no")
    page.set_input_files("input[type=file]", tmp_path / "bad.png")
    viewer.get_by_text("bad.png is not a picture").wait_for(timeout=20_000)
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith(("data:", "blob:"))}
    assert hosts == {urlsplit(page.url).netloc}
