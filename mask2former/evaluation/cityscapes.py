"""Cityscapes' official scoring, which cityscapesscripts does, on one machine.

cityscapesscripts 2.3 is older than numpy 2.4. What keeps the two from working together is mended in
the script that is about to run, and nowhere else.
"""

import importlib
import importlib.util
from collections import OrderedDict
from typing import Any

import numpy as np
from detectron2.evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from detectron2.utils import comm

from ..errors import ConfigError


class InstanceEvaluator(CityscapesInstanceEvaluator):
    """AP and AP50 of Cityscapes."""

    def __init__(self, dataset_name: str) -> None:
        _need_scripts(dataset_name)
        super().__init__(dataset_name)

    def evaluate(self) -> OrderedDict | None:
        if comm.is_main_process():
            _mend("evalInstanceLevelSemanticLabeling")
        return super().evaluate()


class SemanticEvaluator(CityscapesSemSegEvaluator):
    """IoU and iIoU of Cityscapes' classes and categories."""

    def __init__(self, dataset_name: str) -> None:
        _need_scripts(dataset_name)
        super().__init__(dataset_name)

    def evaluate(self) -> OrderedDict | None:
        if comm.is_main_process():
            _mend("evalPixelLevelSemanticLabeling")
        return super().evaluate()


class _OlderNumpy:
    """numpy with ``in1d``, which numpy 2.4 dropped for ``isin``."""

    in1d = staticmethod(np.isin)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def _mend(name: str) -> None:
    script = importlib.import_module(f"cityscapesscripts.evaluation.{name}")
    script.np = _OlderNumpy()
    # It keeps its matches as matches.json in the working directory, which nobody reads, and which
    # fails on the counts of numpy 2.4, which are no Python integers.
    script.writeDict2JSON = lambda *_: None


def _need_scripts(dataset_name: str) -> None:
    if importlib.util.find_spec("cityscapesscripts") is None:
        raise ConfigError(
            f"data set {dataset_name} is scored by Cityscapes' own scripts, which are not "
            "installed: pip install cityscapesscripts"
        )
