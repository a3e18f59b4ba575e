"""What evaluations read, print and keep."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..errors import DatasetError


def read_json(path: str | os.PathLike) -> Any:
    """
    Raises:
        DatasetError: the file is missing, unreadable or no JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    except ValueError as error:  # no JSON, or no text at all
        raise DatasetError(f"{path} is no valid JSON: {error}") from error


def save_json(content: Any, path: str | os.PathLike) -> None:
    """Write JSON, whole or not at all; NaN, which JSON does not have, becomes null."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(_plain(content), indent=2, allow_nan=False))
    os.replace(temporary, path)


def _plain(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    if isinstance(content, str | int | None):
        return content
    number = float(content)  # numpy's and torch's numbers, too
    return number if math.isfinite(number) else None


def percent_table(
    rows: Mapping[str, Mapping[str, float]],
    columns: Sequence[str],
    *,
    first: str = "",
    last: str | None = None,
) -> str:
    """A table of fractions, in percent.

    Args:
        rows: figures in [0, 1] by row, then by column.
        columns: which figures to show; names of lower case are shown in upper case.
        first: what the rows are.
        last: a column that is shown as it is: a number, no fraction.
    """
    cells = [[name, *(100 * figures[key] for key in columns)] for name, figures in rows.items()]
    headers = [first, *(key.upper() if key.islower() else key for key in columns)]
    if last:
        cells = [[*row, figures[last]] for row, figures in zip(cells, rows.values(), strict=True)]
        headers.append(last)
    return tabulate(cells, headers=headers, floatfmt=".3f")
