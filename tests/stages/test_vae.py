"""Stage 1 on tiny data."""

import numpy as np
import pytest
import torch
from lightning import Callback
from processes import validate

from cxr_lightning.errors import UserError
from cxr_lightning.losses.vae import structural_similarity, vae_loss
from cxr_lightning.networks.autoencoder import sample_latent
from cxr_lightning.stages.vae import VAE, image_mean


class Recorder(Callback):
    """What training steps log, in order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, *_) -> None:
        self.values.append(float(trainer.callback_metrics[f"vae/train/{self.name}"]))


def stage(**changes) -> VAE:
    torch.manual_seed(0)
    return VAE(**{"image_size": 32, "width": 4, "latent_dim": 6, **changes})


@pytest.fixture
def unlogged(monkeypatch) -> None:
    """Steps without a trainer log nothing."""
    monkeypatch.setattr(VAE, "log_scalars", lambda *_: None)


def fast(parameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-3)


@pytest.mark.usefixtures("unlogged")
@pytest.mark.parametrize("ssim_weight", [0.0, 0.1])
def test_loss_of_a_fixed_batch_falls(datamodule, ssim_weight):
    """30 steps on 8 images: the error starts near the images' own power and must lose a third.

    A constant image at their mean, which the last bias alone can learn, loses more than half.
    """
    module = stage(optimizer=fast, ssim_weight=ssim_weight)
    batch = datamodule.batch_of(datamodule.rows["train"][:8])
    optimizer = fast(module.parameters())
    losses = []
    for step in range(30):
        torch.manual_seed(step)
        optimizer.zero_grad()
        loss = module.training_step(batch, step)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(0 < loss < float("inf") for loss in losses)
    assert losses[-1] < losses[0] * 2 / 3


@pytest.mark.usefixtures("unlogged")
@pytest.mark.parametrize("ssim_weight", [0.0, 0.2])
def test_training_step_is_the_loss_at_a_sampled_code(datamodule, ssim_weight):
    module = stage(beta=0.3, ssim_weight=ssim_weight)
    batch = datamodule.batch_of(datamodule.rows["train"][:3])
    torch.manual_seed(5)
    found = module.training_step(batch, 0)
    torch.manual_seed(5)
    posterior = module.autoencoder.encode(batch.image)
    made = module.autoencoder.decode(sample_latent(*posterior, torch.randn(3, 6)))
    expected = vae_loss(batch.image, made, *posterior, beta=0.3, ssim_weight=ssim_weight)
    torch.testing.assert_close(found, expected["loss"])


@pytest.mark.parametrize("ssim_weight", [0.0, 0.2])
def test_a_fit_logs_and_moves_the_weights(datamodule, quiet_trainer, ssim_weight):
    module = stage(ssim_weight=ssim_weight)
    trainer = quiet_trainer(max_steps=3, val_check_interval=3)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    trainer.fit(module, datamodule=datamodule)
    metrics = trainer.callback_metrics
    terms = {"loss", "reconstruction", "kl"} | ({"structure"} if ssim_weight else set())
    valid = terms | {"psnr", "ssim", "active_units"}
    expected = {f"vae/train/{n}" for n in terms | {"beta"}} | {f"vae/valid/{n}" for n in valid}
    assert metrics.keys() == expected
    assert all(v.isfinite() for v in metrics.values())
    assert any(not torch.equal(v, before[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluation_uses_the_posterior_mean_of_all_images(datamodule, quiet_trainer, split):
    datamodule.batch_size = 2  # the last batch is shorter, so a mean of means would be wrong
    module, trainer = stage(beta=0.5, beta_warmup_steps=9, ssim_weight=0.1), quiet_trainer()
    evaluate = trainer.validate if split == "valid" else trainer.test
    logged = evaluate(module, datamodule=datamodule, verbose=False)[0]
    batch = datamodule.batch_of(datamodule.rows["valid"])
    assert len(batch.image) % 2 == 1
    with torch.no_grad():
        posterior = module.autoencoder.encode(batch.image)
        made = module.autoencoder.decode(posterior[0])
    terms = vae_loss(batch.image, made, *posterior, beta=0.5, ssim_weight=0.1)
    error = (batch.image - made).square().mean((1, 2, 3))
    expected = {
        **{name: float(value) for name, value in terms.items()},
        "psnr": float((10 * torch.log10(4.0 / error)).mean()),
        "ssim": float(structural_similarity(batch.image, made).mean()),
        "active_units": int((np.var(posterior[0].numpy(), axis=0, ddof=1) > 0.01).sum()),
    }
    assert logged.keys() == {f"vae/{split}/{name}" for name in expected}
    for name, value in expected.items():
        assert logged[f"vae/{split}/{name}"] == pytest.approx(value, rel=1e-4), name


def test_validations_forget_the_one_before(datamodule, quiet_trainer):
    module, trainer = stage(), quiet_trainer()
    first, second = (
        trainer.validate(module, datamodule=datamodule, verbose=False)[0] for _ in range(2)
    )
    assert first == second


def test_a_validated_stage_can_be_trained(datamodule, quiet_trainer):
    module = stage()
    quiet_trainer().validate(module, datamodule=datamodule, verbose=False)
    trainer = quiet_trainer(max_steps=1, val_check_interval=1)
    trainer.fit(module, datamodule=datamodule)
    assert "vae/valid/loss" in trainer.callback_metrics


def test_a_nan_in_one_batch_is_not_averaged_away():
    mean = image_mean()
    mean.update(torch.ones(3))
    mean.update(torch.tensor(float("nan")).expand(2))
    assert mean.compute().isnan()


def test_measurements_are_kept_out_of_checkpoints():
    assert all(name.startswith("autoencoder.") for name in stage().state_dict())


@pytest.mark.parametrize(("steps", "share"), [(3, [0.25, 0.5, 0.75, 1, 1, 1]), (0, [1] * 6)])
def test_beta_rises_over_the_warmup_and_is_logged(datamodule, quiet_trainer, steps, share):
    module, betas = stage(beta=2.0, beta_warmup_steps=steps), Recorder("beta")
    trainer = quiet_trainer(max_steps=6, limit_val_batches=0, callbacks=[betas])
    trainer.fit(module, datamodule=datamodule)
    assert betas.values == pytest.approx([2.0 * s for s in share])


def test_validation_weighs_with_the_full_beta(datamodule, quiet_trainer):
    module = stage(beta=2.0, beta_warmup_steps=100)
    trainer = quiet_trainer(max_steps=1, val_check_interval=1)
    trainer.fit(module, datamodule=datamodule)
    loss, error, kl = (
        float(trainer.callback_metrics[f"vae/valid/{n}"]) for n in ("loss", "reconstruction", "kl")
    )
    assert loss == pytest.approx(error + 2.0 * kl, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("beta", -0.5), ("beta", float("nan")), ("beta_warmup_steps", -1), ("ssim_weight", -0.1)],
)
def test_negative_weights_are_refused(name, value):
    with pytest.raises(UserError, match=rf"^model\.{name}: {value} is not possible; use 0 "):
        stage(**{name: value})


def test_product_is_the_autoencoder():
    module = stage()
    product = module.product()
    assert product.kind == "autoencoder"
    assert product.networks == {"autoencoder": module.autoencoder}
    assert product.parents == {}


def test_generator_decodes_the_standard_normal(datamodule):
    generator = stage().generator()
    assert generator.denoiser is None
    noise = torch.randn(2, 6)
    condition = datamodule.condition.rows(slice(0, 2))
    assert torch.equal(generator.prior(noise, condition), noise)


@pytest.mark.slow
def test_two_processes_measure_what_one_does(prepared, tmp_path):
    flags = ["--data.batch_size=2", "--model.init_args.ssim_weight=0.1"]
    flags += ["--model.init_args.width=4", "--model.init_args.latent_dim=8"]
    one, two = (validate("vae", prepared, tmp_path / str(n), n, *flags) for n in (1, 2))
    assert len(one) == 7
    assert two == pytest.approx(one, rel=1e-4)
