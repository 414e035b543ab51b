"""What the README says can be typed."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from cxr_lightning.cli import COMMANDS, STAGE_COMMANDS, main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
LINES = [
    line.split("#")[0].strip()
    for language, block in BLOCKS
    if language in ("", "bash", "sh")
    for line in block.replace("\\\n", " ").splitlines()
]
CXR = [line for line in LINES if line.startswith("cxr ")]
PYTHON = [block for language, block in BLOCKS if language == "python"]
MAKE = [line for line in LINES if line.startswith("make ")]


def test_readme_has_commands() -> None:
    assert len(CXR) > 5
    assert len(MAKE) > 2
    assert PYTHON


@pytest.mark.parametrize("block", PYTHON)
@pytest.mark.filterwarnings("ignore:side and severity are not followed")
def test_python_runs(
    block: str, products: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "finetune").mkdir(parents=True)
    (tmp_path / "runs" / "finetune" / "product").symlink_to(products / "generator")
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert list(tmp_path.glob("pictures/*.png"))


@pytest.mark.parametrize("line", [line for line in CXR if line.split()[1] in STAGE_COMMANDS])
def test_stage_commands_parse(
    line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        main([*shlex.split(line)[1:], "--print_config"])
    assert stop.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize("line", [line for line in CXR if line.split()[1] in COMMANDS])
def test_own_commands_parse(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*shlex.split(line)[1:], "--print_config"])
    assert stop.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize("line", MAKE)
def test_make_targets_exist(line: str) -> None:
    run = subprocess.run(["make", "-n", *shlex.split(line)[1:]], cwd=ROOT, capture_output=True)
    assert run.returncode == 0, run.stderr


def test_pictures_exist() -> None:
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file(), path


def test_make_help_lists_every_target() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    targets = re.search(r"\.PHONY: (.*)", (ROOT / "Makefile").read_text())
    assert targets is not None
    for target in targets.group(1).split():
        assert re.search(rf"^{target} ", listed, re.MULTILINE), target
