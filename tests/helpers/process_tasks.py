"""Tasks for several processes: light to import, since each process does."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from cxr_lightning.errors import UserError

Report = Callable[[int], object]


class UnsendableError(Exception):
    """An exception that cannot be made again from what pickle keeps of it."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def write_number(folder: Path, number: int, report: Report) -> None:
    """Writes a file; a process more reports more."""
    (folder / str(number)).write_text(str(os.getpid()))
    report(number + 1)


def fail(folder: Path, error: str, number: int, report: Report) -> None:
    """Fails in process 1; the others would never end by themselves."""
    write_number(folder, number, report)
    while number != 1 or not (folder / "0").is_file():
        time.sleep(0.05)
    if error == "user":
        raise UserError("count: it is wrong.")
    if error == "disk":
        raise OSError(28, "No space left on device")
    if error == "unsendable":
        raise UnsendableError("a", "b")
    os.kill(os.getpid(), signal.SIGKILL)
