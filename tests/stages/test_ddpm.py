"""Stage 2 on tiny data: what is trained, averaged, resumed, handed over."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from processes import validate
from text_model import write_text_model

from cxr_lightning.data.datamodule import CheXpertDataModule
from cxr_lightning.data.sampler import resample
from cxr_lightning.data.text_encoder import TextEncoder
from cxr_lightning.diffusion.priors import flow
from cxr_lightning.errors import UserError
from cxr_lightning.stages.ddpm import DDPM
from cxr_lightning.stages.denoising import fit_prior

SMALL = {
    **{"width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [16], "timesteps": 50},
    "prior": "gaussian",  # fitted at once
}


@pytest.fixture
def make(products: Path):
    """Makes stages with fresh weights, always the same."""

    def build(**changes: Any) -> DDPM:
        torch.manual_seed(0)
        settings = {"autoencoder": products / "autoencoder", "image_size": 32, **SMALL}
        return DDPM(**{**settings, **changes})

    return build


def data(prepared: Path) -> CheXpertDataModule:
    return CheXpertDataModule(prepared, batch_size=12, image_size=32)


def weights(module: DDPM) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("form", ["form1", "form2", "uncond"])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_a_fit_logs_finite_losses_and_trains_the_denoiser_only(
    make, prepared, quiet_trainer, form, prediction
):
    module = make(form=form, prediction=prediction)
    frozen = module.networks.autoencoder
    before = weights(module)
    inside = (
        {} if frozen is None else {k: v.clone() for k, v in frozen.network.state_dict().items()}
    )
    trainer = quiet_trainer(max_steps=3, val_check_interval=3)
    trainer.fit(module, datamodule=data(prepared))
    assert {"ddpm/train/loss", "ddpm/valid/loss"} <= trainer.callback_metrics.keys()
    assert all(v.isfinite() for v in trainer.callback_metrics.values())
    changed = {k.split(".")[1] for k, v in module.state_dict().items() if not v.equal(before[k])}
    assert changed == {"denoiser", "average"} | ({"prior"} if form != "uncond" else set())
    if frozen is not None:
        assert equal(frozen.network.state_dict(), inside)
        assert not any(m.training for m in frozen.network.modules())


def test_checkpoint_holds_no_frozen_weights(make):
    assert {k.split(".")[1] for k in make().state_dict()} == {"denoiser", "average", "prior"}


class Watch(Callback):
    """Keeps the denoiser's weights after every optimizer step, and the average."""

    def __init__(self) -> None:
        self.online: list[dict[str, torch.Tensor]] = []
        self.step = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: DDPM, *_: Any) -> None:
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            parameters = pl_module.networks.denoiser.named_parameters()
            self.online.append({k: p.detach().clone() for k, p in parameters})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_average_is_updated_once_an_optimizer_step_with_the_stated_decay(
    make, prepared, quiet_trainer, accumulate
):
    module, watch = make(ema_decay=0.4), Watch()
    expected = {k: p.detach().clone() for k, p in module.networks.denoiser.named_parameters()}
    trainer = quiet_trainer(
        max_steps=4, accumulate_grad_batches=accumulate, limit_val_batches=0, callbacks=[watch]
    )
    trainer.fit(module, datamodule=data(prepared))
    assert len(watch.online) == 4
    for step, online in enumerate(watch.online):
        decay = min(0.4, (1 + step) / (10 + step))
        for key, value in online.items():
            expected[key] = decay * expected[key] + (1 - decay) * value
    for key, value in module.networks.average.named_parameters():
        # float32, four updates
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-7)


def run(
    module: DDPM, prepared: Path, trainer: Trainer, ckpt: Path | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Fits from seed 0; returns all weights and the optimizer's state."""
    seed_everything(0, verbose=False)
    trainer.fit(module, datamodule=data(prepared), ckpt_path=ckpt, weights_only=False)
    return weights(module), trainer.optimizers[0].state_dict()["state"]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stop", ["within", "at the end of an epoch", "in the second epoch"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    make, prepared, quiet_trainer, tmp_path, stop, accumulate
):
    """Epochs have 4 batches; validations lie between, some of a part of the split."""
    epoch = 4 // accumulate
    first = {"within": epoch - 1, "at the end of an epoch": epoch, "in the second epoch": epoch + 1}
    settings = {
        "limit_val_batches": 1,
        "val_check_interval": accumulate,
        "check_val_every_n_epoch": None,
        "accumulate_grad_batches": accumulate,
        "enable_checkpointing": True,
    }

    def fit(folder: str, steps: int, ckpt: Path | None = None) -> Any:
        saver = ModelCheckpoint(
            tmp_path / folder, save_top_k=0, save_last=True, every_n_train_steps=first[stop]
        )
        trainer = quiet_trainer(max_steps=steps, callbacks=[saver], **settings)
        return run(make(), prepared, trainer, ckpt)

    whole = fit("whole", first[stop] + 2)
    fit("stopped", first[stop])
    resumed = fit("stopped", first[stop] + 2, tmp_path / "stopped" / "last.ckpt")
    assert equal(resumed[0], whole[0])
    for key, state in whole[1].items():
        assert equal(resumed[1][key], state)


def test_two_fits_are_the_same_and_another_seed_is_not(make, prepared, quiet_trainer):
    first = run(make(), prepared, quiet_trainer(max_steps=2, limit_val_batches=0))[0]
    second = run(make(), prepared, quiet_trainer(max_steps=2, limit_val_batches=0))[0]
    assert equal(first, second)
    seed_everything(1, verbose=False)
    module = make()
    quiet_trainer(max_steps=2, limit_val_batches=0).fit(module, datamodule=data(prepared))
    assert not equal(weights(module), first)


def test_validation_repeats_exactly(make, prepared, quiet_trainer):
    module = make()
    with torch.no_grad():
        module.networks.average.head.weight += 0.1
    losses = [
        quiet_trainer().validate(module, datamodule=data(prepared), verbose=False)[0]
        for _ in range(2)
    ]
    assert losses[0] == losses[1]


def test_validation_sees_the_same_images_each_time(make, prepared, quiet_trainer):
    """Also when only a part of the validation split is used."""
    seen: list[list[int]] = []

    class Note(Callback):
        def on_validation_batch_start(self, trainer, pl_module, batch, *_):
            seen.append(batch.index.tolist())

    trainer = quiet_trainer(
        max_steps=3, limit_val_batches=1, val_check_interval=1, callbacks=[Note()]
    )
    trainer.fit(make(), datamodule=data(prepared))
    assert len(seen) >= 3
    assert all(index == seen[0] for index in seen)


def test_test_logs_under_its_name_and_predict_gives_raw_reconstructions(
    make, prepared, quiet_trainer
):
    logged = quiet_trainer().test(make(), datamodule=data(prepared), verbose=False)[0]
    assert set(logged) == {"ddpm/test/loss"}
    made = quiet_trainer().predict(make(), datamodule=data(prepared))
    module = data(prepared)
    module.setup()
    assert sum(len(m) for m in made) == len(module.rows["valid"])
    assert {m.dtype for m in made} == {torch.uint8}


def test_product_is_the_averaged_denoiser_with_its_autoencoder_and_prior(make, products):
    module = make()
    product = module.product()
    assert product.kind == "generator"
    assert product.networks["denoiser"] is module.networks.average
    assert set(product.networks) == {"denoiser", "autoencoder", "prior"}
    assert set(product.parents) == {"autoencoder"}
    alone = make(form="uncond", autoencoder=None).product()
    assert set(alone.networks) == {"denoiser"}
    assert alone.parents == {}


def test_the_latent_code_is_shown_where_asked(make, prepared, quiet_trainer):
    assert make().networks.denoiser.latent is None
    module = make(show_latent=True)
    before = module.networks.denoiser.latent.code.weight.clone()
    quiet_trainer(max_steps=3).fit(module, datamodule=data(prepared))
    assert not torch.equal(module.networks.denoiser.latent.code.weight, before)


def test_reports_are_learned_from_where_there_is_a_text_encoder(
    make, prepared, quiet_trainer, tmp_path, monkeypatch
):
    pytest.importorskip("sentence_transformers")
    monkeypatch.setattr(flow, "STEPS", 20)
    model = write_text_model(tmp_path / "model")
    module = make(text_encoder=model, prior="flow")
    assert module.networks.prior.model.text_dim == 12
    assert module.product().parents["text_encoder"] == TextEncoder(model, "text").sha256
    folder = shutil.copytree(prepared, tmp_path / "data")
    reports = CheXpertDataModule(folder, batch_size=12, image_size=32, text_encoder=model)
    before = module.networks.denoiser.condition.text.weight.clone()
    quiet_trainer(max_steps=3).fit(module, datamodule=reports)
    assert not torch.equal(module.networks.denoiser.condition.text.weight, before)


def test_a_prior_that_looks_at_no_texts_is_refused_beside_a_text_encoder(make, tmp_path):
    with pytest.raises(UserError, match=r"^model\.prior: gaussian does not look at texts"):
        make(text_encoder=tmp_path, prior="gaussian")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"drop_field": -1.0}, r"drop_field: -1.0 is not possible; use 0 to 1\."),
        ({"drop_condition": 2.0}, "drop_condition: 2.0"),
        ({"drop_text": float("nan")}, "drop_text: nan"),
        ({"drop_reconstruction": 1.5}, "drop_reconstruction: 1.5"),
        ({"ema_decay": 1.0}, r"ema_decay: 1.0 is not possible; use 0 to below 1\."),
        ({"warmup_steps": -1}, r"warmup_steps: -1 is not possible; use 0 or more\."),
        ({"form": "uncond", "show_latent": True}, "form: uncond has no latent code"),
        ({"form": "uncond", "drop_reconstruction": 0.1}, "form: uncond has no latent code"),
    ],
)
def test_settings_out_of_their_range_or_without_effect(products, setting, message):
    with pytest.raises(UserError, match=rf"^model\.{message}"):
        DDPM(products / "autoencoder", 32, width=8, attention=[8], **setting)


def test_an_autoencoder_is_needed_unless_unconditional(make):
    with pytest.raises(UserError, match=r"^model\.autoencoder: none was given"):
        make(autoencoder=None)


def test_an_autoencoder_of_another_size_is_refused(make):
    with pytest.raises(UserError, match=r"^model\.autoencoder: .* 32 pixels.* is 64;"):
        make(image_size=64)


@pytest.mark.parametrize(
    ("name", "message"), [("none", "no product at"), ("encoder", "of kind 'encoder'")]
)
def test_a_wrong_product_is_refused(make, products, name, message):
    with pytest.raises(UserError, match=rf"^model\.autoencoder: .*{message}"):
        make(autoencoder=products / name)


@pytest.mark.slow
def test_two_processes_measure_what_one_does(prepared, products, tmp_path):
    sizes = {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [16]}
    flags = [f"--model.init_args.{name}={value}" for name, value in sizes.items()]
    flags += [f"--model.init_args.autoencoder={products / 'autoencoder'}"]
    flags += ["--data.batch_size=2"]
    one, two = (validate("ddpm", prepared, tmp_path / str(n), n, *flags) for n in (1, 2))
    assert one.keys() == {"ddpm/valid/loss"}
    assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("prior", ["normal", "gaussian", "mixture", "flow"])
def test_nothing_but_the_denoiser_asks_for_gradients(make, prior):
    """DistributedDataParallel stops where a parameter that does gets none."""
    asks = {name for name, p in make(prior=prior).named_parameters() if p.requires_grad}
    assert asks
    assert all(name.startswith("networks.denoiser.") for name in asks)


def test_the_prior_counts_images_as_often_as_balanced_views_do(make, prepared, monkeypatch):
    module, data_module = make(), data(prepared)
    data_module.setup("fit")
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(type(module.networks.prior), "fit", lambda _, z, c: seen.append(c.value))
    weights = np.linspace(0.0, 2.0, len(data_module.rows["train"]))
    for data_module.weights in (None, weights):
        fit_prior(module.networks, data_module, torch.device("cpu"))
    every = data_module.condition.rows(torch.as_tensor(data_module.rows["train"])).value
    assert torch.equal(seen[0], every)
    assert torch.equal(seen[1], every[torch.as_tensor(resample(weights, 0.5))])
    assert not torch.equal(*seen)
