"""Multistep solvers of the diffusion ODE and SDE, written for the estimate of the clean image.

With alpha = sqrt(A), sigma = sqrt(1 - A) and half the log signal-to-noise ratio
l = log(alpha / sigma), called level here, the ODE has the exact solution (Lu et al. 2022,
DPM-Solver++, arXiv 2211.01095, proposition 4.1)

    y_t = sigma_t / sigma_s y_s + sigma_t * integral from l_s to l_t of exp(l) x0(l) dl.

The solvers differ in how they extrapolate x0(l) from the estimates of the last steps; with one
estimate each is DDIM (section 4.2 there). h is the step in l.
"""

from collections.abc import Sequence
from math import exp, expm1, factorial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor


class Estimate(NamedTuple):
    """The clean image as the network saw it at one time.

    Attributes:
        x0: Estimate of the clean image.
        level: Half the log signal-to-noise ratio of that time.
    """

    x0: Float[Tensor, "b c h w"]
    level: float


def scales(level: float) -> tuple[float, float]:
    """Alpha and sigma at a level."""
    return (1.0 + exp(-2.0 * level)) ** -0.5, (1.0 + exp(2.0 * level)) ** -0.5


def first_order(
    y: Float[Tensor, "b c h w"], estimate: Estimate, level: float
) -> Float[Tensor, "b c h w"]:
    """The solution for a constant x0: DDIM.

    Args:
        y: State at the estimate's level.
        estimate: The estimate.
        level: Where to go.
    """
    alpha, sigma = scales(level)
    h = level - estimate.level
    return sigma / scales(estimate.level)[1] * y - alpha * expm1(-h) * estimate.x0


def dpm_solver(
    y: Float[Tensor, "b c h w"], estimates: Sequence[Estimate], level: float
) -> Float[Tensor, "b c h w"]:
    """Multistep DPM-Solver++ of the order of the number of estimates, 1 to 3.

    Two estimates: algorithm 2 of Lu et al. 2022 (2M). Three (3M): x0 as the parabola through them,
    integrated exactly. The common implementations of 3M halve the parabola's last coefficient,
    which leaves an order of 2 (seen in the error over the step size on an example with a known
    solution); here it is 3.

    Args:
        y: State at the newest estimate's level.
        estimates: The last estimates, the newest last.
        level: Where to go.
    """
    newest, h = estimates[-1], level - estimates[-1].level
    moved = first_order(y, newest, level)
    alpha, _ = scales(level)
    if len(estimates) == 1:
        return moved
    slope = _slope(estimates[-2], newest) * h
    if len(estimates) == 2:
        return moved - 0.5 * alpha * expm1(-h) * slope
    earlier = _slope(estimates[-3], estimates[-2]) * h
    curvature = (slope - earlier) * h / (newest.level - estimates[-3].level)
    slope = slope + curvature * (newest.level - estimates[-2].level) / h
    # Integrals of s / h and (s / h)^2 over the step.
    linear, square = expm1(-h) / h + 1.0, 1.0 - 2.0 * (expm1(-h) + h) / h**2
    return moved + alpha * (linear * slope + square * curvature)


def sde_dpm_solver(
    y: Float[Tensor, "b c h w"],
    estimates: Sequence[Estimate],
    level: float,
    fresh: Float[Tensor, "b c h w"],
) -> Float[Tensor, "b c h w"]:
    """SDE-DPM-Solver++ of the order of the number of estimates, 1 or 2 (2M).

    Lu et al. 2022, section 5: the reverse SDE has the solution y_t = sigma_t / sigma_s exp(-h) y_s
    + sigma_t * integral of 2 exp(2 l - l_t) x0(l) dl + sigma_t (1 - exp(-2 h))^(1/2) noise. Fresh
    noise takes the place of what earlier steps left, so their errors fade.

    Args:
        y: State at the newest estimate's level.
        estimates: The last estimates, the newest last.
        level: Where to go.
        fresh: Standard normal noise.
    """
    newest, h = estimates[-1], level - estimates[-1].level
    alpha, sigma = scales(level)
    x0 = newest.x0
    if len(estimates) == 2:
        x0 = x0 + 0.5 * h * _slope(estimates[0], newest)
    share = -expm1(-2.0 * h)
    kept = sigma / scales(newest.level)[1] * exp(-h) * y
    return kept + alpha * share * x0 + sigma * share**0.5 * fresh


def unipc_predict(
    y: Float[Tensor, "b c h w"], estimates: Sequence[Estimate], level: float
) -> Float[Tensor, "b c h w"]:
    """Predictor UniP of the order of the number of estimates (Zhao et al. 2023, arXiv 2302.04867).

    Algorithm 2 there, for the clean image, with B(h) = exp(h) - 1.

    Args:
        y: State at the newest estimate's level.
        estimates: The last estimates, the newest last.
        level: Where to go.
    """
    newest, h = estimates[-1], level - estimates[-1].level
    ratios = [(other.level - newest.level) / h for other in estimates[:-1]]
    # The paper fixes 1/2 for the second order, where B(h) leaves the weight free.
    weights = np.array([0.5]) if len(ratios) == 1 else _weights(ratios, h)
    return _unipc(y, newest, estimates[:-1], ratios, weights, level)


def unipc_correct(
    y: Float[Tensor, "b c h w"], estimates: Sequence[Estimate], reached: Estimate
) -> Float[Tensor, "b c h w"]:
    """Corrector UniC: goes the last step again, with the estimate at its end (algorithm 1 there).

    Costs no evaluation, since the estimate serves the next step too.

    Args:
        y: State at the newest estimate's level, where the step began.
        estimates: The estimates that the step was predicted from, the newest last.
        reached: The estimate from the predicted state.
    """
    newest, h = estimates[-1], reached.level - estimates[-1].level
    others = [*estimates[:-1], reached]
    ratios = [(other.level - newest.level) / h for other in others]
    weights = np.array([0.5]) if len(ratios) == 1 else _weights(ratios, h)
    return _unipc(y, newest, others, ratios, weights, reached.level)


def _unipc(
    y: Float[Tensor, "b c h w"],
    newest: Estimate,
    others: Sequence[Estimate],
    ratios: Sequence[float],
    weights: Float64[np.ndarray, " p"],
    level: float,
) -> Float[Tensor, "b c h w"]:
    alpha, _ = scales(level)
    step = -expm1(newest.level - level)  # 1 - exp(-h)
    moved = first_order(y, newest, level)
    for other, ratio, weight in zip(others, ratios, weights, strict=True):
        moved = moved + alpha * step * float(weight) / ratio * (other.x0 - newest.x0)
    return moved


def _weights(ratios: Sequence[float], h: float) -> Float64[np.ndarray, " p"]:
    """Solves R(h) a = phi(h) / B(h) (equation 6 there, and its form for the clean image)."""
    size = len(ratios)
    phi, right = expm1(-h) / -h - 1.0, []
    for power in range(1, size + 1):
        right.append(phi * factorial(power) / expm1(-h))
        phi = phi / -h - 1.0 / factorial(power + 1)
    matrix = np.vander(np.array(ratios), size, increasing=True).T
    found: Float64[np.ndarray, " p"] = np.linalg.solve(matrix, np.array(right))
    return found


def _slope(one: Estimate, other: Estimate) -> Float[Tensor, "b c h w"]:
    return (other.x0 - one.x0) / (other.level - one.level)
