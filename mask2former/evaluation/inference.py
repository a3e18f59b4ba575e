"""Running a model over a data set, and where the time goes."""

import itertools
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_context
from detectron2.utils import comm
from detectron2.utils.logger import log_every_n_seconds
from tabulate import tabulate
from torch import nn

from .report import save_json

logger = logging.getLogger(__name__)

Batch = list[dict[str, Any]]


def inference_on_dataset(
    model: nn.Module,
    loader: Iterable[Batch],
    evaluator: DatasetEvaluator | Sequence[DatasetEvaluator],
    *,
    ims_per_batch: int = 1,
    output_dir: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Run ``model`` on ``loader`` and score its predictions, as Detectron2's function of this name.

    Args:
        loader: batches of any size.
        ims_per_batch: pictures the model is given at a time, whatever the loader's batches are.
            Pictures of a batch are padded to one size, which the model's figures feel a little.
        output_dir: where to write ``results.json``: ``results``, the number of ``pictures`` and
            the ``seconds`` of this worker, see :class:`Stopwatch`; None: nowhere.

    Returns:
        What the evaluator returns; empty on all but the main worker.
    """
    if not isinstance(evaluator, DatasetEvaluator):
        evaluator = DatasetEvaluators(list(evaluator))
    evaluator.reset()
    pictures = 0
    with inference_context(model), torch.no_grad(), Stopwatch(model) as watch:
        for batch in _batches(loader, ims_per_batch):
            watch.lap("data")
            outputs = model(batch)
            watch.lap("post-processing" if watch.knows_head else "model")
            evaluator.process(batch, outputs)
            del outputs  # before the next ones: they may be hundreds of megabytes
            watch.lap("scoring")
            pictures += len(batch)
            log_every_n_seconds(logging.INFO, f"{pictures} pictures evaluated", n=10)
        results = evaluator.evaluate() or {}
        watch.lap("scoring at the end")
    logger.info("Time spent by this worker:\n%s", watch.table(pictures))
    if output_dir and comm.is_main_process():
        content = {"results": results, "pictures": pictures, "seconds": watch.seconds}
        save_json(content, path := Path(output_dir) / "results.json")
        logger.info("Results saved to %s", path)
    return results


def _batches(loader: Iterable[Batch], size: int) -> Iterator[Batch]:
    pictures = itertools.chain.from_iterable(loader)
    while batch := list(itertools.islice(pictures, size)):
        yield batch


class Stopwatch:
    """The seconds that each part of an evaluation takes.

    ``data``: waiting for the loader. ``model``: the network. ``post-processing``: from its outputs
    to segmentations; a part of ``model`` where that has no ``sem_seg_head`` to tell by.
    ``scoring``: what evaluators do with each picture. ``scoring at the end``: the rest, with the
    wait for other workers.
    """

    def __init__(self, model: nn.Module) -> None:
        self.seconds: dict[str, float] = {}
        self.head = getattr(getattr(model, "module", model), "sem_seg_head", None)
        self.knows_head = isinstance(self.head, nn.Module)

    def __enter__(self) -> "Stopwatch":
        if self.knows_head:
            self.hook = self.head.register_forward_hook(lambda *_: self.lap("model"))
        self.last = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self.knows_head:
            self.hook.remove()

    def lap(self, part: str) -> None:
        """Count the time since the last lap for ``part``."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self.last
        self.last = now

    def table(self, pictures: int) -> str:
        """The seconds of each part, in all and per picture."""
        parts = {**self.seconds, "all": sum(self.seconds.values())}
        rows = [(part, seconds, seconds / max(pictures, 1)) for part, seconds in parts.items()]
        return tabulate(rows, headers=["", "seconds", "per picture"], floatfmt=".4f")
