"""What the preparation scripts share: arguments, a process pool, whole files or none, a report."""

import argparse
import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from mask2former.data.builtin import load_categories
from mask2former.data.picture import read_label_map
from mask2former.errors import DatasetError

ADE20K_FOLDERS = {"train": "training", "val": "validation"}
MAX_SHOWN = 20


def parse_args(
    description: str, argv: Sequence[str] | None, splits: Iterable[str], **flags: str
) -> argparse.Namespace:
    """``root``, ``splits``, ``workers``, and switches: their names with their help."""
    parser = argparse.ArgumentParser(
        description=description.splitlines()[0],
        epilog="Finished files are kept: run it again after an interruption, or after mending what "
        "it reports. Exit status: 0 done, 1 with problems in single files, 2 with a wrong layout.",
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser(),
        help="folder of all data sets (default: $DETECTRON2_DATASETS, or ./datasets)",
    )
    splits = list(splits)
    parser.add_argument("--splits", nargs="+", choices=splits, default=splits)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    for name, text in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    return parser.parse_args(argv)


def existing(path: Path, content: str) -> Path:
    """``path``, once it is known to be there.

    Raises:
        DatasetError: it is not; says that ``content`` belongs there.
    """
    if not path.exists():
        raise DatasetError(
            f"{path.absolute()} does not exist; {content} belong there (the layout is in "
            "datasets/README.md; --root or DETECTRON2_DATASETS names the root)"
        )
    return path


def paired(pictures: Path, *labels: Path, suffix: str = ".png") -> tuple[list[str], list[str]]:
    """Names without suffix that have a picture (.jpg) and a file in each folder of ``labels``.

    Returns:
        The names in order, and problems: files that lack a counterpart.
    """
    folders = [(pictures, ".jpg"), *((folder, suffix) for folder in labels)]
    stems = [{path.stem for path in folder.glob(f"*{end}")} for folder, end in folders]
    common, known = set.intersection(*stems), set.union(*stems)
    if not known:
        raise DatasetError(f"{pictures.absolute()} is empty; the pictures (.jpg) belong there")
    problems = [
        f"{folder / (stem + end)} is missing"
        for (folder, end), found in zip(folders, stems)
        for stem in sorted(known - found)
    ]
    return sorted(common), problems


def run_jobs(
    function: Callable[..., Any], jobs: Sequence[tuple], *, workers: int, title: str
) -> tuple[list[Any], list[str]]:
    """``function(*job)`` of all jobs, in a pool of processes.

    A :class:`DatasetError` or an error of the file system ends its job only.

    Returns:
        The results in the order of the jobs, without the failed ones, and the errors' messages.
    """
    if not jobs:
        return [], []
    call = functools.partial(_outcome, function)
    progress = functools.partial(tqdm, total=len(jobs), desc=title, unit="file")
    if workers <= 1 or len(jobs) < 2:
        outcomes = list(progress(map(call, jobs)))
    else:
        with ProcessPoolExecutor(workers) as pool:
            try:
                outcomes = list(progress(pool.map(call, jobs, chunksize=8)))
            except BaseException:  # Ctrl-C too: else the pool would first finish all jobs
                pool.shutdown(cancel_futures=True)
                raise
    results = [result for result, problem in outcomes if problem is None]
    return results, [problem for _, problem in outcomes if problem is not None]


def _outcome(function: Callable[..., Any], job: tuple) -> tuple[Any, str | None]:
    try:
        return function(*job), None
    except (DatasetError, OSError) as error:
        return None, str(error)


def report(problems: Sequence[str]) -> int:
    """Print the problems, if any; the exit status."""
    if problems:
        print(f"{len(problems)} problems:")
        print("\n".join(f"  {problem}" for problem in problems[:MAX_SHOWN]))
        if len(problems) > MAX_SHOWN:
            print(f"  and {len(problems) - MAX_SHOWN} more")
        print("Mend them, or remove the pictures together with their annotations; then run again.")
    return 1 if problems else 0


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a temporary file that then takes the place of ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}.part")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_picture(path: Path, pixels: np.ndarray) -> None:
    """The suffix of ``path`` says the format."""
    kind = Image.registered_extensions()[path.suffix]
    write_whole(path, lambda part: Image.fromarray(pixels).save(part, format=kind))


def save_json(path: Path, content: Any) -> None:
    write_whole(path, lambda part: part.write_text(json.dumps(content)))


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width, from the file's header."""
    with Image.open(path) as picture:
        return picture.height, picture.width


def read_labels(path: Path, size: tuple[int, int], *, channels: int | None = None) -> np.ndarray:
    """A label map, (h, w) or (h, w, channels), uint8.

    Raises:
        DatasetError: it is of another kind, or not of the picture's ``size`` (height, width).
    """
    labels = read_label_map(str(path))
    kind = (labels.dtype, labels.shape[2:])
    if kind != (np.uint8, () if channels is None else (channels,)):
        raise DatasetError(
            f"{path} has {labels.dtype} pixels of shape {labels.shape}, not 8-bit pixels with "
            f"{channels or 1} channel(s); replace it by the official file"
        )
    if labels.shape[:2] != size:
        raise DatasetError(
            f"{path} is {labels.shape[1]} x {labels.shape[0]} pixels, but its picture is "
            f"{size[1]} x {size[0]}"
        )
    return labels


def check_values(path: Path, labels: np.ndarray, largest: int) -> None:
    """Raises: DatasetError: a label is above ``largest``."""
    if labels.max(initial=0) > largest:
        raise DatasetError(
            f"{path} has the label {labels.max()}, but the largest is {largest}; it belongs to "
            "another data set or version"
        )


def box_and_area(mask: np.ndarray) -> tuple[list[int], int]:
    """Of a mask that is not empty, (h, w) bool: ``[x, y, width, height]`` and area, in pixels."""
    x, y = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    box = [x[0], y[0], x[-1] - x[0] + 1, y[-1] - y[0] + 1]
    return [int(value) for value in box], int(mask.sum())


def ade20k_image(stem: str, size: tuple[int, int]) -> dict[str, Any]:
    """The entry of a picture, ``ADE_train_00000001``, in COCO's ``images``.

    Its id is that of the ADE20K instance challenge: pictures count from 0 in the order of their
    names, the 20,210 of training first, then those of validation.
    """
    match = re.fullmatch(r"ADE_(train|val)_(\d{8})", stem)
    if match is None:
        raise DatasetError(f"{stem}.jpg is not named as ADE20K's pictures: ADE_train_00000001.jpg")
    image_id = int(match[2]) - 1 + {"train": 0, "val": 20210}[match[1]]
    return {"id": image_id, "file_name": f"{stem}.jpg", "height": size[0], "width": size[1]}


def ade20k_instances(path: Path, size: tuple[int, int]) -> list[tuple[int, np.ndarray]]:
    """The objects of an instance label map (red: category, green: object), in their order.

    Returns:
        Class, as in SceneParse150 from 0, and mask (h, w) bool of each object.

    Raises:
        DatasetError: an object has no category, an unknown one, or several.
    """
    labels = read_labels(path, size, channels=3)
    classes = [category["id"] for category in load_categories("ade20k_instance_100")]
    objects = []
    for number in np.unique(labels[..., 1]):
        if number == 0:
            continue
        mask = labels[..., 1] == number
        found = np.unique(labels[..., 0][mask])
        if len(found) != 1 or not 1 <= found[0] <= len(classes):
            raise DatasetError(
                f"{path}: object {number} has the categories {found.tolist()}; it must have one, "
                f"of 1 to {len(classes)}"
            )
        objects.append((classes[found[0] - 1], mask))
    return objects
