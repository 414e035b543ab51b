"""The one chain in y: against closed forms, against both forms of DiffuseVAE, against diffusers."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from cxr_lightning.diffusion.process import (
    add_noise,
    ddim_step,
    ddpm_step,
    epsilon_from_x0,
    velocity,
    x0_from_epsilon,
    x0_from_velocity,
)
from cxr_lightning.diffusion.schedule import alpha_bar
from cxr_lightning.diffusion.spacing import trailing_times

T = 1000
A = alpha_bar("linear", T)
SPACED = [(1000, 999), (500, 499), (2, 1), (1, 0), (1000, 950), (50, 0), (700, 400)]


def images(count: int, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64)


def state(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x0 in [-1, 1], noise, x_hat, a second noise; float64."""
    x0, noise, x_hat, fresh = (images(3, 1, 8, 8, seed=seed + i) for i in range(4))
    return x0.tanh(), noise, x_hat.tanh(), fresh


def test_add_noise_has_the_moments_of_the_marginal():
    n, a_t = 200_000, 0.3
    x0 = torch.full((n, 1, 1, 1), 0.7, dtype=torch.float64)
    y = add_noise(x0, images(n, 1, 1, 1), torch.full((n,), a_t, dtype=torch.float64))
    sigma = (1 - a_t) ** 0.5
    # five standard errors of a mean and of a variance of n normal numbers
    assert abs(y.mean() - a_t**0.5 * 0.7) < 5 * sigma / n**0.5
    assert abs(y.var() - sigma**2) < 5 * sigma**2 * (2 / n) ** 0.5


def test_one_step_kernels_of_form_2_lead_to_the_shifted_marginal():
    """Form 2 of DiffuseVAE, kernel by kernel: N(sqrt(A_t) x0 + x_hat, 1 - A_t).

    The mean and variance of a chain of linear Gaussian kernels follow exactly, without sampling.
    """
    x0, _, x_hat, _ = state()
    alpha = A[1:] / A[:-1]
    mean, variance = alpha[0].sqrt() * x0 + x_hat, 1 - alpha[0]
    for t in range(2, T + 1):
        root = alpha[t - 1].sqrt()
        mean = root * mean + (1 - root) * x_hat
        variance = alpha[t - 1] * variance + 1 - alpha[t - 1]
        if t in (2, 10, 500, 1000):
            a = A[t].expand(3)
            ours = add_noise(x0, torch.zeros_like(x0), a) + x_hat
            torch.testing.assert_close(mean, ours, rtol=0, atol=1e-12)  # T roundings of 1e-16
            sigma = add_noise(torch.zeros_like(x0), torch.ones_like(x0), a)
            torch.testing.assert_close(variance.sqrt().expand_as(sigma), sigma, rtol=0, atol=1e-12)


def test_sampled_chain_of_form_2_minus_x_hat_is_our_marginal():
    """Draws Form 2's chain step by step; y_t = x_t - x_hat must have add_noise's moments."""
    n, steps = 20_000, 60
    a = alpha_bar("linear", steps)
    alpha = a[1:] / a[:-1]
    x0, x_hat = 0.6, -0.4
    generator = torch.Generator().manual_seed(0)
    x = torch.full((n,), x0, dtype=torch.float64)
    for t in range(1, steps + 1):
        root = alpha[t - 1].sqrt()
        shift = x_hat if t == 1 else (1 - root) * x_hat
        fresh = torch.randn(n, generator=generator, dtype=torch.float64)
        x = root * x + shift + (1 - alpha[t - 1]).sqrt() * fresh
        if t in (1, 5, 20, 60):
            sigma = float((1 - a[t]).sqrt())
            y = x - x_hat
            assert abs(y.mean() - a[t].sqrt() * x0) < 5 * sigma / n**0.5
            assert abs(y.var() - sigma**2) < 5 * sigma**2 * (2 / n) ** 0.5


@pytest.mark.parametrize(("t", "s"), SPACED)
def test_posterior_step_of_form_2_is_ours_shifted_by_x_hat(t, s):
    """mean = c1 x0 + c2 x_t + (1 - c2) x_hat, with DiffuseVAE's coefficients."""
    x0, noise, x_hat, fresh = state()
    y = add_noise(x0, noise, A[t].expand(3))
    beta = 1 - A[t] / A[s]
    c1 = beta * A[s].sqrt() / (1 - A[t])
    c2 = (1 - beta).sqrt() * (1 - A[s]) / (1 - A[t])
    sigma = (beta * (1 - A[s]) / (1 - A[t])).sqrt()
    form2 = c1 * x0 + c2 * (y + x_hat) + (1 - c2) * x_hat + sigma * fresh
    ours = ddpm_step(y, x0, fresh, float(A[t]), float(A[s])) + x_hat
    torch.testing.assert_close(ours, form2, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("t", "s"), SPACED)
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_step_of_form_2_is_ours_shifted_by_x_hat(t, s, eta):
    """The estimate of x0, the noise and the step as Form 2 writes them, in x_t."""
    x0, noise, x_hat, fresh = state()
    x_t = A[t].sqrt() * x0 + x_hat + (1 - A[t]).sqrt() * noise
    estimate = (x_t - x_hat - (1 - A[t]).sqrt() * noise) / A[t].sqrt()
    sigma = eta * ((1 - A[s]) / (1 - A[t]) * (1 - A[t] / A[s])).sqrt()
    form2 = A[s].sqrt() * estimate + (1 - A[s] - sigma**2).sqrt() * noise + sigma * fresh + x_hat
    y = x_t - x_hat
    ours_x0 = x0_from_epsilon(y, noise, A[t].expand(3))
    ours = ddim_step(ours_x0, noise, fresh, float(A[t]), float(A[s]), eta) + x_hat
    torch.testing.assert_close(ours, form2, rtol=0, atol=1e-11)


def test_posterior_is_bayes_rule_of_the_forward_chain():
    """q(y_s | y_t, x0) from the product of the two Gaussians q(y_s | x0) and q(y_t | y_s)."""
    t, s = 400, 320
    x0, noise, _, _ = state()
    y = add_noise(x0, noise, A[t].expand(3))
    alpha = A[t] / A[s]
    precision = 1 / (1 - A[s]) + alpha / (1 - alpha)
    mean = (A[s].sqrt() * x0 / (1 - A[s]) + alpha.sqrt() * y / (1 - alpha)) / precision
    zero, one = torch.zeros_like(x0), torch.ones_like(x0)
    a_t, a_s = float(A[t]), float(A[s])
    torch.testing.assert_close(ddpm_step(y, x0, zero, a_t, a_s), mean, rtol=0, atol=1e-12)
    step = ddpm_step(zero, zero, one, a_t, a_s)
    torch.testing.assert_close(step, precision.rsqrt().expand_as(step), rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", [1, 10, 500, 1000])
def test_epsilon_x0_and_v_lead_to_each_other(t):
    x0, noise, _, _ = state()
    a = A[t].expand(3)
    y = add_noise(x0, noise, a)
    v = velocity(x0, noise, a)
    # x0 divides by sqrt(A_T) = 0.006: roundings of 1e-16 grow to 1e-13
    torch.testing.assert_close(x0_from_epsilon(y, noise, a), x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(epsilon_from_x0(y, x0, a), noise, rtol=0, atol=1e-12)
    torch.testing.assert_close(x0_from_velocity(y, v, a), x0, rtol=0, atol=1e-12)


def test_each_image_has_its_own_time():
    x0, noise, _, _ = state()
    a = A[[1, 500, 1000]]
    together = add_noise(x0, noise, a)
    for i in range(3):
        alone = add_noise(x0[i : i + 1], noise[i : i + 1], a[i : i + 1])
        assert torch.equal(together[i : i + 1], alone)


def replay(monkeypatch: pytest.MonkeyPatch, module: str, noise: Tensor) -> None:
    """Makes a scheduler of diffusers draw this noise."""
    monkeypatch.setattr(f"diffusers.schedulers.{module}.randn_tensor", lambda *_, **__: noise)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("steps", [1000, 50, 7])
def test_ddpm_step_equals_diffusers(monkeypatch, steps, clip):
    oracle = DDPMScheduler(
        num_train_timesteps=T,
        beta_start=1e-4,
        beta_end=0.02,
        variance_type="fixed_small",
        clip_sample=clip,
        timestep_spacing="trailing",
    )
    oracle.alphas_cumprod = A[1:]  # float64, so that only formulas are compared
    oracle.one = torch.tensor(1.0, dtype=torch.float64)
    oracle.set_timesteps(steps)
    times = trailing_times(T, steps)
    y, epsilon, _, fresh = state()
    replay(monkeypatch, "scheduling_ddpm", fresh)
    kept = range(steps) if steps < 20 else [0, 1, steps // 2, steps - 2, steps - 1]
    for i in kept:
        t, s = times[i], [*times, 0][i + 1]
        theirs = oracle.step(epsilon, t - 1, y).prev_sample
        x0 = x0_from_epsilon(y, epsilon, A[t].expand(3))
        x0 = x0.clamp(-1, 1) if clip else x0
        ours = ddpm_step(y, x0, fresh, float(A[t]), float(A[s]))
        # diffusers clamps the last variance at 1e-20, a standard deviation of 1e-10 at most;
        # without clip x0 grows up to 1 / sqrt(A_T) = 157, and so do the roundings
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("steps", [1000, 50])
def test_ddim_step_equals_diffusers(monkeypatch, steps, eta, clip):
    oracle = DDIMScheduler(
        num_train_timesteps=T,
        beta_start=1e-4,
        beta_end=0.02,
        clip_sample=clip,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    oracle.alphas_cumprod = A[1:]
    oracle.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    oracle.set_timesteps(steps)
    times = trailing_times(T, steps)
    assert [int(t) + 1 for t in oracle.timesteps] == times
    y, epsilon, _, fresh = state()
    for i in (0, 1, steps // 2, steps - 2, steps - 1):
        t, s = times[i], [*times, 0][i + 1]
        theirs = oracle.step(
            epsilon, t - 1, y, eta=eta, use_clipped_model_output=True, variance_noise=fresh
        ).prev_sample
        a = A[t].expand(3)
        x0 = x0_from_epsilon(y, epsilon, a)
        x0 = x0.clamp(-1, 1) if clip else x0
        ours = ddim_step(x0, epsilon_from_x0(y, x0, a), fresh, float(A[t]), float(A[s]), eta)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_ddim_with_eta_one_is_the_ancestral_step():
    x0, noise, _, fresh = state()
    a_t, a_s = float(A[600]), float(A[500])
    y = add_noise(x0, noise, A[600].expand(3))
    ours = ddim_step(x0, noise, fresh, a_t, a_s, eta=1.0)
    torch.testing.assert_close(ours, ddpm_step(y, x0, fresh, a_t, a_s), rtol=0, atol=1e-12)


def test_ddim_of_eta_1_is_real_at_a_signal_to_noise_ratio_of_0():
    """1 - A_s - sigma^2 is 0 there, up to rounding."""
    a = alpha_bar("zero_snr", 1000).tolist()
    y = torch.ones(1, 1, 2, 2)
    for previous in range(1, 1000):
        made = ddim_step(y, y, y, a[1000], a[previous], 1.0)
        assert made.dtype == torch.float32
        assert made.isfinite().all()
