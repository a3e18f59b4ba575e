"""What the sub-commands of ``tools/benchmark.py`` share."""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch


def add_common_arguments(parser: argparse.ArgumentParser, *, repeats: int) -> None:
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")


def measure(run: Callable[[], object], repeats: int, device: str = "cpu") -> float:
    """Median milliseconds of ``run``, after two rounds of warm-up."""
    cuda = torch.device(device).type == "cuda"
    times = []
    for _ in range(repeats + 2):
        if cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        if cuda:
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[2:])


def describe_machine(device: str = "cpu") -> str:
    if torch.device(device).type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        where = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    return (
        f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )
