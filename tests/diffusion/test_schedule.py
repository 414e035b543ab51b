"""Noise schedules against diffusers."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

from cxr_lightning.diffusion.schedule import alpha_bar, snr


@pytest.mark.parametrize(
    ("schedule", "theirs", "timesteps"),
    [
        ("linear", "linear", 1000),
        ("cosine", "squaredcos_cap_v2", 1000),
        ("cosine", "squaredcos_cap_v2", 100),
    ],
)
def test_equals_diffusers(schedule, theirs, timesteps):
    oracle = DDPMScheduler(
        num_train_timesteps=timesteps, beta_schedule=theirs, beta_start=1e-4, beta_end=0.02
    )
    ours = alpha_bar(schedule, timesteps)
    assert ours.dtype == torch.float64
    # diffusers computes in float32: T products, and the smallest alpha = 1 - 0.999 loses digits
    rtol = timesteps * 2**-23 + 2**-24 / 1e-3
    torch.testing.assert_close(ours[1:], oracle.alphas_cumprod.double(), rtol=rtol, atol=0.0)


def test_zero_snr_equals_diffusers():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    expected = (1 - rescale_zero_terminal_snr(betas)).cumprod(0)
    ours = alpha_bar("zero_snr", 1000)
    torch.testing.assert_close(ours[1:], expected, rtol=1e-9, atol=1e-15)
    assert ours[-1] == 0.0
    assert ours[1] == alpha_bar("linear", 1000)[1]
    assert (ours.diff() < 0).all()


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("timesteps", [1, 5, 20, 100, 1000, 4000])
def test_falls_from_one_and_stays_positive(schedule, timesteps):
    a = alpha_bar(schedule, timesteps)
    assert len(a) == timesteps + 1
    assert a[0] == 1.0
    assert (a.diff() < 0).all()
    assert (a > 0).all()


@pytest.mark.parametrize("timesteps", [50, 100, 250, 4000])
def test_linear_ends_as_noisy_whatever_the_number_of_steps(timesteps):
    # the sum of beta is the same, 10.05; -log alpha_bar exceeds it by about sum beta^2 / 2
    a = alpha_bar("linear", timesteps)
    beta = 1.0 - a[1:] / a[:-1]
    assert beta.sum() == pytest.approx(10.05, rel=1e-9)
    assert a[-1] < 1e-4


def test_published_end_of_the_linear_schedule():
    a = alpha_bar("linear", 1000)
    assert float(a[1000]) ** 0.5 == pytest.approx(0.00635, abs=5e-6)  # given to 3 digits


def test_snr_is_signal_over_noise():
    a = torch.tensor([0.2, 0.5, 0.8])
    torch.testing.assert_close(snr(a), torch.tensor([0.25, 1.0, 4.0]))
