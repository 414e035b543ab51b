"""FID extrapolated to infinitely many images.

Chong and Forsyth 2020 (arXiv 1911.07023), sections 3 and 4: at N images FID has a bias of about
c / N, with c of its own for each generator, so a straight line in 1 / N is laid through FID at
several N, and its value at 1 / N = 0 is free of that bias.

The paper varies only the number of synthetic images, since its real side is large. Here both sides
have N images: the real images of a condition may be fewer than the synthetic ones, and the bias
that they bring would stay in the intercept.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int
from torch import Tensor

from cxr_lightning.metrics.fid import frechet, moments

MIN_IMAGES = 100
"""Images a side below which there is no extrapolation."""

SHRINKAGE = 3
"""Ratio of the largest to the smallest number of images."""


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
    largest = min(len(real), len(synthetic))
    if largest < MIN_IMAGES:
        return None
    sizes = [round(largest / step) for step in np.linspace(1, SHRINKAGE, points)]
    generator = np.random.default_rng(seed)
    values = [
        frechet(*(moments(side, _subset(side, size, generator)) for side in (real, synthetic)))
        for size in sizes
    ]
    value, slope = np.polynomial.polynomial.polyfit(1 / np.array(sizes), values, deg=1)
    return FidInfinity(float(value), float(slope), sizes[-1], sizes[0], tuple(sizes), tuple(values))


def _subset(
    features: Float32[Tensor, "n f"], size: int, generator: np.random.Generator
) -> Int[Tensor, " n"]:
    """Weights that are 1 for so many random images and 0 for the others."""
    chosen = generator.choice(len(features), size, replace=False)
    weights = torch.zeros(len(features), dtype=torch.int64)
    weights[torch.from_numpy(chosen)] = 1
    return weights.to(features.device)
