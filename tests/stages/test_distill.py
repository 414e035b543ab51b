"""Stage 5 on tiny data: consistency tuning of a generator."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from cxr_lightning.artifacts import save_product
from cxr_lightning.callbacks.export import Export
from cxr_lightning.callbacks.generation import GenerationMetrics
from cxr_lightning.data.datamodule import CheXpertDataModule
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.priors import LatentPrior
from cxr_lightning.diffusion.process import add_noise, x0_from_velocity
from cxr_lightning.diffusion.samplers import Sampling
from cxr_lightning.errors import UserError
from cxr_lightning.stages.distill import ConsistencyTuning
from cxr_lightning.stages.draws import random_draws, random_drop


@pytest.fixture(scope="module")
def generators(tmp_path_factory, make_autoencoder, make_denoiser) -> Path:
    """Untrained generators that predict v: `form1`, `form2`, `uncond`, and `dropout`."""
    folder = tmp_path_factory.mktemp("generators")
    for form in ("form1", "form2"):
        parts: dict[str, nn.Module] = {
            "autoencoder": make_autoencoder(),
            "prior": LatentPrior(latent_dim=6),
            "denoiser": make_denoiser(form=form, prediction="v"),
        }
        save_product(folder / form, "generator", parts, {})
    for name, dropout in (("uncond", 0.0), ("dropout", 0.5)):
        denoiser = make_denoiser(form="uncond", prediction="v", dropout=dropout)
        save_product(folder / name, "generator", {"denoiser": denoiser}, {})
    return folder


@pytest.fixture
def make(generators: Path):
    """Makes stages that start from one of the tiny generators."""

    def build(name: str = "form1", **changes: Any) -> ConsistencyTuning:
        return ConsistencyTuning(**{"generator": generators / name, "image_size": 32, **changes})

    return build


@pytest.mark.parametrize("form", ["form1", "form2", "uncond"])
def test_a_fit_trains_the_denoiser_and_exports_a_generator_of_few_steps(
    make, datamodule, quiet_trainer, tmp_path, form
):
    module = make(form, halve_every=2)
    weight = module.networks.denoiser.head.weight.detach().clone()
    trainer = quiet_trainer(max_steps=3, val_check_interval=3, callbacks=[Export(tmp_path / "p")])
    trainer.fit(module, datamodule=datamodule)
    assert {"distill/train/loss", "distill/valid/loss"} <= trainer.callback_metrics.keys()
    assert all(v.isfinite() for v in trainer.callback_metrics.values())
    assert trainer.callback_metrics["distill/train/gap"] == 0.25
    assert not torch.equal(module.networks.denoiser.head.weight, weight)
    made = Generator.from_pretrained(tmp_path / "p")
    assert made.own_sampling == Sampling("consistency", 2)
    pairs = zip(made.denoiser.parameters(), module.networks.average.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("form", ["form1", "form2", "uncond"])
def test_training_loss_written_out(make, datamodule, monkeypatch, form):
    module = make(form, halve_every=5, huber=0.1)
    monkeypatch.setattr(module, "log_scalars", lambda *_: None)
    monkeypatch.setattr(type(module), "global_step", 7)
    batch = datamodule.batch_of(datamodule.rows["train"][:4])
    torch.manual_seed(3)
    loss = module.training_step(batch, 0)
    torch.manual_seed(3)
    condition = random_drop(module, batch.condition, 0.1, 0.1)
    d = random_draws(module, module.networks, 4)
    x_hat = None
    if form != "uncond":
        x_hat = module.networks.autoencoder.network(batch.image, d.latent_noise)
    earlier = torch.tensor([int(t * 3) // 4 for t in d.t])  # t - ceil(t / 4)
    found = []
    for t in (d.t, earlier):
        a = module.networks.alpha_bar[t]
        y = add_noise(batch.image, d.noise, a)
        found.append(x0_from_velocity(y, module.networks.denoiser(y, t, condition, x_hat), a))
    square = (found[0] - found[1]).square().flatten(1).mean(1) / (
        1 - module.networks.alpha_bar[d.t]
    )
    distance = (square + 0.1**2).sqrt() - 0.1
    expected = (d.t / (d.t - earlier) * distance).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)


def test_no_gradient_goes_through_the_target(make, datamodule):
    module = make()
    batch = datamodule.batch_of(datamodule.rows["train"][:4])
    d = random_draws(module, module.networks, 4)
    later, target = module.networks.estimates(batch.image, batch.condition, d, d.t // 2)
    assert later.requires_grad
    assert not target.requires_grad


def test_dropout_is_the_same_at_both_times(make, datamodule):
    """At one and the same time the two estimates are equal; in another call they are not."""
    module = make("dropout").train()
    batch = datamodule.batch_of(datamodule.rows["train"][:4])
    d = random_draws(module, module.networks, 4)
    later, target = module.networks.estimates(batch.image, batch.condition, d, d.t)
    assert torch.equal(later, target)
    other, _ = module.networks.estimates(batch.image, batch.condition, d, d.t)
    assert not torch.allclose(other, later, atol=1e-3)


def test_validation_loss_does_not_change_with_the_schedule(make, datamodule, quiet_trainer):
    losses = []
    for halve_every in (1, 100):
        torch.manual_seed(halve_every)
        module = make(halve_every=halve_every, smallest_gap=0.1)
        (found,) = quiet_trainer().validate(module, datamodule=datamodule, verbose=False)
        losses.append(found["distill/valid/loss"])
    assert losses[0] == losses[1] > 0


def test_prediction_reconstructs_in_two_steps(make, datamodule):
    module = make()
    calls: list[int] = []
    module.networks.average.register_forward_hook(lambda *_: calls.append(1))
    batch = datamodule.batch_of(datamodule.rows["valid"][:2])
    assert module.predict_step(batch, 0).shape == (2, 1, 32, 32)
    assert len(calls) == 2


def test_product_names_its_parent(make, generators):
    product = make().product()
    assert product.kind == "generator"
    assert set(product.parents) == {"generator"}
    assert set(product.networks) == {"denoiser", "autoencoder", "prior"}


def test_the_encoder_of_an_earlier_fine_tuning_is_an_ancestor(make, generators, tmp_path):
    finetuned = shutil.copytree(generators / "form1", tmp_path / "finetuned")
    manifest = json.loads((finetuned / "manifest.json").read_text())
    facts = {"parents": {"generator": "ab" * 32, "encoder": "cd" * 32}, "ancestors": ["ef" * 32]}
    (finetuned / "manifest.json").write_text(json.dumps(manifest | facts))
    module = make(generator=finetuned)
    assert module.ancestors == ["ab" * 32, "cd" * 32, "ef" * 32]
    metrics = GenerationMetrics()
    metrics.encoder_held_out = tmp_path
    metrics.scores["held_out_"] = Mock(sha256="cd" * 32)
    with pytest.raises(UserError, match="encoder_held_out: .* of an earlier fine-tuning"):
        metrics.setup(Mock(spec=Trainer), module, "fit")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 64}, r"^model\.generator: .* 32 pixels.* is 64;"),
        ({"halve_every": 0}, r"^model\.halve_every: 0 "),
        ({"smallest_gap": 0.0}, r"^model\.smallest_gap: 0\.0 "),
        ({"smallest_gap": 0.6}, r"^model\.smallest_gap: 0\.6 "),
        ({"huber": -1.0}, r"^model\.huber: -1\.0 "),
        ({"huber": float("nan")}, r"^model\.huber: nan "),
    ],
)
def test_impossible_settings_are_refused(make, changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes)


def test_products_that_cannot_be_tuned_are_refused(make, products):
    with pytest.raises(UserError, match=r"^model\.generator: .* of kind"):
        make(generator=products / "encoder")
    with pytest.raises(UserError, match=r"^model\.generator: .* predicts epsilon"):
        make(generator=products / "generator")


def test_a_resumed_run_equals_the_uninterrupted_one(make, prepared, quiet_trainer, tmp_path):
    settings = {"limit_val_batches": 0, "enable_checkpointing": True}

    def fit(steps: int, ckpt: Path | None = None) -> dict[str, torch.Tensor]:
        seed_everything(0, verbose=False)
        module = make("dropout", halve_every=1)
        saver = ModelCheckpoint(tmp_path, save_top_k=0, save_last=True, every_n_train_steps=2)
        trainer = quiet_trainer(max_steps=steps, callbacks=[saver], **settings)
        data = CheXpertDataModule(prepared, batch_size=4, image_size=32)
        trainer.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=False)
        return module.state_dict()

    fit(2)
    resumed = fit(4, tmp_path / "last.ckpt")
    whole = fit(4)
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
