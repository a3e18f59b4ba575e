"""The published weights by name, such as ``zoo://coco/panoptic/R50`` (docs/MODEL_ZOO.md).

The weights are under CC BY-NC 4.0. They are fetched once, into Detectron2's cache, and checked.
"""

import difflib
import functools
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from detectron2.utils.file_io import PathManager

from ..errors import ConfigError

PREFIX = "zoo://"


@dataclass(frozen=True)
class ZooModel:
    """A published model.

    Attributes:
        name: data set, task and backbone, ``coco/panoptic/R50``.
        config: path of its config file.
        dataset: that it was evaluated on.
        results: published metrics, in percent.
        schedule: how long it was trained.
        id: of the published run.
        url: of the weights.
    """

    name: str
    config: str
    dataset: str
    results: dict[str, float]
    schedule: str
    id: str
    url: str

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]


@functools.cache
def list_models() -> dict[str, ZooModel]:
    """The published models by name."""
    rows = json.loads(Path(__file__).with_name("zoo.json").read_text("utf-8"))
    return {row["name"]: ZooModel(**row) for row in rows}


def find_model(path: str) -> ZooModel | None:
    """The published model that a ``zoo://`` name means, or a file's name; None if none does.

    Raises:
        ConfigError: there is no model of that ``zoo://`` name.
    """
    models = list_models()
    if not path.startswith(PREFIX):
        by_file = {model.file_name: model for model in models.values()}
        return by_file.get(os.path.basename(path))
    name = path.removeprefix(PREFIX).strip("/")
    if name not in models:
        close = [n for n in models if n.lower().startswith(name.lower())]
        close = (close or difflib.get_close_matches(name, models, cutoff=0.3))[:3]
        raise ConfigError(
            f"{path}: there is no such published model; the nearest are "
            f"{', '.join(PREFIX + n for n in close or list(models)[:3])} (all: docs/MODEL_ZOO.md)"
        )
    return models[name]


def fetch(model: ZooModel) -> str:
    """The local path of a model's weights: below ``MASK2FORMER_ZOO``, or downloaded and cached.

    Raises:
        ConfigError: the network cannot be reached, or what it gave has another checksum.
    """
    folder = os.environ.get("MASK2FORMER_ZOO")
    if folder:
        kept = Path(folder).expanduser() / model.file_name
        if kept.is_file():
            check_file(kept)
            return str(kept)
    try:
        path = Path(PathManager.get_local_path(model.url))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{PREFIX}{model.name} cannot be fetched ({error}); fetch {model.url} where there is a "
            "network, and name the file instead, or the folder it is in with MASK2FORMER_ZOO"
        ) from error
    check_file(path, remove=str(path) != model.url)
    return str(path)


def check_file(path: Path, *, remove: bool = False) -> None:
    """Compare a file's MD5 with the six hexadecimal digits of its name, as Detectron2's zoo has it.

    Args:
        remove: delete the file if they differ: it is one of the cache.

    Raises:
        ConfigError: they differ.
    """
    expected = re.search(r"_([0-9a-f]{6})\.pkl$", path.name)
    if expected is None:
        return
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if not digest.hexdigest().startswith(expected[1]):
        if remove:
            path.unlink(missing_ok=True)
        remedy = "it was removed from the cache: try" if remove else "delete it and fetch it"
        raise ConfigError(
            f"{path} is damaged: its MD5 begins with {digest.hexdigest()[:6]}, not with "
            f"{expected[1]} as its name says; {remedy} again"
        )
