"""Progress bars."""

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")

QUIET = 30.0
"""Seconds between two lines in a log file; shorter work says nothing there."""


def progress_bar(*args: Any, **kwargs: Any) -> "tqdm[Any]":
    """A tqdm bar on stderr; where that is no terminal but a log file, a line every half minute."""
    if not sys.stderr.isatty():
        kwargs = {"delay": QUIET, "mininterval": QUIET, "maxinterval": QUIET, **kwargs}
    return tqdm(*args, **kwargs)


def bar_if_slow(iterable: Iterable[T], title: str) -> Iterable[T]:
    """A bar that appears after half a minute: for work that is short for most data."""
    return progress_bar(iterable, title, delay=QUIET, leave=False)
