"""A sample data set that the package paints itself: offline, deterministic, in the formats of COCO.

Outdoor scenes with people, cars, balloons and trees among sky, mountains, water, grass and roads.
Things occlude each other and are cut by the border; some pictures hold a crowd, some an ignored
region, some no thing.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ...errors import DatasetError
from .scene import Scene, render_scene
from .write import CATEGORIES, write_split

__all__ = ["CATEGORIES", "FolderTakenError", "generate_sample_dataset", "sample_scene"]

VERSION = 1  # of the pictures: raise it when the same parameters give other ones
SPLITS = ("train", "val")
_STAMP = "sample.json"
_ENTRY = """\
sample_{split}:
  format: coco_panoptic
  image_root: {split}
  panoptic_json: annotations/panoptic_{split}.json
  panoptic_root: annotations/panoptic_{split}
  instances_json: annotations/instances_{split}.json
  semantic_root: annotations/semantic_{split}
"""


class FolderTakenError(DatasetError, FileExistsError):
    """The folder holds something else than the data set that was asked for."""


def generate_sample_dataset(
    root: str | os.PathLike,
    *,
    num_train: int = 400,
    num_val: int = 80,
    sides: tuple[int, int] = (96, 160),
    seed: int = 0,
) -> Path:
    """Write the sample data set to ``root``, unless it is there already.

    Layout: ``train/`` and ``val/`` (JPEG), ``annotations/`` (COCO panoptic, instances and semantic,
    see :mod:`.write`), ``catalog.yaml`` with the entries ``sample_train`` and ``sample_val``. The
    set appears at once when it is complete: an interrupted run leaves no ``root`` behind.

    Args:
        sides: shortest and longest height and width of a picture in pixels, both inclusive.
        seed: picture n of a split depends on ``seed``, ``sides``, the split and n alone.

    Returns:
        ``root`` as an absolute path.

    Raises:
        FolderTakenError: ``root`` holds something else, or a sample set made with other parameters.
    """
    root = Path(root).absolute()
    stamp = {
        "version": VERSION,
        "num_train": num_train,
        "num_val": num_val,
        "sides": list(sides),
        "seed": seed,
    }
    if _is_complete(root, stamp):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as workshop:
        made = Path(workshop) / root.name
        for split, count in zip(SPLITS, (num_train, num_val)):
            write_split(made, split, _scenes(split, count, sides, seed))
        (made / "catalog.yaml").write_text("".join(_ENTRY.format(split=split) for split in SPLITS))
        (made / _STAMP).write_text(json.dumps(stamp) + "\n")
        _publish(made, root, stamp)
    return root


def sample_scene(
    split: str, index: int, *, sides: tuple[int, int] = (96, 160), seed: int = 0
) -> Scene:
    """Picture ``index`` (0, 1, ...) of a split.

    Crowds, ignored regions and empty landscapes come at fixed places: the first ten pictures of a
    split hold each of them.
    """
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    height, width = rng.integers(sides[0], sides[1], size=2, endpoint=True).tolist()
    return render_scene(
        rng,
        height,
        width,
        crowd=index % 10 in (2, 7),
        ignored=index % 10 in (4, 8),
        empty=index % 20 == 5,
    )


def _scenes(split: str, count: int, sides: tuple[int, int], seed: int) -> Iterator[Scene]:
    for index in tqdm(range(count), desc=f"painting {split}", unit="picture", disable=None):
        yield sample_scene(split, index, sides=sides, seed=seed)


def _is_complete(root: Path, stamp: dict) -> bool:
    """Whether ``root`` is the set with this ``stamp``; False if there is nothing in its place."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / _STAMP).read_text())
    except (OSError, ValueError):
        raise FolderTakenError(
            f"{root} exists and is no sample data set; choose another folder, or move it away"
        ) from None
    if found != stamp:
        raise FolderTakenError(
            f"{root} holds a sample data set made with {found}, not {stamp}; "
            "delete it, or choose another folder"
        )
    return True


def _publish(made: Path, root: Path, stamp: dict) -> None:
    """Move the finished set into place in one step."""
    try:
        os.rename(made, root)
    except OSError:
        # Another process finished first: good if its set is the same one.
        if not _is_complete(root, stamp):
            raise
