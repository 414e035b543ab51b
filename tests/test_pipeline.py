"""All stages chained through the command line, with the shipped configurations."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from processes import run_main

from cxr_lightning.artifacts import check_product
from cxr_lightning.cli import main

pytestmark = [
    pytest.mark.filterwarnings("ignore:At step .* the encoder is collapsed"),  # 4 steps
    pytest.mark.filterwarnings("ignore:model.clustering.scheme"),  # few phantoms, many findings
]

CONFIGS = Path(__file__).parents[1] / "configs"
# AdamW would make whole steps of the rounding noise in gradients that should be zero.
PLAIN_SGD = (
    '--model.init_args.optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}'
)
TINY_UNET = [
    "--model.init_args.width=8",
    "--model.init_args.multipliers=[1,2]",
    "--model.init_args.blocks=1",
    "--model.init_args.timesteps=50",
    "--model.init_args.prior=gaussian",  # a flow takes half a minute
    "--samples.sampling.steps=2",
    "--generation.sampling.steps=2",
]


def fit_args(stage: str, prepared: Path, runs: Path) -> list[str]:
    """The command that fits a stage small, as a user would type it."""
    flags = {
        "vae": ["--model.init_args.width=4", "--model.init_args.latent_dim=8"],
        "ddpm": [f"--model.init_args.autoencoder={runs}/vae/product", *TINY_UNET],
        "moco": [
            "--model.init_args.backbone=small",
            "--model.init_args.width=4",
            "--model.init_args.bn=eval",  # grouped wants larger batches and warns
            "--model.init_args.clustering.warmup_steps=1",
            "--model.init_args.clustering.ramp_steps=1",
        ],
        "finetune": [
            f"--model.init_args.generator={runs}/ddpm/product",
            f"--model.init_args.encoder={runs}/moco/product",
            f"--generation.encoder={runs}/moco/product",
            "--samples.sampling.steps=2",
            "--generation.sampling.steps=2",
        ],
        "distill": [
            f"--model.init_args.generator={runs}/ddpm/product",
            "--model.init_args.halve_every=2",
        ],
    }
    return [
        "fit",
        f"--config={CONFIGS / stage}.yaml",
        f"--config={CONFIGS}/scale/cpu-smoke.yaml",
        f"--data.root={prepared}",
        f"--trainer.default_root_dir={runs / stage}",
        *flags[stage],
    ]


def table(prepared: Path) -> list[dict[str, str]]:
    with (prepared / "table.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def runs(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the whole pipeline, from the four fits to the report."""
    runs = tmp_path_factory.mktemp("runs")
    for stage in ("vae", "ddpm", "moco", "finetune", "distill"):
        main(fit_args(stage, prepared, runs))
    generator, encoder = f"{runs}/finetune/product", f"{runs}/moco/product"
    main(
        f"generate --model {generator} --out {runs}/synthetic --condition healthy,pneumonia "
        "--count 4 --steps 2 --device cpu".split()
    )
    main(
        f"evaluate --real {prepared} --synthetic {runs}/synthetic --out {runs}/evaluation "
        f"--generator {generator} --encoder {encoder} --extractor encoder --bootstrap 20 "
        "--reconstructions 4 --classifier_steps 5 --utility_seeds 1 --utility_fractions 1.0".split()
    )
    main(f"report --evaluation {runs}/evaluation --out {runs}/report.html".split())
    return runs


def test_every_stage_hands_over_a_product(runs: Path) -> None:
    kinds = {
        "vae": "autoencoder",
        "ddpm": "generator",
        "moco": "encoder",
        "finetune": "generator",
        "distill": "generator",
    }
    for stage, kind in kinds.items():
        manifest = check_product(runs / stage / "product", kind, "test")
        assert manifest["step"] == 4
        assert manifest["config"]["model"]["class_path"].startswith(f"cxr_lightning.stages.{stage}")


def test_products_name_their_parents(runs: Path) -> None:
    def sha(stage: str, kind: str) -> str:
        return str(check_product(runs / stage / "product", kind, "test")["sha256"])

    ddpm = check_product(runs / "ddpm/product", "generator", "test")
    finetune = check_product(runs / "finetune/product", "generator", "test")
    assert ddpm["parents"] == {"autoencoder": sha("vae", "autoencoder")}
    assert finetune["parents"] == {
        "generator": sha("ddpm", "generator"),
        "encoder": sha("moco", "encoder"),
    }
    distill = check_product(runs / "distill/product", "generator", "test")
    assert distill["parents"] == {"generator": sha("ddpm", "generator")}


def test_metrics_are_logged(runs: Path) -> None:
    expected = {
        "vae": ["vae/train/loss", "vae/valid/loss", "vae/valid/fid_fixed"],
        "ddpm": ["ddpm/train/loss", "ddpm/valid/loss", "ddpm/valid/fid_fixed"],
        "moco": ["moco/train/loss", "moco/valid/loss"],
        "finetune": [
            "finetune/train/representation",
            "finetune/valid/loss",
            "finetune/valid/fid_fixed",
            "finetune/valid/rrs",
        ],
        "distill": [
            "distill/train/loss",
            "distill/train/gap",
            "distill/valid/loss",
            "distill/valid/fid_fixed",
        ],
    }
    for stage, keys in expected.items():
        with (runs / stage / "csv/version_0/metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        for key in keys:
            values = [float(row[key]) for row in rows if row.get(key)]
            assert values, f"{key} was not logged"
            assert np.isfinite(values).all(), key


def test_sample_grids_are_written(runs: Path) -> None:
    for stage in ("vae", "ddpm", "finetune", "distill"):
        grids = list((runs / stage / "samples").glob("*-generated-*.png"))
        assert len(grids) == 2
        with Image.open(grids[0]) as picture:
            assert np.asarray(picture).std() > 0


def test_synthetic_data_set_is_complete(runs: Path) -> None:
    manifest = json.loads((runs / "synthetic/manifest.json").read_text())
    assert [image["condition"] for image in manifest["images"]] == ["healthy"] * 4 + [
        "pneumonia"
    ] * 4
    for image in manifest["images"]:
        with Image.open(runs / "synthetic" / image["path"]) as picture:
            assert picture.size == (32, 32)
            assert picture.info["Synthetic"] == "yes"


@pytest.mark.parametrize("steps", [1, 2])
def test_the_tuned_generator_makes_images_in_few_steps(
    steps: int, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = f"--model={runs}/distill/product", tmp_path / "few"
    asked = ["--condition=healthy", "--count=2", "--device=cpu", f"--steps={steps}"]
    main(["generate", model, f"--out={out}", *asked, "--sampler=consistency"])
    assert len(list(out.rglob("*.png"))) == 2
    assert json.loads((out / "manifest.json").read_text())["steps"] == steps
    assert "warning: the sampler" not in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["generate", model, f"--out={tmp_path}/other", *asked, "--sampler=ddim"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "sampler: ddim does not suit this model" in said
    assert "use sampler consistency and steps 1 to 4, best 2" in said


def test_report_shows_the_whitepapers_table(runs: Path) -> None:
    markdown = (runs / "report.md").read_text()
    assert re.search(
        r"^\| Condition \| Original \| Generated \| FID.* \| RRS.* \|$", markdown, re.M
    )
    for condition in ("Healthy", "Pneumonia"):
        row = re.search(rf"^\| {condition} \| !\[.*\| [0-9.e-]+ .*\|$", markdown, re.MULTILINE)
        assert row, markdown
    assert "<html" in (runs / "report.html").read_text()


def test_same_command_again_changes_nothing(runs: Path, prepared: Path) -> None:
    product = runs / "vae/product/model.safetensors"
    before = product.read_bytes()
    main(fit_args("vae", prepared, runs))
    assert product.read_bytes() == before


def test_another_model_into_the_same_run_is_refused(
    runs: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*fit_args("vae", prepared, runs), "--model.init_args.latent_dim=9"])
    assert stop.value.code == 2
    assert "model.latent_dim" in capsys.readouterr().err


def test_products_may_be_named_otherwise_by_now(runs: Path, prepared: Path) -> None:
    named = f"--model.init_args.autoencoder={runs}/vae/../vae/product"
    product = runs / "ddpm/product/manifest.json"
    before = product.read_bytes()
    main([*fit_args("ddpm", prepared, runs), named])
    assert product.read_bytes() == before


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        ("--data.uncertain=ones", "data.uncertain"),
        ("--data.batch_size=2", "data.batch_size"),
        ("--seed_everything=7", "seed_everything"),
    ],
)
def test_other_data_or_another_seed_into_the_same_run_is_refused(
    runs: Path, prepared: Path, capsys: pytest.CaptureFixture[str], argument: str, name: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*fit_args("vae", prepared, runs), argument])
    assert stop.value.code == 2
    assert f"error: {name}: the unfinished run in" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["validate", "test"])
def test_other_stage_commands(command: str, runs: Path, prepared: Path) -> None:
    args = fit_args("ddpm", prepared, runs)
    main([command, *args[1:], f"--ckpt_path={runs}/ddpm/checkpoints/last.ckpt"])
    with pytest.warns(UserWarning, match="before training; name a checkpoint with --ckpt_path"):
        main([command, *args[1:]])


def test_linear_evaluation_of_products_side_by_side(
    runs: Path, prepared: Path, tmp_path: Path
) -> None:
    args = fit_args("moco", prepared, runs)[1:]
    encoders = f"--model.init_args.encoders=[{runs}/moco/product]"
    main(["test", *args, encoders, f"--trainer.default_root_dir={tmp_path}"])
    content = json.loads((tmp_path / "linear_evaluation.json").read_text())
    assert list(content["encoders"]) == ["random", "moco"]
    assert content["split"] == "valid"
    product = check_product(runs / "moco" / "product", "encoder", "test")
    assert content["encoders"]["moco"]["sha256"] == product["sha256"]
    assert content["records"]
    assert all(0.0 <= record["auroc"] <= 1.0 for record in content["records"])


def test_predict_writes_what_the_stage_predicts(runs: Path, prepared: Path) -> None:
    args = fit_args("ddpm", prepared, runs)
    main(["predict", *args[1:], f"--ckpt_path={runs}/ddpm/checkpoints/last.ckpt"])
    files = sorted((runs / "ddpm/predictions").glob("*.npz"))
    index = np.concatenate([np.load(file)["index"] for file in files])
    images = np.concatenate([np.load(file)["prediction"] for file in files])
    valid = [i for i, row in enumerate(table(prepared)) if row["split"] == "valid"]
    assert index.tolist() == valid
    assert images.dtype == np.uint8
    assert images.shape == (len(valid), 1, 32, 32)


def test_benchmark_prints_figures_and_leaves_nothing(
    runs: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = fit_args("ddpm", prepared, runs)[1:]
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    kept = f"--export.folder={runs}/ddpm/product"
    main(["benchmark", *args, f"--trainer.default_root_dir={tmp_path}/run", kept])
    said = capsys.readouterr().out
    figures = json.loads(said[said.index("{\n") :])
    assert figures["stage"] == "DDPM"
    assert figures["batch_size"] == 4
    assert figures["steps"] == 30
    assert figures["images_per_second"] == pytest.approx(4 / figures["seconds_per_step"])
    assert 0 <= figures["data_wait_share"] < 1
    assert figures["flops_per_step"] > 1e6
    assert 0 < figures["mfu"] < 1
    assert figures["mfu"] == pytest.approx(
        figures["tflops_per_second"] / figures["matmul_tflops_per_second"]
    )
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before
    assert not (tmp_path / "run").exists()


def test_the_ladder_adds_one_setting_after_the_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def measure(args: list[str]) -> dict[str, float]:
        asked.append(args)
        return {"mfu": 0.5}

    monkeypatch.setattr("cxr_lightning.benchmark.measure", measure)
    args = ["--config=x", "--data.root", "y"]
    main(["benchmark", "--ladder", "fp32", "max_autotune", *args])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"rung": "fp32", "mfu": 0.5}, {"rung": "max_autotune", "mfu": 0.5}]
    assert asked[0] == [*args, "--trainer.precision=32-true"]
    faster = ["compile=true", "channels_last=true", "mode=max-autotune"]
    trainer = ["--trainer.precision=null", "--trainer.benchmark=true"]
    assert asked[1] == [*args, *trainer, *(f"--acceleration.{s}" for s in faster)]
    main(["benchmark", *args, "--ladder"])
    assert len(asked) == 2 + 6
    main(["benchmark", "--ladder=fp32", *args])
    assert asked[8:] == asked[:1]


def test_an_unknown_rung_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", "--ladder", "fp8"])
    assert stop.value.code == 2
    assert "ladder: there is no rung 'fp8'; use fp32, mixed" in capsys.readouterr().err


def test_a_rung_runs(runs: Path, prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = fit_args("ddpm", prepared, runs)[1:]
    main(["benchmark", "--ladder", "fp32", *args])
    said = capsys.readouterr().out
    figures = json.loads(said[said.index('{"rung"') :])
    assert figures["precision"] == "32-true"
    assert figures["flops_per_step"] > 1e6


@pytest.mark.parametrize("scale", sorted((CONFIGS / "scale").glob("*.yaml")), ids=lambda p: p.stem)
@pytest.mark.parametrize("stage", ["vae", "ddpm", "moco", "finetune", "distill"])
def test_every_scale_fits_every_stage(
    stage: str, scale: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "fit",
                f"--config={CONFIGS / stage}.yaml",
                f"--config={scale}",
                "--data.root=x",
                "--print_config",
            ]
        )
    assert stop.value.code == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    wanted = yaml.safe_load(scale.read_text())["trainer"]
    assert resolved["trainer"]["devices"] == wanted["devices"]


@pytest.mark.parametrize(
    "overlay",
    [path for folder in ("demo", "small") for path in sorted((CONFIGS / folder).glob("*.yaml"))],
    ids=lambda p: f"{p.parent.name}-{p.stem}",
)
def test_every_overlay_fits_its_stage(overlay: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [CONFIGS / overlay.name, CONFIGS / "scale/cpu.yaml", overlay]
    flags = [f"--config={file}" for file in files]
    with pytest.raises(SystemExit) as stop:
        main(["fit", *flags, "--data.root=x", "--print_config"])
    assert stop.value.code == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    wanted = yaml.safe_load(overlay.read_text())
    assert resolved["trainer"]["max_steps"] == wanted["trainer"]["max_steps"]
    optimizer = resolved["model"]["init_args"]["optimizer"]["init_args"]
    assert optimizer["lr"] == wanted["model"]["init_args"]["optimizer"]["init_args"]["lr"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vae", "ddpm", "distill"])
def test_two_processes_train_the_same_weights_as_one(
    stage: str, runs: Path, prepared: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file

    common = [
        *fit_args(stage, prepared, runs),
        PLAIN_SGD,
    ]
    for name, count in (("one", 1), ("two", 2)):
        run_main([*common, f"--trainer.default_root_dir={tmp_path / name}"], count)
    part = "." if stage == "vae" else "denoiser"
    one = load_file(tmp_path / "one/product" / part / "model.safetensors")
    two = load_file(tmp_path / "two/product" / part / "model.safetensors")
    for name, weights in one.items():
        # the same sums in another order: float32 rounding over 4 clipped steps of 0.1
        np.testing.assert_allclose(two[name], weights, atol=1e-5, err_msg=name)


def run_cxr(*args: str, returncode: int = 0) -> None:
    helpers = str(Path(__file__).parent / "helpers")
    environment = os.environ | {"PYTHONPATH": helpers}
    command = [sys.executable, "-m", "cxr_lightning", *args]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == returncode, run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_within_an_epoch_it_goes_on_with_any_number_of_processes(
    prepared: Path, tmp_path: Path, processes: int
) -> None:
    from safetensors.numpy import load_file

    def args(run: str) -> list[str]:
        return [
            *fit_args("vae", prepared, tmp_path),
            "--trainer.max_steps=18",  # an epoch has 13 batches or so, of 4 images
            "--trainer.limit_val_batches=0",
            "--checkpoint.every_n_train_steps=1",
            "--data.balance_view=[healthy, pneumonia]",
            PLAIN_SGD,
            f"--trainer.default_root_dir={tmp_path / run}",
        ]

    killed = ["--trainer.callbacks+=killer.KillAt", "--trainer.callbacks.step=6"]
    run_main(args("whole"))
    run_cxr(*args("killed"), *killed, returncode=-signal.SIGKILL)
    assert not (tmp_path / "killed/product").exists()
    ranks = ["--trainer.devices=2", "--trainer.strategy=ddp"] if processes == 2 else []
    run_cxr(*args("killed"), *ranks)
    whole = load_file(tmp_path / "whole/product/model.safetensors")
    again = load_file(tmp_path / "killed/product/model.safetensors")
    for name, weights in whole.items():
        if processes == 1:
            np.testing.assert_array_equal(again[name], weights, err_msg=name)
        else:  # the same sums in another order
            np.testing.assert_allclose(again[name], weights, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_asked_to_end_it_saves_its_step_and_goes_on(
    prepared: Path, tmp_path: Path, processes: int
) -> None:
    from safetensors.numpy import load_file

    ranks = ["--trainer.devices=2", "--trainer.strategy=ddp"] if processes == 2 else []

    def args(run: str) -> list[str]:
        return [
            *fit_args("vae", prepared, tmp_path),
            "--trainer.max_steps=9",
            "--trainer.val_check_interval=3",
            "--trainer.log_every_n_steps=3",  # several processes look then, or one step later
            "--checkpoint.every_n_train_steps=100",
            PLAIN_SGD,
            f"--trainer.default_root_dir={tmp_path / run}",
            *ranks,
        ]

    term = ["--trainer.callbacks+=killer.KillAt", "--trainer.callbacks.step=3"]
    term += [f"--trainer.callbacks.signum={int(signal.SIGTERM)}", "--trainer.callbacks.rank=0"]
    run_cxr(*args("whole"))
    run_cxr(*args("asked"), *term, returncode=128 + signal.SIGTERM)
    state = torch.load(tmp_path / "asked/checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 4  # a validation follows step 3
    run_cxr(*args("asked"))
    whole = load_file(tmp_path / "whole/product/model.safetensors")
    again = load_file(tmp_path / "asked/product/model.safetensors")
    for name, weights in whole.items():
        np.testing.assert_array_equal(again[name], weights, err_msg=name)


@pytest.mark.slow
def test_stopped_within_an_epoch_clusters_of_k_means_are_those_of_one_run(
    prepared: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file

    def fit(run: str, steps: int) -> None:
        run_main(
            [
                *fit_args("moco", prepared, tmp_path),
                f"--trainer.max_steps={steps}",  # an epoch has 13 batches or so, of 4 images
                "--trainer.limit_val_batches=0",
                "--checkpoint.every_n_train_steps=1",
                "--model.init_args.clustering.scheme=kmeans",
                "--model.init_args.clustering.clusters=3",
                "--model.init_args.decay=constant",
                f"--trainer.default_root_dir={tmp_path / run}",
            ]
        )

    fit("whole", 18)
    fit("stopped", 6)
    fit("stopped", 18)
    whole, again = (
        load_file(tmp_path / run / "product/model.safetensors") for run in ("whole", "stopped")
    )
    for name, weights in whole.items():
        np.testing.assert_array_equal(again[name], weights, err_msg=name)
