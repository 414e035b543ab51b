"""Stage 1 on tiny data."""

import pytest
import torch

from cxr_lightning.losses.vae import kl_divergence
from cxr_lightning.networks.autoencoder import sample_latent
from cxr_lightning.stages.vae import VAE


def stage(**changes) -> VAE:
    torch.manual_seed(0)
    return VAE(**{"image_size": 32, "width": 4, "latent_dim": 6, **changes})


def fast(parameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-3)


def test_loss_of_a_fixed_batch_falls(datamodule):
    """30 steps on 8 images: the error starts near the images' own power and must lose a third.

    A constant image at their mean, which the last bias alone can learn, loses more than half.
    """
    module = stage(optimizer=fast)
    batch = datamodule.batch_of(datamodule.rows["train"][:8])
    optimizer = fast(module.parameters())
    losses = []
    for step in range(30):
        torch.manual_seed(step)
        optimizer.zero_grad()
        scalars, _ = module._objective(batch, torch.randn(8, 6), beta=1.0)
        scalars["loss"].backward()
        optimizer.step()
        losses.append(float(scalars["loss"].detach()))
    assert all(0 < loss < float("inf") for loss in losses)
    assert losses[-1] < losses[0] * 2 / 3


def test_objective_is_reconstruction_plus_beta_kl(datamodule):
    module = stage()
    batch = datamodule.batch_of(datamodule.rows["train"][:3])
    noise = torch.randn(3, 6)
    scalars, made = module._objective(batch, noise, beta=0.3)
    mean, log_variance = module.autoencoder.encode(batch.image)
    expected = module.autoencoder.decode(sample_latent(mean, log_variance, noise))
    torch.testing.assert_close(made, expected)
    error = sum(((batch.image[i] - expected[i]) ** 2).sum() for i in range(3)) / 3
    kl = kl_divergence(mean, log_variance)
    torch.testing.assert_close(scalars["reconstruction"], error, rtol=1e-5, atol=0)
    torch.testing.assert_close(scalars["loss"], error + 0.3 * kl, rtol=1e-5, atol=0)


def test_a_fit_logs_and_moves_the_weights(datamodule, quiet_trainer):
    module, trainer = stage(), quiet_trainer(max_steps=3, val_check_interval=3)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    trainer.fit(module, datamodule=datamodule)
    metrics = trainer.callback_metrics
    names = ("loss", "reconstruction", "kl")
    assert {f"vae/train/{n}" for n in names} <= metrics.keys()
    more = ("psnr", "ssim", "active_units")
    assert {f"vae/valid/{n}" for n in (*names, *more)} <= metrics.keys()
    assert all(v.isfinite() for v in metrics.values())
    assert any(not torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_validation_uses_the_posterior_mean_of_all_images(datamodule, quiet_trainer):
    module, trainer = stage(), quiet_trainer()
    logged = trainer.validate(module, datamodule=datamodule, verbose=False)[0]
    batch = datamodule.batch_of(datamodule.rows["valid"])
    with torch.no_grad():
        mean, log_variance = module.autoencoder.encode(batch.image)
        made = module.autoencoder.decode(mean)
    error = (batch.image - made).square().sum((1, 2, 3)).mean()
    kl = kl_divergence(mean, log_variance)
    assert logged["vae/valid/reconstruction"] == pytest.approx(float(error), rel=1e-4)
    assert logged["vae/valid/kl"] == pytest.approx(float(kl), rel=1e-4)
    psnr = 10 * torch.log10(4.0 / (batch.image - made).square().mean((1, 2, 3))).mean()
    assert logged["vae/valid/psnr"] == pytest.approx(float(psnr), rel=1e-4)
    assert module.means == []


def test_beta_rises_over_the_warmup(datamodule, quiet_trainer, monkeypatch):
    module = stage(beta=2.0, beta_warmup_steps=3)
    betas = []
    original = VAE._objective

    def note(self, batch, noise, beta):
        betas.append(beta)
        return original(self, batch, noise, beta)

    monkeypatch.setattr(VAE, "_objective", note)
    quiet_trainer(max_steps=6, limit_val_batches=0).fit(module, datamodule=datamodule)
    assert betas == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0])


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
