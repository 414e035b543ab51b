"""Samplers: exact step counts, and a perfect noise prediction recovers the image."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from cxr_lightning.diffusion.process import epsilon_from_x0, x0_from_epsilon
from cxr_lightning.diffusion.random import ImageNoise
from cxr_lightning.diffusion.samplers import SamplerName, Sampling, levels, sample
from cxr_lightning.diffusion.schedule import alpha_bar
from cxr_lightning.diffusion.spacing import Spacing, kept_times
from cxr_lightning.errors import UserError

SHAPE = (1, 4, 4)
SAMPLERS = get_args(SamplerName)


@pytest.mark.parametrize("timesteps", [1, 7, 50, 1000])
@pytest.mark.parametrize("spacing", get_args(Spacing))
def test_every_number_of_steps_is_exact_and_includes_the_last_time(timesteps, spacing):
    level = levels(alpha_bar("linear", timesteps))
    for steps in range(1, timesteps + 1):
        times = kept_times(spacing, level, timesteps, steps)
        assert len(times) == len(set(times)) == steps
        assert times == sorted(times, reverse=True)
        assert times[0] == timesteps
        assert times[-1] >= 1


@pytest.mark.parametrize("spacing", get_args(Spacing))
def test_all_steps_are_all_times(spacing):
    level = levels(alpha_bar("cosine", 1000))
    assert kept_times(spacing, level, 1000, 1000) == list(range(1000, 0, -1))


def test_logsnr_spacing_is_even_in_the_level_and_ends_at_one():
    level = levels(alpha_bar("linear", 1000))
    times = kept_times("logsnr", level, 1000, 10)
    assert (times[0], times[-1]) == (1000, 1)
    steps = level[times].diff()
    # A whole time away at most on both sides; the coarsest grid is at the clean end.
    slack = float(-level[1:21].diff().min())
    assert (steps - steps.mean()).abs().max() < 2 * slack


@pytest.mark.parametrize("first", [1000, 700])
def test_beta_spacing_leaves_the_same_share_of_a_beta_distribution_between_all_times(first):
    level = levels(alpha_bar("linear", 1000))
    times = kept_times("beta", level, first, 20)
    # The density integrated by hand; x = sin(u)^2 takes its poles at 0 and 1 away.
    u = torch.linspace(0.0, math.pi / 2, 200_001, dtype=torch.float64)
    density = torch.sin(u) ** 0.2 * torch.cos(u) ** 0.2
    mass = torch.cumulative_trapezoid(density, u)
    mass = torch.cat([mass.new_zeros(1), mass]) / mass[-1]
    for i, t in enumerate(times):
        low, high = (
            float(mass[int(torch.searchsorted(torch.sin(u) ** 2, min(max(x, 0.0), 1.0)))])
            if x < 1.0
            else 1.0
            for x in ((t - 0.5) / first, (t + 0.5) / first)
        )
        assert low - 1e-4 <= 1.0 - i / 20 <= high + 1e-4


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(steps=-1), r"^steps: -1 .* use 1 to 50\.$"),
        (Sampling(steps=0), r"^steps: 0 .* use 1 to 50\.$"),
        (Sampling(steps=51), r"^steps: 51 .* use 1 to 50\.$"),
        (Sampling(steps=26, start=0.5), r"^steps: 26 .* begun at 0\.5; use 1 to 25\.$"),
        (Sampling(start=0.0), "^start: 0.0 is no share"),
        (Sampling(start=1.5), "^start: 1.5 is no share"),
        (Sampling(guidance=-1.0), "^guidance: -1.0 is not possible"),
        (Sampling(guidance=float("nan")), "^guidance: nan is not possible"),
        (Sampling(guidance_interval=(0.5, 0.2)), "^guidance_interval: 0.5 to 0.2 is no interval"),
        (Sampling("ddim", eta=2.0), "^eta: 2.0 is not possible"),
        (Sampling("unipc", eta=0.5), "^eta: 0.5 has no effect on the sampler unipc"),
    ],
)
def test_impossible_sampling_is_refused(sampling: Sampling, message: str):
    with pytest.raises(UserError, match=message):
        sampling.check(50)


@pytest.mark.parametrize("name", ["sampler", "spacing", "precision"])
def test_unknown_names_are_refused_where_types_are_not_checked(name: str):
    sampling = Sampling()
    object.__setattr__(sampling, name, "euler")
    with pytest.raises(
        UserError, match=rf"^{name}: 'euler' is not known; use one of (ddpm|beta|fp32)"
    ):
        sampling.check(50)


class Oracle:
    """Knows the image; counts and notes its calls."""

    def __init__(self, x0: Tensor, schedule: Tensor) -> None:
        self.x0, self.schedule, self.times = x0, schedule, list[int]()

    def __call__(self, y: Tensor, t: int) -> Tensor:
        self.times.append(t)
        a_t = self.schedule[t].float().expand(len(y))
        if float(a_t[0]) == 0.0:
            return self.x0
        return x0_from_epsilon(y, epsilon_from_x0(y, self.x0, a_t), a_t)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "zero_snr"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 5, 50, 1000])
def test_a_perfect_prediction_recovers_the_image(sampler, steps, schedule):
    a = alpha_bar(schedule, 1000)
    x0 = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9
    oracle = Oracle(x0, a)
    noise = ImageNoise(0, torch.arange(2))
    made = sample(oracle, noise, SHAPE, a, Sampling(sampler, steps))
    assert oracle.times == kept_times("beta", levels(a), 1000, steps)
    # the last step returns the estimate of x0: one division by sqrt(A_t), of at most
    # 4 float32 roundings of numbers up to 4 / sqrt(A_t)
    tolerance = 16 * 2**-24 / max(float(a[oracle.times[-1]]), 1e-12) ** 0.5  # 0: told as it is
    torch.testing.assert_close(made, x0, rtol=0, atol=max(tolerance, 2e-6))


def test_eta_makes_ddim_random_and_still_exact():
    a = alpha_bar("linear", 100)
    x0 = torch.zeros(1, *SHAPE)
    steps: dict[float, list[Tensor]] = {}
    for eta in (0.0, 0.7):
        seen: list[Tensor] = []

        def estimate(y: Tensor, t: int, seen: list[Tensor] = seen) -> Tensor:
            seen.append(y)
            return Oracle(x0, a)(y, t)

        sampling = Sampling("ddim", steps=10, eta=eta)
        made = sample(estimate, ImageNoise(0, torch.arange(1)), SHAPE, a, sampling)
        torch.testing.assert_close(made, x0, rtol=0, atol=2e-6)
        steps[eta] = seen
    assert torch.equal(steps[0.0][0], steps[0.7][0])
    assert not torch.allclose(steps[0.0][1], steps[0.7][1], atol=1e-2)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_clean_estimate_is_clamped_at_every_step(sampler):
    a = alpha_bar("linear", 100)
    estimates: list[tuple[int, Tensor]] = []
    made = sample(
        lambda y, t: torch.full_like(y, -3.0),
        ImageNoise(0, torch.arange(2)),
        SHAPE,
        a,
        Sampling(sampler, 7),
        on_step=lambda done, x0: estimates.append((done, x0)),
    )
    assert [done for done, _ in estimates] == list(range(1, 8))
    assert all(x0.abs().max() <= 1.0 for _, x0 in estimates)
    torch.testing.assert_close(made, estimates[-1][1], rtol=0, atol=1e-6)


def test_one_ddpm_step_more_uses_one_draw_more_and_none_at_the_end():
    """y_T and one draw a step except the last: the stream's next numbers tell how many."""
    a = alpha_bar("linear", 100)
    used, fresh = ImageNoise(3, torch.arange(1)), ImageNoise(3, torch.arange(1))
    sample(lambda y, t: torch.zeros_like(y), used, SHAPE, a, Sampling("ddpm", 4))
    for _ in range(4):
        fresh.normal(*SHAPE)
    assert torch.equal(used.normal(*SHAPE), fresh.normal(*SHAPE))
