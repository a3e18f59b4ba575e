"""Clocks, peaks and the steps of training. Nothing of the project is imported here: the published
code is measured with these, too, in a process where its package has this one's name.
"""

import contextlib
import itertools
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def synchronize(device: str) -> float:
    """The time in seconds, once the device has nothing left to do."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_memory(device: str) -> float:
    """Gigabytes: of the process so far, or of the GPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    # Where there is /proc: getrusage of a child process starts from its parent's peak.
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def training_steps(
    loss_of_step: Callable[[], Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    repeats: int,
    device: str,
    precision: str,
) -> tuple[dict[str, list[float]], float]:
    """Milliseconds of the parts of ``repeats`` steps, and the loss of the first.

    Args:
        precision: of the forward pass; other than float32, by autocast.
    """
    autocast: contextlib.AbstractContextManager = contextlib.nullcontext()
    if precision != "float32":
        autocast = torch.autocast(torch.device(device).type, getattr(torch, precision))
    parts = ("forward ms", "backward ms", "optimizer ms", "step ms")
    spent: dict[str, list[float]] = {name: [] for name in parts}
    losses = []
    for _ in range(repeats + 2):  # two to warm up: the heap grows in both
        times = [synchronize(device)]
        with autocast:
            loss = loss_of_step()
        losses.append(loss.item())
        times.append(synchronize(device))
        loss.backward()
        del loss  # and its graph, which a trainer does not keep until the next step either
        times.append(synchronize(device))
        optimizer.step()
        optimizer.zero_grad()
        times.append(synchronize(device))
        ends = [*itertools.pairwise(times), (times[0], times[-1])]
        for name, (start, end) in zip(parts, ends, strict=True):
            spent[name].append(1000 * (end - start))
    return {name: times[2:] for name, times in spent.items()}, losses[0]


def clipped_adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Of models that do not bring an optimizer: of all gradients together, the published norm."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def clip(*_: Any) -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)

    optimizer.register_step_pre_hook(clip)
    return optimizer
