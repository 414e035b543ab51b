"""Solvers: exact for polynomials, of their order, and equal to diffusers'."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from scipy.integrate import quad
from torch import Tensor

from cxr_lightning.diffusion.process import ddim_step, epsilon_from_x0
from cxr_lightning.diffusion.random import ImageNoise
from cxr_lightning.diffusion.samplers import ORDERS, SamplerName, Sampling, sample
from cxr_lightning.diffusion.schedule import alpha_bar
from cxr_lightning.diffusion.solvers import (
    Estimate,
    dpm_solver,
    first_order,
    scales,
    sde_dpm_solver,
    unipc_correct,
    unipc_predict,
)
from cxr_lightning.diffusion.spacing import trailing_times

SHAPE = (1, 4, 4)
LEVELS = (-1.7, -1.2, -0.4)
"""Levels of three estimates, unevenly spaced."""


def _state(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64)


def _exact(y: Tensor, x0: Callable[[float], float], start: float, end: float) -> Tensor:
    """The solution of the ODE for a known x0(l), by numerical integration."""
    integral, _ = quad(lambda level: math.exp(level) * x0(level), start, end, epsabs=1e-13)
    return scales(end)[1] / scales(start)[1] * y + scales(end)[1] * integral


def _estimates(x0: Callable[[float], float], levels: tuple[float, ...]) -> list[Estimate]:
    return [Estimate(torch.full_like(_state(), x0(level)), level) for level in levels]


def test_scales_belong_to_the_level() -> None:
    for level in (-9.0, 0.0, 1.3, 9.0):
        alpha, sigma = scales(level)
        assert alpha**2 + sigma**2 == pytest.approx(1.0)
        assert math.log(alpha / sigma) == pytest.approx(level)


def test_the_first_order_is_ddim() -> None:
    a = alpha_bar("linear", 1000)
    y, x0 = _state(), _state(1)
    a_t, a_prev = float(a[700]), float(a[650])
    level, next_level = (0.5 * math.log(v / (1 - v)) for v in (a_t, a_prev))
    epsilon = epsilon_from_x0(y, x0, torch.full((2,), a_t, dtype=torch.float64))
    expected = ddim_step(x0, epsilon, torch.zeros_like(y), a_t, a_prev)
    for solve in (dpm_solver, unipc_predict):
        torch.testing.assert_close(solve(y, [Estimate(x0, level)], next_level), expected)
    torch.testing.assert_close(first_order(y, Estimate(x0, level), next_level), expected)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_exact_where_x0_is_a_polynomial_of_a_lower_degree(order: int) -> None:
    """2M takes the mean slope of the step, so it is exact to its order only; see below."""
    coefficients = (0.3, -0.2, 0.15)[:order]

    def x0(level: float) -> float:
        return float(np.polynomial.polynomial.polyval(level, coefficients))

    y, end = _state(), 0.1
    known = _estimates(x0, LEVELS[-order:])
    expected = _exact(y, x0, LEVELS[-1], end)
    if order != 2:
        torch.testing.assert_close(dpm_solver(y, known, end), expected)
    reached = Estimate(torch.full_like(y, x0(end)), end)
    if order == 3:
        torch.testing.assert_close(unipc_predict(y, known, end), expected)
        torch.testing.assert_close(unipc_correct(y, known[-2:], reached), expected)
    assert not torch.allclose(first_order(y, known[-1], end), expected) or order == 1


def _solve(name: str, steps: int) -> float:
    """A chain of a single number whose data are +1 and -1, from level -3 to 1."""
    order = {"dpmpp_2m": 2, "dpmpp_3m": 3, "unipc": 3, "ddim": 1}[name]
    grid = np.linspace(-3.0, 1.0, steps + 1).tolist()
    y = torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64)
    known: list[Estimate] = []
    begun = y
    for level, following in itertools.pairwise(grid):
        alpha, sigma = scales(level)
        new = Estimate(torch.tanh(y * alpha / sigma**2), level)
        if name == "unipc" and known:
            y = unipc_correct(begun, known, new)
        known, begun = [*known, new][-order:], y
        y = (unipc_predict if name == "unipc" else dpm_solver)(y, known, following)
    return float(y)


@pytest.mark.parametrize(
    ("name", "order"), [("ddim", 1), ("dpmpp_2m", 2), ("dpmpp_3m", 3), ("unipc", 3)]
)
def test_the_error_falls_with_the_order(name: str, order: int) -> None:
    truth = _solve("unipc", 4000)
    errors = [abs(_solve(name, steps) - truth) for steps in (40, 80, 160)]
    found = [math.log2(one / other) for one, other in itertools.pairwise(errors)]
    # The order shows in the limit; one less the next order's share at these steps.
    assert min(found) > order - 0.25


@pytest.mark.parametrize("level", [-1.5, 0.0, 2.5])
def test_a_step_of_the_sde_keeps_the_distribution(level: float) -> None:
    """Where the image is known, states have mean alpha x0 and variance sigma^2 at every level."""
    x0 = torch.full((1, 1, 100, 100), 0.4, dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    noise, fresh = torch.randn(2, 1, 1, 100, 100, generator=draw, dtype=torch.float64)
    alpha, sigma = scales(-2.0)
    y = sde_dpm_solver(alpha * x0 + sigma * noise, [Estimate(x0, -2.0)], level, fresh)
    alpha, sigma = scales(level)
    left = (y - alpha * x0) / sigma
    # five standard errors of 10,000 draws; of a variance they are sqrt(2) times as wide
    assert float(left.mean()) == pytest.approx(0.0, abs=0.05)
    assert float(left.square().mean()) == pytest.approx(1.0, abs=0.071)


A = alpha_bar("linear", 1000)


def _guess(y: Tensor, t: int) -> Tensor:
    """A smooth estimate of x0 within [-1, 1]."""
    a = float(A[t])
    return torch.tanh(0.02 * y * a**0.5 / (1 - a)) * 0.8 + 0.1


class _Fixed(ImageNoise):
    """One known noise, in float64."""

    def normal(self, *shape: int) -> Tensor:
        return _state().reshape(2, *shape)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers
@pytest.mark.parametrize("steps", [5, 10, 14])
@pytest.mark.parametrize("name", ["dpmpp_2m", "sde_dpmpp_2m", "unipc"])
def test_equal_to_diffusers(name: SamplerName, steps: int) -> None:
    """3M is left out: see `dpm_solver`. diffusers lowers the order at the end below 15 steps."""
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "dpmpp_2m": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
        "sde_dpmpp_2m": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
        "unipc": (UniPCMultistepScheduler, {"solver_type": "bh2"}),
    }
    kind, settings = kinds[name]
    scheduler = kind(
        1000,
        trained_betas=(1 - A[1:] / A[:-1]).numpy(),
        prediction_type="sample",
        timestep_spacing="trailing",
        final_sigmas_type="zero",
        lower_order_final=True,
        solver_order=ORDERS[name],
        **settings,
    )
    scheduler.set_timesteps(steps)
    assert [int(t) + 1 for t in scheduler.timesteps] == trailing_times(1000, steps)
    y = _state()
    fresh = {"variance_noise": _state()} if name == "sde_dpmpp_2m" else {}
    for t in scheduler.timesteps:
        y = scheduler.step(_guess(y, int(t) + 1), t, y, **fresh).prev_sample
    noise = _Fixed(0, torch.arange(2))
    made = sample(_guess, noise, SHAPE, A, Sampling(name, steps, spacing="trailing"))
    torch.testing.assert_close(made, y, rtol=0, atol=1e-5)  # its coefficients are float32
    other = sample(_guess, noise, SHAPE, A, Sampling("ddim", steps, spacing="trailing"))
    assert (made - other).abs().max() > 1e-4  # the tolerance tells them apart
