"""Kernel distance of feature distributions (KID): unbiased, so comparable across numbers of images.

Bińkowski et al. 2018 (arXiv 1801.01401), section 4: the squared maximum mean discrepancy with the
kernel k(x, y) = (x.y / f + 1)^3 of f features, estimated without pairs of an image with itself.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, Shaped
from torch import Tensor

from cxr_lightning.metrics.bootstrap import Sample, TwoSamples

INTERVAL_IMAGES = 2_000
"""Images a side that the interval is computed from."""


class Kid(NamedTuple):
    """KID over random subsets.

    Attributes:
        mean: Mean over the subsets; below 0 by chance where the sides hardly differ.
        sd: Standard deviation over the subsets: how values of sets of that size scatter. It is no
            standard error of the mean, since the subsets overlap.
        subset_size: Images a side of each subset.
    """

    mean: float
    sd: float
    subset_size: int


@torch.no_grad()
def kid(
    real: Float32[Tensor, "n f"],
    synthetic: Float32[Tensor, "m f"],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> Kid:
    """KID as the mean over random subsets, each without repeated images.

    Args:
        real: Features of the real images.
        synthetic: Features of the synthetic images.
        subsets: Number of subsets.
        subset_size: Images a side of a subset; at most half of the smaller side, so that subsets
            differ, but at least 2.
        seed: Of the subsets.

    Raises:
        ValueError: If a side has fewer than 2 images.
    """
    fewest = min(len(real), len(synthetic))
    if fewest < 2:
        raise ValueError(f"`real` and `synthetic` must hold at least 2 images, not {fewest}.")
    size = max(min(subset_size, fewest // 2), 2)
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        one, other = (
            features[torch.from_numpy(generator.choice(len(features), size, replace=False))]
            for features in (real, synthetic)
        )
        values.append(discrepancy(_kernels(one, other), one.new_ones(size), one.new_ones(size)))
    return Kid(float(np.mean(values)), float(np.std(values)), size)


def kernel(one: Float32[Tensor, "n f"], other: Float32[Tensor, "m f"]) -> Float64[Tensor, "n m"]:
    """The polynomial kernel of all pairs, in float64."""
    return (one.double() @ other.double().T / one.shape[1] + 1.0) ** 3


class Kernels(NamedTuple):
    """Kernel matrices within the real side, within the synthetic side, and between them."""

    real: Float64[Tensor, "n n"]
    synthetic: Float64[Tensor, "m m"]
    between: Float64[Tensor, "n m"]


def _kernels(real: Float32[Tensor, "n f"], synthetic: Float32[Tensor, "m f"]) -> Kernels:
    return Kernels(kernel(real, real), kernel(synthetic, synthetic), kernel(real, synthetic))


def discrepancy(
    kernels: Kernels, real_weights: Shaped[Tensor, " n"], synthetic_weights: Shaped[Tensor, " m"]
) -> float:
    """Unbiased squared maximum mean discrepancy where image i counts `weights[i]` times.

    Gretton et al. 2012 (JMLR 13, 723), eq. 3, with weights: pairs of an image with itself, repeated
    draws of it included, are left out. NaN where no pair is left.
    """
    one, other = real_weights.double(), synthetic_weights.double()
    between = one @ kernels.between @ other / (one.sum() * other.sum())
    within = _mean_of_pairs(kernels.real, one) + _mean_of_pairs(kernels.synthetic, other)
    return float(within - 2.0 * between)


def _mean_of_pairs(
    kernel: Float64[Tensor, "n n"], weights: Float64[Tensor, " n"]
) -> Float64[Tensor, ""]:
    """Weighted mean of the kernel over pairs of different images."""
    squares = weights.square()
    pairs = weights.sum().square() - squares.sum()
    return (weights @ kernel @ weights - squares @ kernel.diagonal()) / pairs


@torch.no_grad()
def kid_interval(
    value: float, real: Sample, synthetic: Sample, draws: int, seed: int
) -> tuple[float, float] | None:
    """95 % interval of KID by a bootstrap over the patients of both sides.

    From patients of at most 2,000 images a side, by the unbiased estimator with weights
    (`discrepancy`). Where the sides do not differ the interval is too wide, since the estimator's
    leading term then vanishes (Arcones and Giné 1992).

    Args:
        value: KID of all images, which the interval is laid around.
        real: The real images.
        synthetic: The synthetic images.
        draws: Bootstrap draws; None below 20.
        seed: Of the draws.
    """
    sides = TwoSamples(real, synthetic, INTERVAL_IMAGES, seed)
    kernels = _kernels(sides.real, sides.synthetic)
    return sides.interval(value, partial(discrepancy, kernels), draws, least=-np.inf)
