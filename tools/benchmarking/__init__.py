"""What the sub-commands of ``tools/benchmark.py`` share."""

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tabulate import tabulate

from mask2former.errors import UserError, positive

from .measuring import synchronize


class Timing(NamedTuple):
    """Of several rounds; in milliseconds unless a table says otherwise."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, times: Iterable[float]) -> "Timing":
        times = sorted(times)
        return cls(statistics.median(times), times[0], times[-1])

    def __str__(self) -> str:
        median, least, most = map(three_digits, self)
        return f"{median} ({least} to {most})"


def three_digits(value: float) -> str:
    """Three, but no exponent where a number has more before its point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


class Report:
    """What is found: printed as it comes, and kept for ``--json``."""

    def __init__(self, path: Path | None) -> None:
        if path is not None and not path.parent.is_dir():
            raise UserError(f"--json {path}: there is no folder {path.parent}")
        self.path = path
        self.content: dict[str, Any] = {"command": " ".join(sys.argv[1:])}

    def machine(self, device: str = "cpu") -> None:
        self.content["machine"] = describe_machine(device)
        print(self.content["machine"])

    def table(
        self,
        name: str,
        rows: Sequence[Mapping[str, Any]],
        *,
        floats: str | Sequence[str] | None = None,
    ) -> None:
        """Print rows that have the same columns; a :class:`Timing` as median, least and most.

        Args:
            floats: format of other numbers, or one for each column (default: three digits).
        """
        self.content[name] = [{key: _for_json(value) for key, value in row.items()} for row in rows]

        def shown(value: Any) -> Any:
            if floats is None and isinstance(value, float):
                return three_digits(value)  # tabulate leaves numbers among text as they are
            return str(value) if isinstance(value, Timing) else value

        texts = [{key: shown(value) for key, value in row.items()} for row in rows]
        print(tabulate(texts, headers="keys", floatfmt=floats or ".12g"))

    def figures(self, text: str, **figures: Any) -> None:
        """Print a line with figures, ``text.format(**figures)``."""
        self.content |= {name: _for_json(value) for name, value in figures.items()}
        print(text.format(**figures))

    def close(self) -> None:
        if self.path is not None:
            self.path.write_text(json.dumps(self.content, indent=1) + "\n")


def _for_json(value: Any) -> Any:
    return value._asdict() if isinstance(value, Timing) else value


def add_common_arguments(parser: argparse.ArgumentParser, *, repeats: int | None) -> None:
    """``repeats``: the default of that option, None for none."""
    if repeats is not None:
        parser.add_argument("--repeats", type=positive, default=repeats)
    parser.add_argument("--threads", type=positive, help="CPU threads (default: torch's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")


def measure(run: Callable[[], object], repeats: int, device: str = "cpu") -> Timing:
    """Milliseconds of ``run``, after two rounds of warm-up."""
    times = []
    for _ in range(repeats + 2):
        started = synchronize(device)
        run()
        times.append(1000 * (synchronize(device) - started))
    return Timing.of(times[2:])


def copy_rate(device: str) -> float:
    """Gigabytes that a copy of a large tensor reads and writes in a second."""
    source = torch.ones(64 << 20, device=device)
    target = torch.ones_like(source)
    return 2 * source.nbytes / 1e6 / measure(lambda: target.copy_(source), 5, device).median


def describe_machine(device: str = "cpu") -> str:
    if torch.device(device).type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        where = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    return (
        f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )
