"""tools/demo.py: what it takes, what it leaves out, what it writes."""

import dataclasses
import io
import json
import random
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import demo

from mask2former.inference import Instances, Options, Panoptic, Prediction, Semantic, sources
from mask2former.inference.budget import Budget
from mask2former.inference.picture import as_array

NAMES = ("nut", "table")


class LeftHalf:
    """A predictor without a model: a nut in the left half, a table in the right one."""

    image_format = "RGB"
    categories = NAMES
    options = Options()
    most_pixels = None  # of the last run

    def __init__(self, *args, **others):
        from detectron2.data import Metadata

        self.metadata = Metadata(thing_classes=list(NAMES), stuff_classes=list(NAMES))

    def read(self, picture):
        return as_array(picture, self.image_format)

    def run(self, image, options, *, most_pixels=None):
        LeftHalf.most_pixels = most_pixels
        size = image.shape[:2]
        ids = np.full(size, 2, np.int32)
        ids[:, : size[1] // 2] = 1
        segments = [
            {"id": i, "category_id": i - 1, "isthing": i == 1, "score": 0.9} for i in (1, 2)
        ]
        masks, one = (ids == 1)[None], np.ones(1, np.float32)
        return Prediction(
            *size,
            panoptic=Panoptic.of(ids, segments, NAMES),
            instances=Instances.of(masks, np.zeros(1, np.int64), one, NAMES),
            semantic=Semantic(ids - 1, NAMES),
        )


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the tool with a predictor that needs no model; its status and what it printed."""
    monkeypatch.setattr(demo, "Predictor", LeftHalf)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000_000)  # the tool may lift it

    def run(*arguments):
        capsys.readouterr()
        required = ["demo.py", "--config-file", "x.yaml", "--output", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", [*required, *map(str, arguments)])
        return demo.main(), *capsys.readouterr()

    return run


@pytest.fixture
def film(tmp_path):
    """Five frames of 66 x 48 pixels at 10 a second."""
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (66, 48))
    for i in range(5):
        writer.write(np.full((48, 66, 3), 50 * i, np.uint8))
    writer.release()
    return path


def test_a_video_becomes_a_video(run, film, tmp_path):
    status, stdout, _ = run("--input", film, "--legend", "--side-by-side")
    assert status == 0 and "5 of 5" in stdout
    capture = cv2.VideoCapture(str(tmp_path / "out" / "film.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert capture.get(cv2.CAP_PROP_FPS) == 10
    names = [i["file_name"] for i in json.loads((tmp_path / "out/images.json").read_text())]
    assert names == [f"film_{i:06d}.png" for i in range(1, 6)]
    assert Image.open(tmp_path / "out/panoptic/film_000005.png").size == (66, 48)


def test_a_bad_frame_does_not_end_the_video(run, film, monkeypatch):
    whole, calls = LeftHalf.run, []

    def sometimes(self, image, options, **_):
        calls.append(image)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return whole(self, image, options)

    monkeypatch.setattr(LeftHalf, "run", sometimes)
    status, stdout, stderr = run("--input", film)
    assert status == 1 and "4 of 5" in stdout
    assert "left out: film_000002.png: out of memory" in stderr


def test_a_video_that_cannot_be_opened_is_named(run, film, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    status, stdout, stderr = run("--input", broken, film)
    assert status == 1 and "5 of 6" in stdout
    assert f"left out: {broken} gives no frame" in stderr


def test_a_video_that_ends_too_early_is_named(run, film, tmp_path):
    cut = tmp_path / "cut.avi"
    whole = film.read_bytes()
    cut.write_bytes(whole[: whole.index(b"idx1") - 600])  # without the index and two frames
    status, _, stderr = run("--input", cut)
    assert status == 1 and re.search(r"left out: .*cut\.avi ends after [123] of 5 frames", stderr)
    assert (tmp_path / "out" / "cut.mp4").is_file()


def test_huge_pictures_are_for_tiles(run, tmp_path):
    Image.new("L", (2001, 1000)).save(tmp_path / "huge.png")
    status, _, stderr = run("--input", tmp_path / "huge.png")
    assert status == 1 and "more pixels than Pillow decodes" in stderr and "--tile" in stderr
    assert run("--input", tmp_path / "huge.png", "--tile", 4000)[0] == 0


def test_colours_of_the_drawing(run, tmp_path):
    """Of the palette that was asked for, over the picture with its channels in order."""
    Image.new("RGB", (200, 100), "red").save(tmp_path / "a.png")
    drawings = []
    for format_, extra in (("RGB", ()), ("BGR", ()), ("RGB", ("--color-blind",))):
        LeftHalf.image_format = format_
        try:
            assert run("--input", tmp_path / "a.png", "--task", "semantic", *extra)[0] == 0
        finally:
            LeftHalf.image_format = "RGB"
        drawings.append(np.asarray(Image.open(tmp_path / "out/a.png")).astype(int))
    plain, swapped, safe = drawings
    np.testing.assert_array_equal(plain, swapped)
    # Half of it is the picture's red; the rest of the nut's half Okabe and Ito's orange.
    assert abs(np.median(safe[:, : safe.shape[1] // 2], axis=(0, 1)) - (230, 159, 0)).max() < 150
    assert abs(plain - safe).max() > 50


def test_no_camera(run):
    status, _, stderr = run("--webcam", 987)
    assert status == 1 and "camera 987 gives no frame" in stderr


def test_most(run, film):
    assert "2 of 2" in run("--input", film, "--most", 2)[1]


def test_lists_on_the_standard_input(run, tmp_path, monkeypatch):
    for name in ("a b.png", "c.png"):
        Image.new("RGB", (20, 10)).save(tmp_path / name)
    lines = f"{tmp_path}/a b.png\n\n{tmp_path}/c.png\n{tmp_path}/gone.png\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    status, stdout, stderr = run("--input", "-", "--cutouts")
    assert status == 1 and "2 of 3" in stdout
    assert "gone.png does not exist" in stderr
    assert Image.open(tmp_path / "out/cutouts/a b/001_nut.png").size == (10, 10)


def test_names_are_unique():
    names = sources.unique_names([Path("a/x.png"), Path("b/x.jpg"), Path("x_2.png"), Path("x.gif")])
    assert names == ["x", "x_2", "x_2_2", "x_3"]
    # Frames of a video are numbered: a picture is not called like one.
    names = sources.unique_names([Path("film_000001.png"), Path("b_000001.png"), Path("film.mp4")])
    assert names == ["film_000001_2", "b_000001", "film"]
    many = [Path(str(i)) / "a.png" for i in range(20_000)]  # a data set's folders
    assert len(set(sources.unique_names(many))) == 20_000


def test_inputs_are_not_overwritten(monkeypatch, tmp_path, run):
    (tmp_path / "out").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "out" / "a.png")
    with pytest.raises(demo.UserError, match=r"would overwrite a\.png"):
        run("--input", tmp_path / "out" / "a.png")
    (tmp_path / "out" / "panoptic").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "out" / "panoptic" / "b.png")
    with pytest.raises(demo.UserError, match=r"would write beside .*b\.png"):
        run("--input", tmp_path / "out" / "panoptic" / "b.png")


def test_an_output_that_is_a_file(tmp_path, run):
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    (tmp_path / "out").write_text("")
    with pytest.raises(demo.UserError, match="is no folder to write to"):
        run("--input", tmp_path / "a.png")


def test_options_reach_the_predictor(run, tmp_path, monkeypatch, capsys):
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    seen = []
    whole = LeftHalf.run
    monkeypatch.setattr(LeftHalf, "run", lambda s, i, o, **_: (seen.append(o), whole(s, i, o))[1])
    run("--input", tmp_path / "a.png", "--task", "instance", "--confidence-threshold", 0.3,
        "--overlap-threshold", 0.4, "--minimum-area", 5, "--clean-up", 6,
        "--one-label")  # fmt: skip
    assert seen == [
        Options(
            tasks=("instance",),
            score_threshold=0.3,
            overlap_threshold=0.4,
            minimum_area=5,
            clean_up=6,
            one_label_per_query=True,
        )
    ]
    for option, value in (("--confidence-threshold", 70), ("--minimum-area", -1)):
        with pytest.raises(SystemExit):
            run("--input", tmp_path / "a.png", option, value)
        assert f"argument {option}: {value} is " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "bytes_"), [("2GB", 2 * 10**9), ("1.5 GiB", 1.5 * 2**30), ("800M", 8 * 10**8)]
)
def test_amounts_of_memory(text, bytes_):
    assert demo.memory(text) == bytes_
    with pytest.raises(demo.argparse.ArgumentTypeError, match="no amount of memory"):
        demo.memory("2 gallons")


def test_tiles_are_as_large_as_the_memory_allows(run, tmp_path, monkeypatch):
    Image.new("RGB", (300, 200)).save(tmp_path / "a.png")
    seen = []

    def in_tiles(predictor, image, options, *, tile, **others):
        seen.append((tile, others["scale"], others["overview"], others["most_pixels"]))
        return predictor.run(image, options)

    def budget_for(predictor, size, memory, options, *, scale):
        return Budget(int(memory / scale), memory**2, "instance" not in options.tasks)

    monkeypatch.setattr(demo, "segment_in_tiles", in_tiles)
    monkeypatch.setattr(demo, "budget_for", budget_for)
    monkeypatch.setattr(demo, "check_file", lambda *_, **__: None)
    picture = ("--input", tmp_path / "a.png", "--task", "panoptic")
    run(*picture)
    run(*picture, "--tile", 128)
    run(*picture, "--tile", 128, "--max-memory", "0.1kB", "--no-overview")
    run(*picture, "--max-memory", "0.1kB", "--scale", 0.5)
    run(*picture, "--max-memory", "0.3kB")  # the picture fits
    expected = [(128, 1.0, True, None), (100, 1.0, False, 100**2), (200, 0.5, True, 100**2)]
    assert seen == expected
    assert LeftHalf.most_pixels == 300**2
    run(*picture[:2], "--max-memory", "0.3kB", "--task", "instance")  # its masks do not
    assert seen.pop() == (300, 1.0, True, 300**2)
    with pytest.raises(SystemExit):
        run(*picture, "--scale", 0.5)  # of what?


def test_instances_of_pictures_in_tiles(run, tmp_path, monkeypatch):
    Image.new("RGB", (300, 200)).save(tmp_path / "a.png")
    Image.new("RGB", (30, 20)).save(tmp_path / "b.png")

    def in_tiles(predictor, image, options, **others):
        return dataclasses.replace(predictor.run(image, options), instances=None)

    monkeypatch.setattr(demo, "segment_in_tiles", in_tiles)
    run("--input", tmp_path / "a.png", tmp_path / "b.png", "--task", "instance", "--tile", 128)
    large, small = json.loads((tmp_path / "out/instances.json").read_text())
    assert (large["image_id"], small["image_id"]) == (1, 2)
    assert large["bbox"] == [0, 0, 150, 200] and large["category_id"] == 0
    mask = coco_mask.decode(large["segmentation"])
    assert mask[:, :150].all() and not mask[:, 150:].any()


def test_a_picture_whose_results_cannot_be_written_is_in_no_file(run, tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "panoptic").write_text("a file")
    status, _, stderr = run("--input", tmp_path / "a.png")
    assert status == 1 and "left out: a.png" in stderr
    assert json.loads((tmp_path / "out/images.json").read_text()) == []
    assert not (tmp_path / "out/instances.json").exists()


def test_a_video_that_cannot_be_written_ends_it(run, film, tmp_path):
    (tmp_path / "out" / "film.mp4").mkdir(parents=True)
    with pytest.raises(demo.UserError, match=r"film\.mp4 cannot be written as a video"):
        run("--input", film)


# ---- 300 files that are no ordinary pictures ----------------------------------------------------


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def odd_files(folder):
    """Files that must be named at the end, and files that are unusual but pictures."""
    chance = random.Random(0)
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    bad, good = {}, {}
    whole = {kind: encoded(image, kind) for kind in ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")}
    for i in range(120):  # cut off where the header is whole, and where it is not
        kind = chance.choice(["JPEG", "PNG", "WEBP"])
        data = whole[kind]
        bad[f"cut_{i}.{kind.lower()}"] = data[: chance.randrange(0, len(data) * 9 // 10)]
    for i in range(60):
        suffix = chance.choice(["jpg", "png", "bmp", "tif", "webp", "gif", "npy"])
        bad[f"noise_{i}.{suffix}"] = chance.randbytes(chance.randrange(0, 3000))
    for i, (kind, data) in enumerate(whole.items()):  # what a file is, its bytes say
        good[f"wrong_{i}.{'png' if kind != 'PNG' else 'jpg'}"] = data
    for suffix in ("jpg", "png", "tif", "gif"):
        bad[f"empty.{suffix}"] = b""
        bad[f"text.{suffix}"] = b"this is no picture\n" * 20
    for size in [(1, 1), (1, 40), (40, 1), (1, 2000), (2, 3)]:
        for mode in ("RGB", "L", "RGBA", "P", "LA", "CMYK", "1", "YCbCr"):
            kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
            plain = Image.fromarray(noise).resize(size).convert("RGB")
            name = f"{mode}_{size[0]}x{size[1]}.{kind.lower()}"
            mode_image = plain.convert("L").convert("LA") if mode == "LA" else plain.convert(mode)
            good[name] = encoded(mode_image, kind)
    for i in range(40):
        frames = [Image.new("P", (9, 9), color) for color in range(2 + i % 4)]
        good[f"animated_{i}.gif"] = encoded(frames[0], "GIF", save_all=True, append_images=frames)
    for i in range(20):
        bad[f"float_{i}.tiff"] = encoded(Image.fromarray(np.full((4, 5), i / 7, "f4")), "TIFF")
        bad[f"deep_{i}.png"] = encoded(Image.fromarray(np.full((4, 5), 300 + i, "u2")), "PNG")
    for name, data in (bad | good).items():
        (folder / name).write_bytes(data)
    return set(bad), set(good)


def test_300_odd_files(run, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    bad, good = odd_files(folder)
    assert len(bad | good) >= 300
    status, stdout, stderr = run("--input", folder)
    assert status == 1
    assert f"{len(good)} of {len(bad | good)} pictures segmented" in stdout
    lines = [line for line in stderr.splitlines() if line.startswith("left out: ")]
    assert len(lines) == len(bad)
    named = {re.search(rf"{re.escape(str(folder))}/([\w.]+\.\w+)", line)[1] for line in lines}
    assert named == bad
    images = json.loads((tmp_path / "out" / "images.json").read_text())
    assert {image["file_name"] for image in images} == good


def test_rotated_and_deep_pictures(tmp_path):
    photo = Image.new("RGB", (40, 20))
    exif = photo.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    photo.save(tmp_path / "turned.jpg", exif=exif)
    assert as_array(tmp_path / "turned.jpg", "RGB").shape == (40, 20, 3)
    assert as_array(Image.open(tmp_path / "turned.jpg"), "RGB").shape == (40, 20, 3)
    deep = np.full((4, 5), 300, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert as_array(tmp_path / "deep.png", "raw")[0, 0, 0] == 300
    assert as_array(torch.full((2, 4, 5), 300.0), "raw").shape == (4, 5, 2)
