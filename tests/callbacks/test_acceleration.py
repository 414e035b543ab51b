"""Acceleration: a stage trains the same weights compiled, and saves the same files."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jaxtyping
import pytest
import torch
from lightning import LightningModule, Trainer
from processes import on_ranks
from torch import nn

from cxr_lightning.artifacts import product_sha256, save_product
from cxr_lightning.callbacks.acceleration import Acceleration
from cxr_lightning.data.datamodule import CheXpertDataModule
from cxr_lightning.errors import UserError
from cxr_lightning.networks.unet import Denoiser
from cxr_lightning.stages.base import Stage
from cxr_lightning.stages.ddpm import DDPM
from cxr_lightning.stages.distill import ConsistencyTuning
from cxr_lightning.stages.finetune import Finetune
from cxr_lightning.stages.moco import MoCo
from cxr_lightning.stages.moco_clustering import Clustering
from cxr_lightning.stages.vae import VAE

SGD = partial(torch.optim.SGD, lr=1e-4)  # AdamW would blow rounding up where a gradient is 0
TRACED = {"compile": True, "backend": "aot_eager"}  # traced as for inductor, but run by torch
pytestmark = [
    pytest.mark.filterwarnings("ignore:At step .* the encoder is collapsed"),  # 3 steps
    pytest.mark.filterwarnings("ignore:model.clustering.scheme"),  # few phantoms, many findings
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),  # dynamo's own reading
]

Make = Callable[[], Stage]


@pytest.fixture(autouse=True)
def plain_annotations() -> Iterator[None]:
    """Without the suite's checks of shapes, which dynamo cannot trace."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def stages(products: Path) -> dict[str, Make]:
    """Makes each stage small, always with the same weights."""

    def ddpm() -> DDPM:
        shape = {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [16]}
        shape |= {"prior": "gaussian"}  # fitted at once
        return DDPM(products / "autoencoder", image_size=32, dropout=0.1, optimizer=SGD, **shape)

    def finetune() -> Finetune:
        parts = products / "generator", products / "encoder"
        settings = {"mode": "reverse", "reverse_steps": 2, "gradient_checkpointing": True}
        return Finetune(*parts, image_size=32, representation_weight=0.1, optimizer=SGD, **settings)

    def moco() -> MoCo:
        clustering = Clustering(warmup_steps=1, ramp_steps=1)
        network = {"backbone": "small", "width": 4, "bn": "eval"}
        return MoCo(image_size=32, clustering=clustering, optimizer=SGD, **network)

    return {
        "vae": lambda: VAE(image_size=32, width=4, latent_dim=4, optimizer=SGD),
        "ddpm": ddpm,
        "moco": moco,
        "finetune": finetune,
    }


@pytest.fixture
def fit(prepared: Path, quiet_trainer: Callable[..., Trainer]) -> Callable[..., Stage]:
    """Trains a stage for three steps, validating after each."""

    def run(make: Make, steps: int = 3, **settings: Any) -> Stage:
        torch.manual_seed(0)
        stage = make()
        callbacks = [Acceleration(**settings)]
        trainer = quiet_trainer(max_steps=steps, val_check_interval=1, callbacks=callbacks)
        trainer.fit(stage, CheXpertDataModule(prepared, batch_size=8, image_size=32))
        return stage

    return run


def assert_close(one: LightningModule, other: LightningModule) -> None:
    """Weights alike up to rounding."""
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "ddpm", "moco", "finetune"])
def test_a_compiled_stage_trains_the_same_weights(
    name: str, stages: dict[str, Make], fit: Callable[..., Stage]
) -> None:
    plain, compiled = fit(stages[name]), fit(stages[name], **TRACED)
    assert_close(plain, compiled)
    assert compiled.compilable()


def test_compiled_stage_4_measures_its_gradients_after_the_first_step(
    stages: dict[str, Make], prepared: Path, quiet_trainer: Callable[..., Trainer]
) -> None:
    """There a step is gone back through twice."""
    torch.compiler.reset()
    torch.manual_seed(0)
    stage = stages["finetune"]()
    run = quiet_trainer(
        max_steps=3,
        limit_val_batches=0,
        log_every_n_steps=3,
        callbacks=[Acceleration(**TRACED)],
    )
    run.fit(stage, CheXpertDataModule(prepared, batch_size=8, image_size=32))
    said = [name for name in run.callback_metrics if name.endswith("gradient_ratio")]
    assert said == ["finetune/train/gradient_ratio"]


def test_channels_last_is_refused_on_a_cpu(
    stages: dict[str, Make], fit: Callable[..., Stage]
) -> None:
    with pytest.raises(UserError, match="acceleration.channels_last: it is for GPUs"):
        fit(stages["vae"], channels_last=True)


def test_a_network_that_is_channels_last_is_saved_as_others_are(
    make_denoiser: Callable[..., Denoiser], tmp_path: Path
) -> None:
    denoiser = make_denoiser(form="uncond")
    save_product(tmp_path / "plain", "generator", {"denoiser": denoiser}, {})
    denoiser.to(memory_format=torch.channels_last)
    assert not denoiser.down[0].conv1.weight.is_contiguous()
    save_product(tmp_path / "other", "generator", {"denoiser": denoiser}, {})
    assert product_sha256(tmp_path / "plain") == product_sha256(tmp_path / "other")


def test_training_runs_what_was_compiled_and_validation_does_not(
    stages: dict[str, Make], fit: Callable[..., Stage]
) -> None:
    runs = []

    def counting(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            runs.append(torch.is_grad_enabled())
            return graph.forward(*args)

        return run

    torch._dynamo.register_backend(counting, name="counting")
    torch.compiler.reset()
    fit(stages["vae"], compile=True, backend="counting")
    assert len(runs) >= 2 * 3  # encoder and decoder, three steps
    assert all(runs)  # which validation has not


class Broken(VAE):
    """Fails while it validates."""

    def on_validation_epoch_end(self) -> None:
        raise RuntimeError("broken")


def test_after_an_error_in_validation_other_code_is_compiled_as_before(
    fit: Callable[..., Stage],
) -> None:
    with pytest.raises(RuntimeError, match="broken"):
        fit(lambda: Broken(image_size=32, width=4, latent_dim=4), compile=True, backend="eager")
    traced = torch.compile(torch.compiler.is_compiling, backend="eager")
    assert traced()


def fit_on_two_processes(prepared: Path, folder: Path) -> None:
    """Two steps compiled on each of two processes; each writes its weights."""
    torch.manual_seed(0)
    stage = VAE(image_size=32, width=4, latent_dim=4, optimizer=SGD)
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_steps=2,
        limit_val_batches=0,
        callbacks=[Acceleration(**TRACED)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(stage, CheXpertDataModule(prepared, batch_size=8, image_size=32))
    torch.save(stage.state_dict(), folder / f"{trainer.global_rank}.pt")


def test_two_processes_train_compiled_what_one_does_plain(
    prepared: Path, stages: dict[str, Make], fit: Callable[..., Stage], tmp_path: Path
) -> None:
    on_ranks(lambda: fit_on_two_processes(prepared, tmp_path))
    plain = fit(stages["vae"], steps=2).state_dict()
    for rank in range(2):
        trained = torch.load(tmp_path / f"{rank}.pt")
        for name, value in plain.items():
            torch.testing.assert_close(trained[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_stage_5_is_not_compiled(
    products: Path,
    make_denoiser: Callable[..., Denoiser],
    fit: Callable[..., Stage],
    tmp_path: Path,
) -> None:
    denoiser = make_denoiser(form="uncond", prediction="v")
    save_product(tmp_path / "generator", "generator", {"denoiser": denoiser}, {})
    with pytest.raises(UserError, match="a training of ConsistencyTuning cannot be compiled"):
        fit(lambda: ConsistencyTuning(tmp_path / "generator", image_size=32), **TRACED)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"backend": "nvcc"},
            "acceleration.backend: torch has no 'nvcc' here; use .*induct",
        ),
        ({"backend": "aot_eager", "mode": "max-autotune"}, "acceleration.mode: aot_eager has no"),
    ],
)
def test_mistakes(
    stages: dict[str, Make], fit: Callable[..., Stage], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        fit(stages["vae"], compile=True, **settings)
    fit(stages["vae"], **settings)  # nothing is compiled, so nothing is looked for


def test_recorded_kernels_are_refused_where_gradients_are_added_up(stages: dict[str, Make]) -> None:
    trainer = Mock(spec=Trainer, accumulate_grad_batches=2)
    for mode in ("reduce-overhead", "max-autotune"):
        with pytest.raises(UserError, match=f"acceleration.mode: {mode} keeps gradients"):
            Acceleration(compile=True, mode=mode).setup(trainer, stages["vae"](), "fit")


def test_moments_of_a_resumed_run_lie_as_the_weights_do(stages: dict[str, Make]) -> None:
    convolution = nn.Conv2d(4, 4, 3)
    optimizer = torch.optim.AdamW(convolution.parameters(), lr=0.1)
    convolution(torch.ones(1, 4, 8, 8)).square().sum().backward()
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    convolution.to(memory_format=torch.channels_last)
    optimizer.load_state_dict(saved)
    weight = convolution.weight
    before = optimizer.state[weight]["exp_avg"].clone()
    assert optimizer.state[weight]["exp_avg"].stride() != weight.stride()
    Acceleration().on_train_start(Mock(spec=Trainer, optimizers=[optimizer]), stages["vae"]())
    for name in ("exp_avg", "exp_avg_sq"):
        assert optimizer.state[weight][name].stride() == weight.stride()
    assert torch.equal(optimizer.state[weight]["exp_avg"], before)


def test_without_a_compiler(
    stages: dict[str, Make], fit: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match="acceleration.compile: torch.compile needs a C compiler"):
        fit(stages["vae"], compile=True)
    Acceleration(compile=True).setup(Mock(spec=Trainer), stages["vae"](), "validate")
    fit(stages["vae"], **TRACED)
