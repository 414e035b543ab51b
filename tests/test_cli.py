"""The command line: help, versions, mistakes."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cxr_lightning import __version__
from cxr_lightning.cli import COMMANDS, STAGE_COMMANDS, find_variant, main, state_flags

CONFIGS = Path(__file__).parents[1] / "configs"


def fails(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """Runs a command that must fail as a user's mistake; returns what it says."""
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    said = capsys.readouterr().out
    for command in {**COMMANDS, **STAGE_COMMANDS}:
        assert f"\n  {command} " in said


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from cxr_lightning.cli import main; main(['--help']); "
        "print(sorted({'torch', 'lightning', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    "command", ["prepare", "generate", "interpolate", "edit", "evaluate", "report", "push"]
)
def test_help_of_a_command_explains_every_option(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.split("\n  --")
    options = [line for line in lines[1:] if not line.startswith(("config", "print_config"))]
    assert len(options) > 1
    bare = [line for line in options if len(line.split()) < 6]
    assert not bare, f"options without help: {bare}"


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    said = fails(capsys, "genrate")
    assert "genrate" in said
    assert "generate" in said


def test_mistyped_option_of_a_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--sede" in fails(capsys, "generate", "--model", "m", "--out", "o", "--sede", 1)


@pytest.mark.parametrize(
    "flag",
    [
        "--model.init_args.widht=8",
        "--data.batchsize=8",
        "--trainer.max_step=8",
        "--samples.cuont=8",
    ],
)
def test_mistyped_key_of_a_configuration_is_named(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = fails(capsys, "fit", "--config", CONFIGS / "vae.yaml", "--data.root", "x", flag)
    assert flag.split("=")[0].split(".")[-1] in said


def test_mistyped_key_in_a_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("trainer:\n  max_step: 5\n")
    args = ("fit", "--config", CONFIGS / "vae.yaml", "--config", overlay, "--data.root", "x")
    assert "max_step" in fails(capsys, *args)


def test_missing_data_root_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "data.root" in fails(capsys, "fit", "--config", CONFIGS / "vae.yaml")


def smoke(stage: str, root: Path, *flags: str) -> list[str]:
    configs = [str(CONFIGS / f"{stage}.yaml"), str(CONFIGS / "scale" / "cpu-smoke.yaml")]
    run = [f"--config={path}" for path in configs]
    return ["fit", *run, f"--data.root={root}", *flags]


def test_folder_without_prepared_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    said = fails(capsys, *smoke("vae", tmp_path, f"--trainer.default_root_dir={run}"))
    assert str(tmp_path) in said
    assert "cxr prepare" in said


def test_wrong_image_size(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data.image_size=64", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    said = fails(capsys, *smoke("vae", prepared, *flags))
    assert "data.image_size" in said
    assert not (tmp_path / "run").exists()
    assert "64" in said
    assert "32" in said


def test_stage_two_without_stage_one(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--model.init_args.autoencoder={tmp_path / 'vae'}"]
    said = fails(capsys, *smoke("ddpm", prepared, *flags))
    assert "model.autoencoder" in said
    assert "configs/vae.yaml" in said


def test_product_of_the_wrong_stage(
    prepared: Path, products: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--model.init_args.autoencoder={products / 'encoder'}"]
    said = fails(capsys, *smoke("ddpm", prepared, *flags))
    assert "'encoder'" in said
    assert "'autoencoder'" in said


def test_a_flag_needs_no_value() -> None:
    flags = {"strict"}
    assert state_flags(["--strict"], flags) == ["--strict=true"]
    assert state_flags(["--strict", "--size", "8"], flags) == ["--strict=true", "--size", "8"]
    for plain in (["--strict", "false"], ["--strict=false"], ["--size", "8"], []):
        assert state_flags(plain, flags) == plain


@pytest.mark.parametrize(
    ("args", "name"),
    [
        (["prepare", "--root", "x"], "prepare"),
        (["prepare", "--describe", "x"], "describe"),
        (["prepare", "--out", "x", "--describe=y"], "describe"),
        (["benchmark", "--data", "x"], "benchmark_data"),
        (["benchmark", "--data.root", "x"], "benchmark"),
        (["benchmark", "--peers", "--size", "8"], "benchmark_peers"),
        (["fit", "--data", "x"], "fit"),
    ],
)
def test_variants_of_a_command(args: list[str], name: str) -> None:
    assert find_variant(args) == name


def test_a_variant_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'describe' is not a command" in fails(capsys, "describe", "--describe", "x")


def test_an_interruption_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(args: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cxr_lightning.cli.run", interrupt)
    with pytest.raises(SystemExit) as stop:
        main(["prepare"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "cxr prepare: interrupted; give the same command again.\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_error(unbuffered: str) -> None:
    command = [sys.executable, "-m", "cxr_lightning", "--help"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_a_broken_pipe_elsewhere_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: list[str]) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("cxr_lightning.cli.run", broken)
    with pytest.raises(BrokenPipeError):
        main(["prepare"])


@pytest.mark.parametrize(
    ("full_disk", "place"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "set/train.csv"), "set/train.csv"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "out"),
    ],
)
def test_a_full_disk_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    full_disk: Exception,
    place: str,
) -> None:
    def full(args: list[str]) -> None:
        raise ValueError("wrapped") from full_disk

    monkeypatch.setattr("cxr_lightning.cli.run", full)
    assert fails(capsys, "generate") == (
        f"cxr generate: error: {place}: no space is left on its disk; make room and give the same "
        "command again.\n"
    )
