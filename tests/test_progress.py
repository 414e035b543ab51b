"""Progress bars on a terminal and in a log file."""

import io

import pytest

from cxr_lightning import progress
from cxr_lightning.progress import progress_bar


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
