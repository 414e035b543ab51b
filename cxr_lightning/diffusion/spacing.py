"""Spacing: which of the diffusion's times a sampler visits."""

from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.stats import beta
from torch import Tensor

Spacing = Literal["beta", "trailing", "logsnr"]

BETA = 0.6
"""Both parameters of the beta distribution, as is usual with arXiv 2407.12173."""


def kept_times(spacing: Spacing, level: Float[Tensor, " t1"], first: int, steps: int) -> list[int]:
    """Exactly `steps` distinct times from `first` down, `first` included, 1 or more.

    Args:
        spacing: How they are spread.
        level: Half the log signal-to-noise ratio of the times 0..T, falling.
        first: The first time.
        steps: Number of times, 1 to `first`.
    """
    if spacing == "trailing":
        return trailing_times(first, steps)
    if spacing == "beta":
        return beta_times(first, steps)
    return logsnr_times(level, first, steps)


def trailing_times(first: int, steps: int) -> list[int]:
    """Evenly in time (Lin et al. 2023, arXiv 2305.08891, section 3.3)."""
    return [round(float(t)) for t in first - np.arange(steps) * (first / steps)]


def beta_times(first: int, steps: int) -> list[int]:
    """Quantiles of a beta distribution: closer at both ends (Lee et al. 2024, arXiv 2407.12173)."""
    share = beta.ppf(1.0 - np.arange(steps) / steps, BETA, BETA)
    return _distinct(first - np.rint(first * share).astype(np.int64), first)


def logsnr_times(level: Float[Tensor, " t1"], first: int, steps: int) -> list[int]:
    """As evenly as possible in the log SNR, down to 1 (Lu et al. 2022, arXiv 2206.00927)."""
    wanted = np.linspace(float(level[first]), float(level[1]), steps)
    times = level[1 : first + 1].flip(0).numpy()  # of first..1, rising
    return _distinct(np.abs(times[None] - wanted[:, None]).argmin(axis=1), first)


def _distinct(behind: NDArray[np.int64], first: int) -> list[int]:
    """Strictly falling times, with enough of them left for the steps to come.

    Args:
        behind: How far each wanted time is behind `first`, rising; several may be the same.
        first: The first time.
    """
    steps = len(behind)
    index = np.maximum.accumulate(behind - np.arange(steps)).clip(max=first - steps)
    times: list[int] = (first - index - np.arange(steps)).tolist()
    return times
