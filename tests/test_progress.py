"""Progress bars on a terminal and in a log file."""

import io
import time

import pytest

from cxr_lightning import progress
from cxr_lightning.progress import bar_if_slow, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> str:
    monkeypatch.setattr("sys.stderr", stream)
    assert list(progress_bar(range(3), "work", file=stream)) == [0, 1, 2]
    return stream.getvalue()


def test_a_terminal_shows_a_bar_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "work: 100%" in _shown(monkeypatch, Terminal())


def test_a_log_file_says_nothing_of_short_work(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _shown(monkeypatch, io.StringIO()) == ""


def test_a_log_file_tells_how_far_long_work_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET", 1e-9)
    assert "work: 100%" in _shown(monkeypatch, io.StringIO())


@pytest.mark.parametrize(("quiet", "shown"), [(30.0, False), (1e-9, True)])
def test_short_work_shows_no_bar_where_it_is_mostly_short(
    monkeypatch: pytest.MonkeyPatch, quiet: float, shown: bool
) -> None:
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(progress, "QUIET", quiet)
    for _ in bar_if_slow(range(3), "work"):
        time.sleep(0.11)  # a bar is drawn ten times a second at most
    assert ("work" in stream.getvalue()) is shown
