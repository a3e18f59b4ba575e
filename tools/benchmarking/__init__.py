"""What the sub-commands of ``tools/benchmark.py`` share."""

import argparse
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mask2former.errors import positive


def add_common_arguments(parser: argparse.ArgumentParser, *, repeats: int | None) -> None:
    """``repeats``: the default of that option, None for none."""
    if repeats is not None:
        parser.add_argument("--repeats", type=positive, default=repeats)
    parser.add_argument("--threads", type=positive, help="CPU threads (default: torch's)")


def measure(run: Callable[[], object], repeats: int, device: str = "cpu") -> float:
    """Median milliseconds of ``run``, after two rounds of warm-up."""
    times = []
    for _ in range(repeats + 2):
        started = synchronize(device)
        run()
        times.append(1000 * (synchronize(device) - started))
    return statistics.median(times[2:])


def synchronize(device: str) -> float:
    """The time in seconds, once the device has nothing left to do."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory(device: str) -> float:
    """Gigabytes: of the process so far, or of the GPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    # Where there is /proc: getrusage of a child process starts from its parent's peak.
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def describe_machine(device: str = "cpu") -> str:
    if torch.device(device).type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        where = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    return (
        f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )
