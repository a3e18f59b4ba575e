"""Errors that are the user's to mend: tools print one line, no traceback, and exit with 2."""

import argparse
import contextlib
import sys
from collections.abc import Iterator


class UserError(ValueError):
    """Something the user gave is wrong; the message names the file, the key and the remedy."""


class ConfigError(UserError):
    """A configuration file or a ``KEY VALUE`` override cannot be used."""


class DatasetError(UserError):
    """A data set, one of its files or one of its records cannot be used."""


def whole_number(text: str) -> int:
    """One from 0 on: the ``type`` of a tool's option."""
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{value} is below 0")
    return value


def positive(text: str) -> int:
    """A whole number from 1 on: the ``type`` of a tool's option."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


@contextlib.contextmanager
def report_user_errors() -> Iterator[None]:
    """Turn a :class:`UserError` inside the block into one line on stderr and exit status 2."""
    try:
        yield
    except UserError as error:
        # A loader's worker hands its error over with the traceback as a part of the message.
        message = str(error).rpartition(f"{type(error).__name__}: ")[2].strip()
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
