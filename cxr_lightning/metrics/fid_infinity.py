"""FID extrapolated to infinitely many images.

Chong and Forsyth 2020 (arXiv 1911.07023), sections 3 and 4: at N images FID has a bias of about
c / N, with c of its own for each generator, so a straight line in 1 / N is laid through FID at
several N, and its value at 1 / N = 0 is free of that bias.

The paper varies only the number of synthetic images, since its real side is large. Here both sides
have N images: the real images of a condition may be fewer than the synthetic ones, and the bias
that they bring would stay in the intercept.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int
from torch import Tensor

from cxr_lightning.metrics.bootstrap import Sample, TwoSamples
from cxr_lightning.metrics.fid import INTERVAL_IMAGES, frechet, moments

FEWEST_IMAGES = 100
"""Images a side below which there is no extrapolation."""

SHRINKAGE = 3
"""Ratio of the largest to the smallest number of images."""

FEWEST_POINTS = 3
"""Of a line that is laid many times, for its interval or its floor."""


class FidInfinity(NamedTuple):
    """A straight line through FID over 1 / N.

    Attributes:
        value: FID at 1 / N = 0; by chance below 0 where the sides hardly differ.
        slope: Bias of FID times N.
        smallest: The smallest N.
        largest: The largest N, the number of images of the smaller side.
        sizes: Each N, descending.
        values: FID at each N.
    """

    value: float
    slope: float
    smallest: int
    largest: int
    sizes: tuple[int, ...]
    values: tuple[float, ...]


@torch.no_grad()
def fid_infinity(
    real: Float32[Tensor, "n f"],
    synthetic: Float32[Tensor, "m f"],
    *,
    points: int = 15,
    seed: int,
) -> FidInfinity | None:
    """Extrapolates FID to infinitely many images on both sides.

    The bias is c / N only where N exceeds the number of features, so a value whose `smallest` does
    not is a rough one.

    Args:
        real: Features of the real images.
        synthetic: Features of the synthetic images.
        points: How many N: equally spaced in 1 / N from the number of images of the smaller side
            down to a third of it.
        seed: Of the random subsets, drawn anew for each N.

    Returns:
        The line, or None below 100 images on a side.

    Raises:
        ValueError: If there are fewer than 2 points.
    """
    if points < 2:
        raise ValueError(f"`points` must be at least 2, not {points}.")
    if min(len(real), len(synthetic)) < FEWEST_IMAGES:
        return None
    once = [torch.ones_like(side[:, 0], dtype=torch.int64) for side in (real, synthetic)]
    return _extrapolate((real, synthetic), once, points, np.random.default_rng(seed))


@torch.no_grad()
def fid_infinity_interval(
    value: float, real: Sample, synthetic: Sample, draws: int, seed: int
) -> tuple[float, float] | None:
    """95 % interval of FID-infinity by a bootstrap over the patients of both sides.

    From patients of at most 5,000 images a side. A draw repeats images, which adds the same to FID
    at every N: it moves the intercept, not the slope, and the interval is centred. Each draw has a
    line through 3 points.

    Args:
        value: FID-infinity of all images, which the interval is laid around.
        real: The real images.
        synthetic: The synthetic images.
        draws: Bootstrap draws; None below 20.
        seed: Of the draws and their subsets.
    """
    sides = TwoSamples(real, synthetic, INTERVAL_IMAGES, seed)
    generator = np.random.default_rng(seed + 1)

    def statistic(*weights: Int[Tensor, " _"]) -> float:
        features = (sides.real, sides.synthetic)
        return _extrapolate(features, weights, FEWEST_POINTS, generator).value

    return sides.interval(value, statistic, draws, least=-np.inf)


def _extrapolate(
    sides: Sequence[Float32[Tensor, "_ f"]],
    weights: Sequence[Int[Tensor, " _"]],
    points: int,
    generator: np.random.Generator,
) -> FidInfinity:
    """The line of two sets of features in which image i occurs `weights[i]` times."""
    largest = min(int(weight.sum()) for weight in weights)
    sizes = [round(largest / step) for step in np.linspace(1, SHRINKAGE, points)]
    if sizes[-1] < 2:  # a draw of few patients; one image has no covariance
        nan = float("nan")
        return FidInfinity(nan, nan, sizes[-1], sizes[0], tuple(sizes), (nan,) * points)
    values = []
    for size in sizes:
        subsets = [_subset(weight, size, generator) for weight in weights]
        one, other = map(moments, sides, subsets)
        values.append(frechet(one, other))
    value, slope = np.polynomial.polynomial.polyfit(1 / np.array(sizes), values, deg=1)
    return FidInfinity(float(value), float(slope), sizes[-1], sizes[0], tuple(sizes), tuple(values))


def _subset(
    weights: Int[Tensor, " n"], size: int, generator: np.random.Generator
) -> Int[Tensor, " n"]:
    """Weights of so many random images, of which image i occurs at most `weights[i]` times."""
    images = np.repeat(np.arange(len(weights)), weights.cpu().numpy())
    chosen = torch.from_numpy(generator.choice(images, size, replace=False))
    return torch.bincount(chosen, minlength=len(weights)).to(weights.device)
