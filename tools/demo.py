#!/usr/bin/env python
"""Segment pictures and draw the result.

    python tools/demo.py --config-file X.yaml --input a.jpg 'folder/*.png' more_pictures/ \\
        --output out --opts MODEL.WEIGHTS model_final.pth

Writes ``out/<name>.png`` (overlay) for each picture, ``out/instances.json`` (COCO results),
``out/panoptic/*.png`` with ``out/panoptic.json``, and ``out/semantic/*.png``, as far as the
config switches them on. A picture that cannot be read is named at the end, and the exit status is
1 then.
"""

import argparse
import glob
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from mask2former.config import load_config
from mask2former.data.picture import read_picture
from mask2former.errors import DatasetError, UserError, report_user_errors
from mask2former.inference import Predictor, displayable, draw_prediction
from mask2former.inference.results import ResultWriter, keep_confident
from mask2former.trainer import adapt_to_machine

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".npy"}


def main() -> int:
    args = parse_arguments()
    paths = find_pictures(args.input)
    cfg = load_config(args.config_file, args.opts)
    adapt_to_machine(cfg)
    names = unique_names(paths)
    inputs = {path.resolve() for path in paths}
    for name in names:
        if (args.output / f"{name}.png").resolve() in inputs:
            raise UserError(
                f"--output {args.output} would overwrite {name}.png; name another folder"
            )
    predictor = Predictor(cfg)
    args.output.mkdir(parents=True, exist_ok=True)
    writer = ResultWriter(args.output, predictor.metadata)
    failures = []
    for path, name in tqdm(list(zip(paths, names)), disable=None, unit="picture"):
        try:
            image = read_picture(str(path), predictor.image_format)
        except DatasetError as error:
            failures.append(str(error))
            continue
        prediction = keep_confident(predictor(image), args.confidence_threshold)
        writer.add(name, path.name, prediction)
        shown = displayable(image, predictor.image_format)
        drawing = draw_prediction(shown, prediction, predictor.metadata)
        Image.fromarray(drawing).save(args.output / f"{name}.png")
    writer.close()
    print(f"{len(paths) - len(failures)} of {len(paths)} pictures segmented into {args.output}")
    for failure in failures:
        print(f"left out: {failure}", file=sys.stderr)
    return 1 if failures else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--input", nargs="+", required=True, help="pictures, folders or globs")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--confidence-threshold",
        type=score,
        default=0.5,
        help="least score of instances and panoptic segments, in [0, 1] (default: 0.5)",
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE overrides of the config"
    )
    return parser.parse_args()


def score(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1]")
    return value


def find_pictures(inputs: Sequence[str]) -> list[Path]:
    """The files that paths, folders (not their sub-folders) and globs name, without repeats.

    Raises:
        UserError: something names no file.
    """
    found: dict[Path, None] = {}
    for text in inputs:
        path = Path(text).expanduser()
        if path.is_dir():
            matches = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        elif path.is_file():
            matches = [path]
        else:
            matches = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
        if not matches:
            raise UserError(f"--input {text} names no picture")
        found |= dict.fromkeys(matches)
    return list(found)


def unique_names(paths: Sequence[Path]) -> list[str]:
    """The stem of each path, with a number where two pictures share it."""
    names: list[str] = []
    for path in paths:
        name, number = path.stem, 1
        while name in names:
            number += 1
            name = f"{path.stem}_{number}"
        names.append(name)
    return names


if __name__ == "__main__":
    with report_user_errors():
        sys.exit(main())
