"""Pairs of times, and consistency sampling of normal images, where all is known."""

import math

import pytest
import torch
from torch import Tensor

from cxr_lightning.diffusion.consistency import earlier_time, gap_at
from cxr_lightning.diffusion.process import add_noise, x0_from_output
from cxr_lightning.diffusion.random import ImageNoise
from cxr_lightning.diffusion.samplers import Sampling, sample
from cxr_lightning.diffusion.schedule import alpha_bar
from cxr_lightning.diffusion.spacing import trailing_times
from cxr_lightning.types import Condition

MEAN, SD = 0.1, 0.15


def test_the_gap_halves_and_stops():
    gaps = [gap_at(step, 10, 1 / 8) for step in range(45)]
    assert gaps == [1 / 2] * 10 + [1 / 4] * 10 + [1 / 8] * 25


@pytest.mark.parametrize("timesteps", [1, 7, 50, 1000])
@pytest.mark.parametrize("gap", [1.0, 0.5, 0.3, 1 / 64, 1e-9])
def test_earlier_times(timesteps, gap):
    t = torch.arange(1, timesteps + 1)
    r = earlier_time(t, gap).tolist()
    for later, earlier in zip(t.tolist(), r, strict=True):
        # the last time that lies by the gap or more before, and a whole time at least
        fitting = [time for time in range(later) if later - time >= gap * later]
        assert earlier == max(fitting)
    if gap == 1.0:
        assert r == [0] * timesteps
    if gap == 1e-9:
        assert r == list(range(timesteps))


@pytest.mark.parametrize("form", ["form1", "form2", "uncond"])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_boundary_condition(make_denoiser, form, prediction):
    """At time 0 any network gives the image itself."""
    network = make_denoiser(form=form, prediction=prediction)
    y, zero = torch.rand(2, 1, 32, 32) * 2 - 1, torch.zeros(2, dtype=torch.long)
    output = network(y, zero, Condition.unknown(2), y.flip(0))
    assert output.abs().mean() > 1e-3
    a_0 = alpha_bar("linear", 50)[zero].float()
    assert torch.equal(x0_from_output(prediction, y, output, a_0), y)


def exact(y: Tensor, a_t: float) -> Tensor:
    """The consistency function of images N(m, s^2), pixel by pixel.

    The probability-flow ODE of z = y / sqrt(A), sigma = sqrt((1 - A) / A) is
    dz / dsigma = sigma (z - m) / (s^2 + sigma^2), so (z - m) / sqrt(s^2 + sigma^2) is constant; at
    sigma = 0 that gives the image.
    """
    return MEAN + (y - a_t**0.5 * MEAN) * SD / (a_t * SD**2 + 1.0 - a_t) ** 0.5


def denoised(y: Tensor, a_t: float) -> Tensor:
    """The posterior mean of such images, which a diffusion model estimates."""
    share = a_t * SD**2 / (a_t * SD**2 + 1.0 - a_t)
    return (1.0 - share) * MEAN + share * y / a_t**0.5


def test_the_exact_function_is_constant_along_the_ode():
    """Against many small Euler steps of the ODE with the posterior mean."""
    a = alpha_bar("linear", 1000)
    z = torch.tensor([-2.0, 0.3, 1.0], dtype=torch.float64) * 10
    sigmas = torch.logspace(1, -4, 2_000, dtype=torch.float64)
    begin = exact(z * (1 + 100.0) ** -0.5, 1 / (1 + 100.0))
    for now, following in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        a_t = 1 / (1 + now**2)
        z = z + (following - now) * (z - denoised(z * a_t**0.5, a_t)) / now
    torch.testing.assert_close(z, begin, rtol=0, atol=1e-3)
    y = torch.tensor([0.2], dtype=torch.float64)
    assert float(exact(y, float(a[0]))) == pytest.approx(0.2)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_consistency_sampling_with_the_exact_function_draws_the_images(steps):
    a = alpha_bar("linear", 1000)
    n = 90_000
    noise = ImageNoise(0, torch.arange(1))

    def draw(function) -> Tensor:
        sampling = Sampling("consistency", steps)
        return sample(lambda y, t: function(y, float(a[t])), noise, (1, 300, 300), a, sampling)

    made = draw(exact)
    # five standard errors; A_T = 4e-5 is not quite pure noise
    assert abs(float(made.mean()) - MEAN) < 5 * SD / n**0.5 + 1e-4
    assert abs(float(made.std()) - SD) < 5 * SD / (2 * n) ** 0.5 + 1e-4
    # what a diffusion model gives with this sampler varies too little
    assert float(draw(denoised).std()) < 0.8 * SD


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_3m", "unipc"])
def test_solvers_of_the_ode_do_not_suit_a_consistency_function(sampler):
    """They take it for the posterior mean and run past the images: so they are refused."""
    a = alpha_bar("linear", 1000)
    noise = ImageNoise(0, torch.arange(1))
    sampling = Sampling(sampler, 20)
    made = sample(lambda y, t: exact(y, float(a[t])), noise, (1, 50, 50), a, sampling)
    assert float(made.std()) > 1.5 * SD


def test_each_step_noises_the_estimate_anew():
    """Written out: algorithm 1 of Song et al. 2023 with the chain's scales."""
    a, seen = alpha_bar("linear", 100), list[tuple[int, Tensor]]()

    def estimate(y: Tensor, t: int) -> Tensor:
        seen.append((t, y))
        return (y + t / 100).clamp(-1, 1)

    index = torch.arange(3)
    made = sample(
        estimate, ImageNoise(5, index), (1, 4, 4), a, Sampling("consistency", 4, spacing="trailing")
    )
    noise = ImageNoise(5, index)
    y = noise.normal(1, 4, 4)
    times = trailing_times(100, 4)
    assert [t for t, _ in seen] == times
    for i, t in enumerate(times):
        torch.testing.assert_close(seen[i][1], y, rtol=0, atol=1e-6)
        x0 = (y + t / 100).clamp(-1, 1)
        if i < 3:
            s = times[i + 1]
            fresh = noise.normal(1, 4, 4)
            y = math.sqrt(a[s]) * x0 + math.sqrt(1 - a[s]) * fresh
    torch.testing.assert_close(made, x0, rtol=0, atol=1e-6)


def test_a_pair_follows_the_trajectory_in_expectation():
    """E[z_t - z_r | z_t] = (sigma_t - sigma_r) dz / dsigma: the slope of a regression."""
    a = alpha_bar("linear", 1000)[[300, 290]]
    sigma = ((1 - a) / a).sqrt()
    generator = torch.Generator().manual_seed(0)
    n = 200_000
    x0 = MEAN + SD * torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64)
    eps = torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64)
    z, earlier = (add_noise(x0, eps, s.expand(n)).flatten() / s.sqrt() for s in a)
    moved = (z - earlier) / (sigma[0] - sigma[1])
    centred = z - z.mean()
    slope = float((centred * moved).sum() / centred.square().sum())
    expected = float(sigma[0] / (SD**2 + sigma[0] ** 2))
    # five standard errors of the slope; the rest of eps has the variance s^2 / (s^2 + sigma^2)
    rest = SD / (SD**2 + float(sigma[0]) ** 2) ** 0.5
    assert abs(slope - expected) < 5 * rest / float(centred.std()) / n**0.5
