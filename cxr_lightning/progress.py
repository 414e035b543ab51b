"""Progress bars."""

import sys
from typing import Any

from tqdm import tqdm

QUIET = 30.0
"""Seconds between two lines in a log file; shorter work says nothing there."""


def progress_bar(*args: Any, **kwargs: Any) -> "tqdm[Any]":
    """A tqdm bar on stderr; where that is no terminal but a log file, a line every half minute."""
    if not sys.stderr.isatty():
        kwargs = {"delay": QUIET, "mininterval": QUIET, "maxinterval": QUIET, **kwargs}
    return tqdm(*args, **kwargs)
