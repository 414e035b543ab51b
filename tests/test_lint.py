"""Ruff finds nothing: undefined names among what it looks for."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff_finds_nothing(command: list[str]) -> None:
    run = [sys.executable, "-m", "ruff", *command, str(ROOT)]
    found = subprocess.run(run, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_ruff_looks_for_names_that_do_not_exist(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text('"""A module."""\n\nvalue = nowhere\n')
    run = [sys.executable, "-m", "ruff", "check", f"--config={ROOT}/pyproject.toml", str(tmp_path)]
    found = subprocess.run(run, capture_output=True, text=True)
    assert "F821" in found.stdout
