"""Samplers: exact step counts, and a perfect noise prediction recovers the image."""

import pytest
import torch
from torch import Tensor

from cxr_lightning.diffusion.process import epsilon_from_x0
from cxr_lightning.diffusion.random import ImageNoise
from cxr_lightning.diffusion.samplers import kept_times, sample
from cxr_lightning.diffusion.schedule import alpha_bar
from cxr_lightning.errors import UserError

SHAPE = (1, 4, 4)


@pytest.mark.parametrize("timesteps", [1, 7, 50, 1000])
def test_every_number_of_steps_is_exact_and_includes_the_last_time(timesteps):
    for steps in range(1, timesteps + 1):
        times = kept_times(timesteps, steps)
        assert len(times) == len(set(times)) == steps
        assert times == sorted(times, reverse=True)
        assert times[0] == timesteps
        assert times[-1] >= 1


def test_all_steps_are_all_times():
    assert kept_times(1000, 1000) == list(range(1000, 0, -1))


@pytest.mark.parametrize("steps", [-1, 0, 51])
def test_impossible_step_counts_are_refused_with_the_range(steps):
    with pytest.raises(UserError, match=rf"^steps: {steps} .* 1 to 50\.$"):
        kept_times(50, steps)


class Oracle:
    """Predicts the noise exactly, since it knows the image; counts and notes its calls."""

    def __init__(self, x0: Tensor, schedule: Tensor) -> None:
        self.x0, self.schedule, self.times = x0, schedule, list[int]()

    def __call__(self, y: Tensor, t: int) -> Tensor:
        self.times.append(t)
        return epsilon_from_x0(y, self.x0, self.schedule[t].float().expand(len(y)))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("steps", [1, 5, 50, 1000])
def test_a_perfect_prediction_recovers_the_image(sampler, steps, schedule):
    a = alpha_bar(schedule, 1000)
    x0 = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9
    oracle = Oracle(x0, a)
    noise = ImageNoise(0, torch.arange(2))
    made = sample(oracle, noise, SHAPE, a, sampler=sampler, steps=steps)
    assert oracle.times == kept_times(1000, steps)
    # the last step returns the estimate of x0: one division by sqrt(A_t), of at most
    # 4 float32 roundings of numbers up to 4 / sqrt(A_t)
    tolerance = 16 * 2**-24 / float(a[oracle.times[-1]]) ** 0.5
    torch.testing.assert_close(made, x0, rtol=0, atol=max(tolerance, 2e-6))


def test_eta_makes_ddim_random_and_still_exact():
    a = alpha_bar("linear", 100)
    x0 = torch.zeros(1, *SHAPE)
    steps: dict[float, list[Tensor]] = {}
    for eta in (0.0, 0.7):
        seen: list[Tensor] = []

        def epsilon(y: Tensor, t: int, seen: list[Tensor] = seen) -> Tensor:
            seen.append(y)
            return Oracle(x0, a)(y, t)

        made = sample(epsilon, ImageNoise(0, torch.arange(1)), SHAPE, a, steps=10, eta=eta)
        torch.testing.assert_close(made, x0, rtol=0, atol=2e-6)
        steps[eta] = seen
    assert torch.equal(steps[0.0][0], steps[0.7][0])
    assert not torch.allclose(steps[0.0][1], steps[0.7][1], atol=1e-2)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_the_clean_estimate_is_clamped_at_every_step(sampler):
    a = alpha_bar("linear", 100)
    estimates: list[tuple[int, Tensor]] = []
    made = sample(
        lambda y, t: torch.full_like(y, -3.0),
        ImageNoise(0, torch.arange(2)),
        SHAPE,
        a,
        sampler=sampler,
        steps=7,
        on_step=lambda done, x0: estimates.append((done, x0)),
    )
    assert [done for done, _ in estimates] == list(range(1, 8))
    assert all(x0.abs().max() <= 1.0 for _, x0 in estimates)
    torch.testing.assert_close(made, estimates[-1][1], rtol=0, atol=1e-6)


def test_one_ddpm_step_more_uses_one_draw_more_and_none_at_the_end():
    """y_T and one draw a step except the last: the stream's next numbers tell how many."""
    a = alpha_bar("linear", 100)
    used, fresh = ImageNoise(3, torch.arange(1)), ImageNoise(3, torch.arange(1))
    sample(lambda y, t: torch.zeros_like(y), used, SHAPE, a, sampler="ddpm", steps=4)
    for _ in range(4):
        fresh.normal(*SHAPE)
    assert torch.equal(used.normal(*SHAPE), fresh.normal(*SHAPE))
