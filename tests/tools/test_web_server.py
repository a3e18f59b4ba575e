"""The page of tools/web_demo.py, served: over HTTP, and in a browser."""

import json
import os
import shutil
import time
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from halves import LIMITS, Halves, save_picture, web_requests
from PIL import Image
from web.page import Serving, serve
from web.segmenting import Segmenter

from mask2former.errors import UserError

httpx = pytest.importorskip("httpx")  # gradio needs it, too


@pytest.fixture
def predictor():
    return Halves()


@pytest.fixture
def picture(tmp_path):
    return save_picture(tmp_path)


@pytest.fixture
def server(predictor, picture):
    """A page that is served, and a client of it."""
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
    assert predictor.options_seen[0].score_threshold == 0.7
    archive = server.get(button["value"]["url"])
    assert archive.status_code == 200 and archive.content[:2] == b"PK"
    html, button = web_requests.segment(server, web_requests.upload(server, Path(__file__)))
    assert "not a picture" in html and button["value"] is None


@pytest.mark.parametrize(
    "path, message",
    [
        ("/etc/passwd", None),  # gradio's own refusal, whose text it keeps to itself
        (__file__, None),
        ("http://example.com/a.png", "Addresses are not fetched"),
    ],
)
def test_only_uploads_are_read(server, predictor, path, message):
    with pytest.raises(RuntimeError, match=message):
        web_requests.segment(server, path)
    assert not predictor.calls


def test_upload_limit(server, tmp_path):
    (tmp_path / "large.png").write_bytes(bytes(LIMITS.bytes + 1))
    with pytest.raises(httpx.HTTPStatusError, match="413"):
        web_requests.upload(server, tmp_path / "large.png")
    assert not [path for path in files_kept() if path.stat().st_size > LIMITS.bytes // 2]


def test_a_full_queue_says_so(server, predictor, picture):
    segment = predictor.segment
    predictor.segment = lambda *given: time.sleep(0.2) or segment(*given)
    seconds, failures = web_requests.load(str(server.base_url), picture, 20)
    assert len(seconds) + len(failures) == 20 and len(seconds) >= 8
    assert failures and all("503" in failure for failure in failures)
    assert len(web_requests.load(str(server.base_url), picture, 2)[0]) == 2  # and goes on


def test_files_are_deleted(predictor, picture):
    serving = Serving(keep_seconds=5)
    with serve(Segmenter(predictor, LIMITS), serving, "Test", [picture]) as url:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            at_first = len(files_kept())
            path = picture.with_name("other.png")
            Image.new("RGB", (9, 9)).save(path)
            uploaded = web_requests.upload(client, path)
            assert len(files_kept()) == at_first + 1
            web_requests.segment(client, uploaded)  # adds a zip
            end = time.monotonic() + 30
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


def test_files_beside_a_sample_picture_are_not_served(server, picture):
    secret = picture.parent / "secret.txt"
    secret.write_text("mine")
    assert server.get(f"/gradio_api/file={picture.resolve()}").status_code == 200
    assert server.get(f"/gradio_api/file={secret.resolve()}").status_code == 403
