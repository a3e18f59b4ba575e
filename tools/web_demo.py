#!/usr/bin/env python
"""Segment pictures on a page in the browser.

    python tools/web_demo.py                                # the quickstart's model, this machine
    python tools/web_demo.py --config-file X.yaml --weights model_final.pth --samples pictures/
    python tools/web_demo.py --config-file zoo://coco/panoptic/R50 --host 0.0.0.0 --port 8000

Upload a picture, choose what to find, point at what was found, download the results. The page
loads nothing from elsewhere and needs no network. It listens to this machine alone unless --host
says otherwise; it knows no passwords. docs/WEB_DEMO.md says what it takes and what it refuses.
"""

import argparse
import gc
import math
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mask2former.data.picture import RAW
from mask2former.errors import UserError, positive, report_user_errors
from mask2former.inference import Predictor
from mask2former.inference.sources import find_files
from mask2former.memory import share_one_heap

CONFIG = Path("configs/quickstart.yaml")
WEIGHTS = Path("output/quickstart/train/model_final.pth")
SAMPLES = Path("output/sample/val")
MOST_SAMPLES = 12
SHOWN = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp"}  # by every browser
TITLE = "Mask2Former"


def main() -> None:
    args = parse_arguments()
    config, weights, samples = choose_model(args)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError('the page needs gradio: pip install "gradio>=6.31"') from error
    from web.page import Serving, serve
    from web.segmenting import Limits, Segmenter

    share_one_heap()  # requests come in many threads, and the model answers one after the other
    predictor = Predictor(config, weights, overrides=args.opts)
    if predictor.image_format == RAW:
        raise UserError(
            f"{config}: the page takes pictures of 8 bits, this model others (INPUT.FORMAT {RAW}); "
            "use tools/demo.py"
        )
    Image.MAX_IMAGE_PIXELS = args.max_pixels  # Pillow's own guard, at twice as many
    limits = Limits(bytes=round(args.max_upload_mb * 2**20), pixels=args.max_pixels)
    serving = Serving(
        host=args.host,
        port=args.port,
        most_waiting=args.most_waiting,
        keep_seconds=args.keep_seconds,
    )
    # A service manager's stop deletes the files, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with serve(Segmenter(predictor, limits), serving, TITLE, samples) as url:
        print(f"The page is at {url} until Ctrl-C", flush=True)
        gc.freeze()  # what is here now stays: collecting after a request need not look at it
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            gc.unfreeze()  # or libraries complain that their objects are left
            print("stopped")


def choose_model(args: argparse.Namespace) -> tuple[str, str | None, Sequence[Path]]:
    """Config, weights and sample pictures: those given, or the quickstart's.

    Raises:
        UserError: nothing is given, and there is no quickstart.
    """
    samples = find_samples(args.samples or [])
    if args.config_file is not None:
        return args.config_file, args.weights, samples[:MOST_SAMPLES]
    weights = args.weights or os.fspath(WEIGHTS)
    if args.weights is None and not WEIGHTS.is_file():
        raise UserError(
            f"there is no {WEIGHTS}; `make quickstart` trains it, or name a model of your own "
            "with --config-file and --weights"
        )
    if args.samples is None and SAMPLES.is_dir():
        samples = find_samples([os.fspath(SAMPLES)])
    return os.fspath(CONFIG), weights, samples[:MOST_SAMPLES]


def find_samples(inputs: Sequence[str]) -> list[Path]:
    """The pictures that a browser can show."""
    samples = [path for path in find_files(inputs) if path.suffix.lower() in SHOWN]
    if inputs and not samples:
        raise UserError(f"--samples {' '.join(inputs)} names no picture that a browser can show")
    return samples


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", help=f"a YAML file or zoo:// name (default: {CONFIG})")
    add("--weights", help="checkpoint (default: the config's, or the quickstart's)")
    add("--samples", nargs="+", metavar="PATH", help="pictures, folders, globs to pick from")
    add("--host", default="127.0.0.1", help="0.0.0.0: anyone may come (default: %(default)s)")
    add("--port", type=int, help="(default: the first free one from 7860 on)")
    add("--max-upload-mb", type=megabytes, default=20, metavar="MB", help="(default: %(default)s)")
    add(
        "--max-pixels",
        type=positive,
        default=16_000_000,
        metavar="N",
        help="of a picture, before it is decoded (default: %(default)s)",
    )
    add(
        "--most-waiting",
        type=positive,
        default=64,
        metavar="N",
        help="requests in the queue; further ones are asked to come back (default: %(default)s)",
    )
    add(
        "--keep-seconds",
        type=positive,
        default=900,
        metavar="S",
        help="delete uploads and results about as long after (default: %(default)s)",
    )
    add("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE overrides of the config")
    return parser.parse_args()


def megabytes(text: str) -> float:
    if not 1 <= (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


if __name__ == "__main__":
    with report_user_errors():
        main()
