"""Where pictures come from: files, folders, globs, lists, videos, a camera."""

import glob
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..errors import DatasetError, UserError

PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".npy"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}
# Part of the frames that a sound video may lack: some formats tell their number as length x rate.
MISSING_FRAMES = 0.05


@dataclass(frozen=True)
class Item:
    """A picture to segment, or a frame.

    Attributes:
        name: unique; what is written for it is called so.
        file_name: the file's own.
        picture: its path, or a frame's (H, W, 3) uint8 RGB.
        video: name and frames per second of the video that it is a frame of.
    """

    name: str
    file_name: str
    picture: Path | np.ndarray
    video: tuple[str, float] | None = None


def find_files(inputs: Sequence[str]) -> list[Path]:
    """The files that paths, folders (not their sub-folders) and globs name, without repeats.

    ``-`` reads paths from the standard input, one a line. A path given by itself need not look like
    a picture's.

    Raises:
        UserError: something names no file.
    """
    found: dict[Path, None] = {}
    for text in inputs:
        path = Path(text).expanduser()
        if text == "-":
            matches = [Path(line.strip()) for line in sys.stdin if line.strip()]
        elif path.is_dir():
            suffixes = PICTURES | VIDEOS
            matches = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes)
        elif path.is_file():
            matches = [path]
        else:
            matches = sorted(filter(Path.is_file, map(Path, glob.glob(str(path), recursive=True))))
        if not matches:
            raise UserError(f"{text} {_why_nothing(path)}")
        found |= dict.fromkeys(matches)
    return list(found)


def _why_nothing(path: Path) -> str:
    if path.is_dir():
        return "has no picture or video in it; what is in its folders is not looked at"
    if glob.has_magic(str(path)):
        return "matches no file"
    return "is empty" if str(path) == "-" else "does not exist"


def unique_names(paths: Sequence[Path]) -> list[str]:
    """The stem of each path, with a number where it is another's, or a frame's of a video."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    videos: set[str] = set()
    last: Counter[str] = Counter()  # number of the last path of each stem

    def is_free(name: str) -> bool:
        frame_of = re.sub(r"_\d{6,}$", "", name)
        return name not in taken and (frame_of == name or frame_of not in videos)

    for path in sorted(paths, key=lambda path: not is_video(path)):  # videos first
        name = path.stem
        while not is_free(name):
            last[path.stem] = max(last[path.stem], 1) + 1
            name = f"{path.stem}_{last[path.stem]}"
        names[path] = name
        taken.add(name)
        if is_video(path):
            videos.add(name)
    return [names[path] for path in paths]


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS


def count_frames(path: Path) -> int:
    """Pictures in a file: 1, or about how many frames a video says it has."""
    if not is_video(path):
        return 1
    return max(1, int(cv2.VideoCapture(os.fspath(path)).get(cv2.CAP_PROP_FRAME_COUNT)))


def items(path: Path, name: str) -> Iterator[Item]:
    """The picture in a file, or the frames of a video.

    Raises:
        DatasetError: the video cannot be opened, or ends before it should.
    """
    if is_video(path):
        yield from frames(os.fspath(path), name)
    else:
        yield Item(name, path.name, path)


def frames(source: str | int, name: str) -> Iterator[Item]:
    """The frames of a video, or of the camera of a number.

    Raises:
        DatasetError: it cannot be opened or has no frame; or, after the last that can be read, it
            should have more.
    """
    capture = cv2.VideoCapture(source)
    promised = capture.get(cv2.CAP_PROP_FRAME_COUNT)  # 0 or less: unknown, or a camera
    rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
    number = 0
    try:
        while True:
            there, frame = capture.read()
            if not there:
                break
            number += 1
            image = np.ascontiguousarray(frame[:, :, ::-1])
            yield Item(f"{name}_{number:06d}", f"{name}_{number:06d}.png", image, (name, rate))
    finally:
        capture.release()
    if not number:
        what = f"camera {source}" if isinstance(source, int) else source
        raise DatasetError(f"{what} gives no frame; OpenCV cannot open it or it is empty")
    if not isinstance(source, int) and number + 1 < (1 - MISSING_FRAMES) * promised:
        raise DatasetError(
            f"{source} ends after {number} of {int(promised)} frames: it is cut short or damaged "
            "there; what came before is segmented"
        )
