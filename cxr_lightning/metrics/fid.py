"""Fréchet distance of feature distributions, and its interval.

FID (Heusel et al. 2017, arXiv 1706.08500, eq. 6):
d^2 = |mu_1 - mu_2|^2 + Tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from cxr_lightning.metrics.bootstrap import Sample, TwoSamples
from cxr_lightning.metrics.extractors import Extractor

BLOCK = 4096
"""Images whose features are in float64 at a time."""

INTERVAL_IMAGES = 5_000
"""Images a side that the interval is computed from."""


def frechet_distance(extractor: Extractor) -> FrechetInceptionDistance:
    """Fréchet distance metric over raw uint8 images; sums in float64, safe under DDP."""
    metric = FrechetInceptionDistance(feature=extractor)
    metric.orig_dtype = torch.float32  # torchmetrics' update sets it; a rank may have no image
    return metric


class Moments(NamedTuple):
    """Mean and covariance of a feature set, the covariance as a product.

    Attributes:
        mean: Of the features.
        factor: Rows whose inner products are the covariance, factor^T factor; k <= f.
    """

    mean: Float64[Tensor, " f"]
    factor: Float64[Tensor, "k f"]


def moments(features: Float[Tensor, "n f"], weights: Int[Tensor, " n"] | None = None) -> Moments:
    """Moments of features where image i counts `weights[i]` times (default: once).

    Images are read block by block; with no more of them than features, all are kept in float64.
    """
    if weights is None:
        weights = torch.ones(len(features), dtype=torch.int64, device=features.device)
    if int((weights > 0).sum()) <= features.shape[1]:
        return _moments_of_few(features[weights > 0].double(), weights[weights > 0].double())
    # Sums of squares about a point near the mean: about 0 they could cancel.
    centre = features[:BLOCK].double().mean(0)
    first = torch.zeros_like(centre)
    second = torch.zeros(len(first), len(first), dtype=torch.float64, device=first.device)
    for block, weight in zip(features.split(BLOCK), weights.split(BLOCK), strict=True):
        rows = block[weight > 0].double() - centre
        weighted = weight[weight > 0, None] * rows
        first += weighted.sum(0)
        second.addmm_(rows.T, weighted)
    total = int(weights.sum())
    covariance = (second - first.outer(first) / total) / (total - 1)
    return Moments(centre + first / total, _factor(covariance))


def _moments_of_few(rows: Float64[Tensor, "n f"], weight: Float64[Tensor, " n"]) -> Moments:
    """Moments whose factor is the centred features themselves."""
    mean = (weight[:, None] * rows).sum(0) / weight.sum()
    return Moments(mean, (weight / (weight.sum() - 1)).sqrt()[:, None] * (rows - mean))


def _factor(covariance: Float64[Tensor, "f f"]) -> Float64[Tensor, "k f"]:
    """F with F^T F = C: Cholesky's, and by eigenvectors where C is singular."""
    lower, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return lower.T
    variance, directions = torch.linalg.eigh(covariance)
    # Smaller ones are rounding errors.
    kept = variance > len(variance) * torch.finfo(variance.dtype).eps * variance[-1]
    return variance[kept].sqrt()[:, None] * directions[:, kept].T


def frechet(one: Moments, other: Moments) -> float:
    """Fréchet distance of two Gaussians.

    With C_i = F_i^T F_i the eigenvalues of C_1 C_2 are the squared singular values of F_1 F_2^T,
    so Tr (C_1 C_2)^(1/2) is its nuclear norm: exact also for fewer images than features, where the
    product is small (n_1 x n_2).
    """
    mean = (one.mean - other.mean).square().sum()
    traces = one.factor.square().sum() + other.factor.square().sum()
    root = torch.linalg.svdvals(one.factor @ other.factor.T).sum()
    return float((mean + traces - 2 * root).clamp_min(0.0))


def frechet_interval(
    value: float, real: Sample, synthetic: Sample, draws: int, seed: int
) -> tuple[float, float] | None:
    """95 % interval of the Fréchet distance at these numbers of images.

    Features are resampled over patients on both sides, from patients of at most 5,000 images a
    side. The interval says nothing about the bias that a finite number of images brings.

    Args:
        value: The distance of all images, which the interval is laid around.
        real: The real images.
        synthetic: The synthetic images.
        draws: Bootstrap draws; None below 20.
        seed: Of the draws.
    """
    sides = TwoSamples(real, synthetic, INTERVAL_IMAGES, seed)

    def statistic(of_real: Int[Tensor, " n"], of_synthetic: Int[Tensor, " m"]) -> float:
        if min(of_real.sum(), of_synthetic.sum()) < 2:
            return float("nan")
        return frechet(moments(sides.real, of_real), moments(sides.synthetic, of_synthetic))

    return sides.interval(value, statistic, draws)
