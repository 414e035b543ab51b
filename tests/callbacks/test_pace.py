"""What is logged of the speed of a training."""

import itertools

import pytest

from cxr_lightning.callbacks import pace
from cxr_lightning.callbacks.pace import Pace
from cxr_lightning.stages.vae import VAE


@pytest.fixture
def module(make_autoencoder) -> VAE:
    return VAE(image_size=32, width=8, latent_dim=6)


def test_images_a_second_leave_validations_out(module, datamodule, quiet_trainer, monkeypatch):
    clock = itertools.count(100.0, 2.0)  # two seconds each time that somebody looks
    monkeypatch.setattr(pace.time, "perf_counter", lambda: next(clock))
    logged = []
    monkeypatch.setattr(module, "log_scalars", lambda split, scalars, n: logged.append(scalars))
    trainer = quiet_trainer(
        max_steps=6, val_check_interval=3, log_every_n_steps=2, callbacks=[Pace()]
    )
    trainer.fit(module, datamodule=datamodule)
    found = [s for s in logged if "images_per_second" in s]
    assert len(found) == 6
    # a step takes 2 s by this clock, whatever validation (looked at once) lies between
    assert [s["images_per_second"] for s in found] == [datamodule.batch_size / 2.0] * 6
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    assert found[-1]["learning_rate"] == pytest.approx(rate)


def test_they_reach_the_logger_at_logged_steps(module, datamodule, quiet_trainer):
    trainer = quiet_trainer(max_steps=2, log_every_n_steps=1, callbacks=[Pace()])
    trainer.fit(module, datamodule=datamodule)
    assert trainer.callback_metrics["vae/train/images_per_second"] > 0
    assert trainer.callback_metrics["vae/train/learning_rate"] > 0
