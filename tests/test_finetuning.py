"""Stage 4 through the command line: every mode, the control, and the guards."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import run_main
from safetensors.numpy import load_file

from cxr_lightning.artifacts import check_product, save_product
from cxr_lightning.cli import main
from cxr_lightning.networks.encoder import Encoder

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The product of another encoder than that of `products`."""
    folder = tmp_path_factory.mktemp("held_out") / "encoder"
    torch.manual_seed(1)
    network = Encoder(image_size=32, width=4, backbone="small", dim=6)
    save_product(folder, "encoder", {"encoder": network}, {})
    return folder


def fit_args(prepared: Path, products: Path, held_out: Path | None, run: Path) -> list[str]:
    """The command of a short fine-tuning, as a user would type it."""
    flags = {
        "data.root": prepared,
        "trainer.default_root_dir": run,
        "model.init_args.generator": products / "generator",
        "model.init_args.encoder": products / "encoder",
        "generation.encoder": products / "encoder",
        "generation.sampling.steps": 1,
        "samples.sampling.steps": 1,
    }
    if held_out is not None:
        flags["generation.encoder_held_out"] = held_out
    configs = [f"--config={CONFIGS}/{name}.yaml" for name in ("finetune", "scale/cpu-smoke")]
    return ["fit", *configs, *(f"--{key}={value}" for key, value in flags.items())]


def logged(run: Path) -> dict[str, list[float]]:
    """What was logged, by key."""
    found: dict[str, list[float]] = {}
    with (run / "csv/version_0/metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for key, value in row.items():
                if value:
                    found.setdefault(key, []).append(float(value))
    return found


@pytest.mark.parametrize(
    "flags",
    [
        ["--model.init_args.mode=x0", "--model.init_args.gradient_checkpointing=true"],
        ["--model.init_args.mode=hidden", "--model.init_args.representation_weight=0.5"],
        ["--model.init_args.mode=reverse", "--model.init_args.reverse_steps=2"],
        ["--model.init_args.mode=posterior", "--generation.extractor=null"],
        ["--model.init_args.representation_weight=0"],
    ],
    ids=["x0", "hidden", "reverse", "posterior", "control"],
)
def test_every_mode_and_the_control_run_by_flags_alone(
    prepared: Path, products: Path, held_out: Path, tmp_path: Path, flags: list[str]
) -> None:
    main([*fit_args(prepared, products, held_out, tmp_path), *flags])
    found = logged(tmp_path)
    is_control = flags == ["--model.init_args.representation_weight=0"]
    for name in ("representation", "gradient_ratio"):
        assert (f"finetune/train/{name}" in found) is not is_control
    guards = ("representation", "diffusion_ratio", "rrs", "held_out_rrs", "held_out_rrs_vae")
    for name in guards:
        assert np.isfinite(found[f"finetune/valid/{name}"]).all()
    # before the first step, and at the validations after steps 2 and 4
    assert len(found["finetune/valid/held_out_rrs"]) == 3
    assert len(found["finetune/valid/diffusion_ratio"]) == 2
    manifest = check_product(tmp_path / "product", "generator", "test")
    assert sorted(manifest["parts"]) == ["autoencoder", "denoiser", "prior"]
    # that of the best held-out score
    best = min(found["finetune/valid/held_out_rrs"][1:])
    assert manifest["metrics"]["finetune/valid/held_out_rrs"] == pytest.approx(best)


def test_without_a_held_out_encoder_a_sentence_says_that_there_is_no_stop(
    prepared: Path, products: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        main(fit_args(prepared, products, None, tmp_path))
    assert "goodhart: " in caplog.text
    assert "--generation.encoder_held_out" in caplog.text
    assert check_product(tmp_path / "product", "generator", "test")["step"] == 4


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "weight"), [("hidden", 0.003), ("x0", 0.3)])
def test_two_processes_fine_tune_as_one_does(
    prepared: Path, products: Path, held_out: Path, tmp_path: Path, mode: str, weight: float
) -> None:
    sgd = '--model.init_args.optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}'
    for name, count in (("one", 1), ("two", 2)):
        args = fit_args(prepared, products, held_out, tmp_path / name)
        flags = [sgd, f"--model.init_args.mode={mode}", "--goodhart.patience=null"]
        flags += [f"--model.init_args.representation_weight={weight}"]
        run_main([*args, *flags], count)
    one, two = (
        load_file(tmp_path / name / "product/denoiser/model.safetensors") for name in ("one", "two")
    )
    for name, weights in one.items():
        # the same sums in another order: float32 rounding over 4 clipped steps of 0.1
        np.testing.assert_allclose(two[name], weights, atol=1e-5, err_msg=name)
    scores = [logged(tmp_path / name) for name in ("one", "two")]
    for key in ("rrs", "held_out_rrs", "held_out_rrs_floor_augment", "diffusion_ratio"):
        found = [part[f"finetune/valid/{key}"] for part in scores]
        assert found[0] == pytest.approx(found[1], rel=1e-3), key
    assert np.isfinite(scores[1]["finetune/train/gradient_ratio"]).all()
