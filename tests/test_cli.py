"""The command line: help, versions, mistakes."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cxr_lightning import __version__
from cxr_lightning.arguments import explain
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


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ("--sede 1", "sede: there is no such option; use --seed, or see 'cxr generate --help'."),
        ("more", "more: there is no such option; see 'cxr generate --help'."),
        ("--count", "count: its value is missing; see 'cxr generate --help'."),
        ("--steps x", "steps: x is not possible; use a whole number."),
        ("--format gif", "format: gif is not possible; use png, jpeg or dicom."),
        ("--guidance_interval 0.1 high", "guidance_interval: high is not possible; use a number."),
        ("--config nowhere.yaml", "config: there is no file {cwd}/nowhere.yaml; give another."),
    ],
)
def test_mistakes_in_the_options_of_a_command(
    args: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = fails(capsys, "generate", "--model", "m", "--out", "o", *args.split())
    assert said == f"cxr generate: error: {sentence.format(cwd=Path.cwd())}\n"


def test_options_that_are_missing_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(capsys, "generate") == (
        "cxr generate: error: model, out: not given; it is an option, or a line in the file of "
        "--config.\n"
    )


def test_one_value_where_a_file_should_have_a_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text("parts: a\n")
    args = ("--source", "mixture", "--root", "r", "--out", "o", "--config", tmp_path / "mine.yaml")
    assert "write it as a list, such as [a]." in fails(capsys, "prepare", *args)


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        (
            "--model.init_args.widht=8",
            "model.init_args.widht: MoCo has no such setting; use width, or see "
            "'cxr fit --model.help cxr_lightning.stages.moco.MoCo'.",
        ),
        (
            "--data.batchsize=8",
            "data.batchsize: there is no such option; use --data.batch_size, or see "
            "'cxr fit --help'.",
        ),
        ("--trainer.max_steps=8.5", "trainer.max_steps: 8.5 is not possible; use a whole number."),
        ("--model.init_args.bn=x", "model.init_args.bn: x is not possible; use grouped or eval."),
        (
            "--model.init_args.clustering.weight=x",
            "model.init_args.clustering.weight: x is not possible; use a number.",
        ),
        (
            "--model.init_args.optimizer.init_args.lr=x",
            "model.init_args.optimizer.init_args.lr: x is not possible; use a number.",
        ),
        (
            "--model.init_args.optimizer=torch.optim.Nope",
            "model.init_args.optimizer: torch.optim.Nope cannot be imported; give the path of a "
            "class.",
        ),
        ("--model.class_path=a.B", "model: a.B cannot be imported; give the path of a class."),
        (
            "--generation.sampling.spacing=x",
            "generation.sampling.spacing: x is not possible; use beta, trailing or logsnr.",
        ),
        (
            "--seed_everything=x",
            "seed_everything: x is not possible; use true or false, or a whole number.",
        ),
    ],
)
def test_mistakes_in_the_options_of_a_stage(
    flag: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = fails(capsys, "fit", "--config", CONFIGS / "moco.yaml", "--data.root", "x", flag)
    assert said.endswith(f"cxr fit: error: {sentence}\n")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    args = ("--config", CONFIGS / "vae.yaml", "--config", CONFIGS / "scale/gpu8.yaml")
    for command in ("fit", "benchmark"):
        said = fails(capsys, command, *args, "--data.root", "x")
        assert said.endswith(
            f"cxr {command}: error: trainer.accelerator: gpu was asked for and there is no GPU "
            "here; use --config configs/scale/cpu.yaml.\n"
        )


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--trainer.strategy=foo", "trainer: You selected an invalid strategy name: .*foo.*"),
        ("--trainer.devices=0", r"trainer: `Trainer\(devices='0'\)` value is not a valid input .*"),
        ("--trainer.max_steps=-5", "trainer: `max_steps` must be a non-negative integer .*"),
        ("--trainer.accelerator=tpu", "trainer: Requirement 'torch_xla.*"),
    ],
)
def test_mistakes_that_the_trainer_finds(
    flag: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = fails(capsys, *smoke("vae", tmp_path), flag)
    assert re.search(f"cxr fit: error: {sentence}; change that in trainer.\n$", said)


def test_mistyped_key_in_a_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("trainer:\n  max_step: 5\n")
    args = ("fit", "--config", CONFIGS / "vae.yaml", "--config", overlay, "--data.root", "x")
    assert (
        "trainer.max_step: there is no such option; use --trainer.max_steps, or see "
        "'cxr fit --help'.\n"
    ) in fails(capsys, *args)


def test_missing_data_root_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    said = fails(capsys, "fit", "--config", CONFIGS / "vae.yaml")
    assert said.endswith(
        "error: data.root: not given; it is an option, or a line in the file of --config.\n"
    )


def test_a_mistake_of_a_kind_not_foreseen_is_one_line() -> None:
    assert explain("Something\n  odd:\n  here", "cxr fit", []) == (
        "Something odd: here; see 'cxr fit --help'."
    )


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
        (["benchmark", "--ladder", "fp32", "--config", "x"], "benchmark_ladder"),
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
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "set/train.csv"), "set/train.csv"),
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


def test_a_cosine_without_a_last_step_is_one_sentence(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = Path(__file__).parents[1] / "configs"
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "fit",
                f"--config={configs}/vae.yaml",
                f"--config={configs}/scale/cpu-smoke.yaml",
                f"--data.root={prepared}",
                f"--trainer.default_root_dir={tmp_path}",
                "--trainer.max_steps=-1",
                "--trainer.max_time=00:00:00:10",
                "--model.init_args.decay=cosine",
            ]
        )
    assert stop.value.code == 2
    assert "error: trainer.max_steps: the learning rate falls" in capsys.readouterr().err


def test_all_missing_inputs_of_a_stage_are_named_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    folder = f"--trainer.default_root_dir={tmp_path / 'run'}"
    config = [f"--config={CONFIGS}/finetune.yaml", f"--config={CONFIGS}/scale/cpu.yaml"]
    with pytest.raises(SystemExit) as stop:
        main(["fit", *config, f"--data.root={tmp_path}/data", folder])
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    for name in ("data.root", "model.generator", "model.encoder", "generation.encoder"):
        assert f"{name} " in said
    assert not (tmp_path / "run").exists()


def test_help_of_benchmark_names_its_variants_and_rungs(capsys):
    from cxr_lightning.benchmark import RUNGS

    main(["benchmark", "--help"])
    said = capsys.readouterr().out
    for name in ("--ladder", "--data", "--peers", *RUNGS):
        assert name in said
