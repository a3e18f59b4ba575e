"""From an uploaded file to what the page shows; knows nothing of gradio.

H, W are the picture's size, h, w that of its drawing.
"""

import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from mask2former.errors import DatasetError, UserError
from mask2former.inference import (
    Options,
    Prediction,
    Predictor,
    displayable,
    draw_prediction,
    drawing_metadata,
)
from mask2former.inference.prediction import Box
from mask2former.inference.results import ResultWriter
from mask2former.inference.visualization import fit_labels
from mask2former.modeling.meta_arch import QueryPrediction

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # those that Pillow decodes by itself
MOST_KEPT = 128 << 20  # bytes of masks of pictures seen before; one is 10 to 100 MB


class PictureError(UserError):
    """A file that is not segmented; the message is for whoever uploaded it."""


@dataclass(frozen=True)
class Limits:
    """What is refused before a picture is decoded: more bytes, more pixels."""

    bytes: int
    pixels: int


class Row(NamedTuple):
    """A segment in the table. Semantic ones have no score, and only things are counted."""

    name: str
    kind: str
    score: float | None
    area: int
    share: float
    box: Box


@dataclass(frozen=True)
class Result:
    """A segmented picture.

    Attributes:
        drawing: (h, w, 3) uint8 RGB, at most ``MOST_SIDE`` pixels a side.
        labels: (h, w) int32: number of the row that each pixel belongs to, from 1 on; else 0.
        rows: the largest first.
        seconds: from the upload to the prediction.
    """

    name: str
    prediction: Prediction
    drawing: np.ndarray
    labels: np.ndarray
    rows: tuple[Row, ...]
    seconds: float


def check(path: Path, limits: Limits) -> None:
    """Refuse what is no picture, too large a one, or one of more than 8 bits, by its header alone.

    Raises:
        PictureError: the message names the limit or the remedy.
    """
    if not path.is_file():
        raise PictureError(f"{path.name} is no longer here; upload it again")
    if path.stat().st_size > limits.bytes:
        size, most = path.stat().st_size / 2**20, limits.bytes / 2**20
        raise PictureError(f"{path.name} has {size:.1f} MB; at most {most:g} MB are taken")
    too_many = f"more than the {limits.pixels:,} pixels that are taken; make it smaller"
    try:
        with Image.open(path, formats=FORMATS) as file:
            (width, height), mode = file.size, file.mode
    except Image.DecompressionBombError as error:
        raise PictureError(f"{path.name} has {too_many}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise PictureError(
            f"{path.name} is not a picture in a format that is read: {', '.join(FORMATS)}"
        ) from error
    if width * height > limits.pixels:
        raise PictureError(f"{path.name} has {width:,} x {height:,} pixels, {too_many}")
    if mode.startswith(("I", "F")):
        raise PictureError(f"{path.name} has more than 8 bits for a colour; save it with 8 bits")


class Segmenter:
    """A predictor behind limits, with the colours that its predictions are drawn in.

    For one request at a time.
    """

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self.predictor = predictor
        self.limits = limits
        # What the model said of files, the last used last: a slider need not ask it again.
        self.seen: dict[tuple[Path, int], QueryPrediction] = {}
        self.colors = {
            safe: drawing_metadata(predictor.metadata, predictor.categories, color_blind_safe=safe)
            for safe in (False, True)
        }

    def __call__(self, path: Path, options: Options, *, color_blind: bool = False) -> Result:
        """Segment an uploaded file, by the one task of ``options``.

        Raises:
            PictureError: the file is refused.
        """
        start = time.perf_counter()
        check(path, self.limits)
        try:
            image = self.predictor.read(path)
        except DatasetError as error:
            raise PictureError(_for_the_uploader(error, path)) from error
        prediction = self.predictor.segment(self._look_at(image, path), image.shape[:2], options)
        seconds = time.perf_counter() - start
        shown = displayable(image, self.predictor.image_format)
        drawing = draw_prediction(shown, prediction, self.colors[color_blind])
        rows, labels = table(prediction, drawing.shape[:2])
        return Result(path.stem, prediction, drawing, labels, rows, seconds)

    def _look_at(self, image: np.ndarray, path: Path) -> QueryPrediction:
        """What the model says of a file's picture."""
        key = path, path.stat().st_mtime_ns
        self.seen = {known: kept for known, kept in self.seen.items() if known[0].exists()}
        looked = self.seen.pop(key, None)
        if looked is None:
            looked = self.predictor.predict(self.predictor.resized(image))
        self.seen[key] = looked
        while sum(kept.mask_logits.nbytes for kept in self.seen.values()) > MOST_KEPT:
            del self.seen[next(iter(self.seen))]
        return looked


def _for_the_uploader(error: DatasetError, path: Path) -> str:
    """Without the server's paths, and without advice on a data set."""
    cause = error.__cause__
    if cause is None:  # it names the remedy itself
        return str(error).replace(str(path), path.name)
    return f"{path.name} cannot be read ({cause}); it is damaged: save it again"


def table(prediction: Prediction, size: tuple[int, int]) -> tuple[tuple[Row, ...], np.ndarray]:
    """The rows of a prediction, the largest first, and their numbers in a map of (h, w).

    Where instances overlap, the map shows the smaller, so that each can be pointed at.
    """
    pixels = prediction.height * prediction.width
    found = sorted(_segments(prediction, size), key=lambda pair: -pair[0].area)
    labels = np.zeros(size, dtype=np.int32)
    for number, (_, mask) in enumerate(found, start=1):
        labels[mask] = number
    return tuple(row._replace(share=row.area / pixels) for row, _ in found), labels


def _segments(prediction: Prediction, size: tuple[int, int]) -> Iterator[tuple[Row, np.ndarray]]:
    """Each row, without its share, and its mask (h, w)."""
    if prediction.panoptic is not None:
        ids = fit_labels(prediction.panoptic.ids, size)
        for segment in prediction.panoptic.segments:
            kind = "thing" if segment.isthing else "stuff"
            row = Row(segment.category, kind, segment.score, segment.area, 0, segment.box)
            yield row, ids == segment.id
    elif prediction.instances is not None:
        found = prediction.instances
        for name, score, area, box, mask in zip(
            found.categories, found.scores, found.areas, found.boxes.astype(int), found.masks
        ):
            row = Row(name, "thing", float(score), int(area), 0, tuple(box.tolist()))
            yield row, fit_labels(mask, size)
    elif prediction.semantic is not None:
        labels = prediction.semantic.labels
        shown = fit_labels(labels, size)
        places = ndimage.find_objects(labels + 1, len(prediction.semantic.categories))
        areas = np.bincount(labels.ravel(), minlength=len(places))
        for i, (name, place) in enumerate(zip(prediction.semantic.categories, places)):
            if place is not None:
                rows, columns = place
                box = columns.start, rows.start, columns.stop, rows.stop
                yield Row(name, "class", None, int(areas[i]), 0, box), shown == i


def write_zip(result: Result, predictor: Predictor, folder: Path) -> Path:
    """Write the drawing, and the results as :class:`ResultWriter` has them, into one archive."""
    contents = folder / "contents"
    tasks = result.prediction.tasks
    writer = ResultWriter(contents, predictor.metadata, predictor.categories, tasks)
    writer.add(result.name, result.name, result.prediction)
    writer.close()
    Image.fromarray(result.drawing).save(contents / "overlay.png")
    path = folder / f"{result.name}_segmentation.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(contents.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(contents))
    return path
