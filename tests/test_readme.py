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


def test_make_judges_stages_by_the_encoders_that_are_there(tmp_path: Path) -> None:
    def said(target: str, *settings: str) -> str:
        command = ["make", "-n", target, f"RUNS={tmp_path}", *settings]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "--generation" not in said("ddpm")
    assert f"--generation.encoder {tmp_path}/moco/product" in said("finetune")
    (tmp_path / "moco/product").mkdir(parents=True)
    flags = f"--generation.extractor encoder --generation.weights {tmp_path}/moco/product"
    assert flags in said("ddpm")
    (tmp_path / "moco_held_out/product").mkdir(parents=True)
    held_out = f"{tmp_path}/moco_held_out/product"
    for target in ("ddpm", "finetune"):
        assert f"--generation.weights {held_out}" in said(target)  # no loss has seen it
        assert f"--generation.encoder_held_out {held_out}" in said(target)
        assert "encoder_held_out" not in said(target, "SCORES=")
    wanted = f"--encoder_held_out {held_out} --extractor encoder={held_out}"
    assert wanted in said("evaluate")
    assert "--seed_everything 1" in said("moco-held-out")
    assert "moco-held-out" in said("pipeline")
    assert "moco-held-out" not in said("pipeline", "SCORES=")
