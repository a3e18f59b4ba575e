#!/usr/bin/env python
"""Segment pictures and videos, and draw the result.

    python tools/demo.py --config-file X.yaml --weights model_final.pth --output out \\
        --input a.jpg 'folder/*.png' more_pictures/ film.mp4

Writes ``out/<name>.png`` (overlay; of a video ``out/<name>.mp4``), ``out/instances.json`` (COCO
results), ``out/panoptic/*.png`` with ``out/panoptic.json``, and ``out/semantic/*.png``, as far as
the tasks are those of the config or of --task. A picture that cannot be read or segmented is named
at the end, and the exit status is 1 then.
"""

import argparse
import contextlib
import dataclasses
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from mask2former.errors import UserError, positive, report_user_errors, whole_number
from mask2former.inference import (
    TASKS,
    Options,
    Prediction,
    Predictor,
    displayable,
    draw_prediction,
    drawing_metadata,
)
from mask2former.inference.budget import budget_for, check_file
from mask2former.inference.results import ResultWriter, save_cutouts
from mask2former.inference.sources import (
    Item,
    count_frames,
    find_files,
    frames,
    items,
    unique_names,
)
from mask2former.inference.tiling import segment_in_tiles
from mask2former.inference.visualization import classes_in, fit, legend


class FilmError(UserError):
    """A video cannot be written: not a matter of one frame."""


def main() -> int:
    args = parse_arguments()
    paths = find_files(args.input or [])
    names = unique_names(paths)
    check_output(args.output, paths, names)
    predictor = Predictor(args.config_file, args.weights, overrides=args.opts)
    options = options_of(args, predictor)
    writer = Writer(args, predictor, options)
    sources = [(path.name, items(path, name)) for path, name in zip(paths, names)]
    total = sum(map(count_frames, paths))
    if args.webcam is not None:
        sources.append((f"camera {args.webcam}", frames(args.webcam, "camera")))
        total = None
    done, failures = 0, []
    if args.tile is not None or args.max_memory is not None:
        Image.MAX_IMAGE_PIXELS = None  # Pillow's guard against what is asked for here
    try:
        with tqdm(total=args.most or total, disable=None, unit="picture") as progress:
            for number, item in enumerate(noting_failures(sources, failures), start=1):
                with noting(failures, item.file_name):
                    image = read(args, predictor, item, options)
                    writer.add(item, image, segment(args, predictor, image, options))
                    done += 1
                progress.update()
                if number == args.most:
                    break
    except KeyboardInterrupt:
        print("stopped; what was done is written", file=sys.stderr)
    finally:
        writer.close()
    print(f"{done} of {done + len(failures)} pictures segmented into {args.output}")
    for failure in failures:
        print(f"left out: {failure}", file=sys.stderr)
    return 1 if failures else 0


@contextlib.contextmanager
def noting(failures: list[str], name: str) -> Iterator[None]:
    """Go on after what a bad picture raises, and add it to ``failures``."""
    try:
        yield
    except FilmError:
        raise
    except Exception as error:
        message = str(error).strip() or type(error).__name__
        failures.append(message if name in message else f"{name}: {message}")


def noting_failures(
    sources: Sequence[tuple[str, Iterator[Item]]], failures: list[str]
) -> Iterator[Item]:
    """All items of all sources; one that cannot be opened is left out."""
    for name, source in sources:
        with noting(failures, name):
            yield from source


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, help="a YAML file or zoo:// name")
    add("--weights", help="checkpoint (default: the config's MODEL.WEIGHTS)")
    add("--input", nargs="+", help="pictures, videos, folders, globs; - reads paths, one a line")
    add("--webcam", type=int, metavar="N", help="the camera of this number, until Ctrl-C")
    add("--most", type=positive, metavar="N", help="stop after this many pictures or frames")
    add("--output", type=Path, required=True, help="folder of the results")
    add("--task", choices=(*TASKS, "all"), help="what to make (default: what the config does)")
    add(
        "--confidence-threshold",
        type=share,
        metavar="T",
        help="least score, in [0, 1] (default: 0.5 for instances; the config's for panoptic)",
    )
    add("--overlap-threshold", type=share, metavar="T", help="panoptic (default: the config's)")
    add(
        "--minimum-area",
        type=whole_number,
        default=0,
        metavar="PIXELS",
        help="drop smaller segments",
    )
    add(
        "--clean-up",
        type=whole_number,
        default=0,
        metavar="PIXELS",
        help="fill smaller holes, remove smaller islands",
    )
    add("--one-label", action="store_true", help="instances: one class for each object")
    add("--cutouts", action="store_true", help="write every segment as a transparent PNG")
    add("--color-blind", action="store_true", help="colours that everyone can tell apart")
    add("--legend", action="store_true", help="name the colours beside the picture")
    add("--side-by-side", action="store_true", help="the picture itself beside the overlay")
    tiles = parser.add_argument_group("huge pictures")
    add = tiles.add_argument
    add("--max-memory", type=memory, metavar="2GB", help="tiles as large as this memory allows")
    add("--tile", type=positive, metavar="PIXELS", help="side of a tile")
    add("--scale", type=scale, default=1.0, help="of a tile, in pixels of the model per pixel")
    add("--no-overview", action="store_true", help="tiles alone, without the whole picture first")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE overrides of the config"
    )
    args = parser.parse_args()
    if (args.input is None) == (args.webcam is None):
        parser.error("name either --input or --webcam")
    if args.tile is None and args.max_memory is None and (args.scale != 1 or args.no_overview):
        parser.error("--scale and --no-overview are for tiles: give --tile or --max-memory, too")
    return args


def check_output(output: Path, paths: Sequence[Path], names: Sequence[str]) -> None:
    """Make the folder of the results, and refuse to overwrite what is read."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output} is no folder to write to: {error}") from error
    inputs = {path.resolve() for path in paths}
    for folder in ("panoptic", "semantic", "cutouts"):
        inside = [path for path in inputs if (output / folder).resolve() in path.parents]
        if inside:
            raise UserError(
                f"--output {output} would write beside {inside[0]}, which is read; name another "
                "folder"
            )
    for name in names:
        for suffix in (".png", ".mp4"):
            if (output / f"{name}{suffix}").resolve() in inputs:
                raise UserError(
                    f"--output {output} would overwrite {name}{suffix}; name another folder"
                )


def options_of(args: argparse.Namespace, predictor: Predictor) -> Options:
    changes: dict[str, object] = {
        "score_threshold": args.confidence_threshold,
        "minimum_area": args.minimum_area,
        "clean_up": args.clean_up,
        "one_label_per_query": args.one_label,
    }
    if args.task is not None:
        changes["tasks"] = TASKS if args.task == "all" else (args.task,)
    if args.overlap_threshold is not None:
        changes["overlap_threshold"] = args.overlap_threshold
    return dataclasses.replace(predictor.options, **changes)


def read(
    args: argparse.Namespace, predictor: Predictor, item: Item, options: Options
) -> np.ndarray:
    """A picture, unless --max-memory is too little for it."""
    if args.max_memory is not None and isinstance(item.picture, Path):
        check_file(predictor, item.picture, args.max_memory, options, scale=args.scale)
    return predictor.read(item.picture)


def segment(
    args: argparse.Namespace, predictor: Predictor, image: np.ndarray, options: Options
) -> Prediction:
    """The whole picture at once, or in tiles where that was asked for and it is larger than one."""
    side, most_pixels = args.tile, None
    whole = True
    if args.max_memory is not None:
        budget = budget_for(predictor, image.shape[:2], args.max_memory, options, scale=args.scale)
        side, whole = min(side or budget.tile, budget.tile), budget.whole
        most_pixels = budget.model_pixels  # the overview takes no more than a tile
    if whole and (side is None or max(image.shape[:2]) <= side):
        return predictor.run(image, options, most_pixels=most_pixels)
    with tqdm(disable=None, unit="tile", leave=False) as progress:

        def report(done: int, total: int) -> None:
            progress.total = total
            progress.update()

        return segment_in_tiles(
            predictor,
            image,
            options,
            tile=side,
            scale=args.scale,
            overview=not args.no_overview,
            most_pixels=most_pixels,
            progress=report,
        )


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1]")
    return value


def scale(text: str) -> float:
    value = float(text)
    if not 0 < value <= 16:
        raise argparse.ArgumentTypeError(f"{text} is not in (0, 16]")
    return value


def memory(text: str) -> int:
    """Bytes from a number with a unit, such as 2GB or 500MB."""
    found = re.fullmatch(r"([\d.]+)\s*([kMG]i?B?)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text} is no amount of memory such as 2GB or 800MB")
    power = "kMG".index(found[2][0]) + 1
    return int(float(found[1]) * (1024 if "i" in found[2] else 1000) ** power)


class Film(NamedTuple):
    """A video that is being written; size is (height, width)."""

    name: str
    size: tuple[int, int]
    writer: cv2.VideoWriter


class Writer:
    """Everything that is written for pictures, and the videos that frames are joined to."""

    def __init__(self, args: argparse.Namespace, predictor: Predictor, options: Options) -> None:
        self.args = args
        self.image_format = predictor.image_format
        self.results = ResultWriter(
            args.output, predictor.metadata, predictor.categories, options.tasks
        )
        self.metadata = drawing_metadata(
            predictor.metadata, predictor.categories, color_blind_safe=args.color_blind
        )
        self.film: Film | None = None

    def add(self, item: Item, image: np.ndarray, prediction: Prediction) -> None:
        """Write all of one picture or frame."""
        shown = displayable(image, self.image_format)
        drawing = self._draw(shown, prediction, item.video is not None)
        if item.video is None:
            Image.fromarray(drawing).save(self.args.output / f"{item.name}.png")
        else:
            self._add_frame(*item.video, drawing)
        if self.args.cutouts:
            save_cutouts(shown, prediction, self.args.output / "cutouts" / item.name)
        self.results.add(item.name, item.file_name, prediction)

    def _draw(self, shown: np.ndarray, prediction: Prediction, is_frame: bool) -> np.ndarray:
        drawing = draw_prediction(shown, prediction, self.metadata)
        parts = [drawing]
        if self.args.side_by_side:
            parts.insert(0, fit(shown))
        if self.args.legend:
            columns = 1 if is_frame else None  # the frames of a video are of one size
            classes = classes_in(prediction)
            parts.append(legend(classes, self.metadata, drawing.shape[0], columns=columns))
        return np.concatenate(parts, axis=1)

    def _add_frame(self, name: str, rate: float, drawing: np.ndarray) -> None:
        """Add to the video of this name; all of its frames have the size of the first."""
        if self.film is None or self.film.name != name:
            self._end_film()
            height, width = (side // 2 * 2 for side in drawing.shape[:2])  # codecs want even sides
            path = str(self.args.output / f"{name}.mp4")
            codec = cv2.VideoWriter_fourcc(*"mp4v")
            writer = cv2.VideoWriter(path, codec, rate, (width, height))
            if not writer.isOpened():
                raise FilmError(
                    f"{path} cannot be written as a video; is --output a folder to write to, and "
                    "does OpenCV have the codec mp4v?"
                )
            self.film = Film(name, (height, width), writer)
        frame = np.full((*self.film.size, 3), 255, np.uint8)
        height, width = np.minimum(self.film.size, drawing.shape[:2])
        frame[:height, :width] = drawing[:height, :width, ::-1]
        self.film.writer.write(frame)

    def _end_film(self) -> None:
        if self.film is not None:
            self.film.writer.release()

    def close(self) -> None:
        self._end_film()
        self.results.close()


if __name__ == "__main__":
    with report_user_errors():
        sys.exit(main())
