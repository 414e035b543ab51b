"""One task in several processes: all done, one failing, one killed."""

import os
import time
from functools import partial
from pathlib import Path

import pytest
from process_tasks import fail, write_number

from cxr_lightning.errors import UserError
from cxr_lightning.synthesis.processes import run_processes


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_all_processes_do_their_part_and_report(tmp_path: Path) -> None:
    reports: list[int] = []
    run_processes(partial(write_number, tmp_path), 3, reports.append)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0", "1", "2"]
    assert len({file.read_text() for file in tmp_path.iterdir()} | {str(os.getpid())}) == 4
    assert sorted(reports) == [1, 2, 3]


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        ("user", UserError, r"^count: it is wrong\."),
        ("disk", OSError, "No space left on device"),
        ("unsendable", RuntimeError, "UnsendableError: a b"),
        ("kill", UserError, r"^devices: one of 2 processes was killed \(exit code -9\), .* again"),
    ],
)
def test_where_one_fails_the_others_are_ended_and_the_error_is_raised(
    tmp_path: Path, error: str, expected: type[Exception], message: str
) -> None:
    start = time.monotonic()
    with pytest.raises(expected, match=message):
        run_processes(partial(fail, tmp_path, error), 2, lambda _: None)
    assert time.monotonic() - start < 120
    for file in tmp_path.iterdir():
        assert not is_running(int(file.read_text()))
