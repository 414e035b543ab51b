"""Fréchet distance of feature distributions, its interval and its real-versus-real floor.

FID (Heusel et al. 2017, arXiv 1706.08500, eq. 6):
d^2 = |mu_1 - mu_2|^2 + Tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)).
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int, Shaped
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from cxr_lightning.metrics.bootstrap import centred_interval, replicate
from cxr_lightning.metrics.extractors import Extractor

FLOOR_SPLITS = 10


def frechet_distance(extractor: Extractor) -> FrechetInceptionDistance:
    """Fréchet distance metric over raw uint8 images; sums in float64, safe under DDP."""
    return FrechetInceptionDistance(feature=extractor)


class _Given(nn.Module):
    """Stands for the extractor where features are given instead of images."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b f"]:
        return features


def frechet_of_features(real: Float[Tensor, "n f"], synthetic: Float[Tensor, "m f"]) -> float:
    """Fréchet distance of two feature sets, by torchmetrics in float64."""
    metric = FrechetInceptionDistance(feature=_Given(real.shape[1])).to(real.device)
    metric.update(real.double(), real=True)
    metric.update(synthetic.double(), real=False)
    return float(metric.compute())


class Moments(NamedTuple):
    """Mean and covariance of a feature set, the covariance as a product.

    Attributes:
        mean: Of the features.
        factor: Rows whose inner products are the covariance, factor^T factor; k <= f.
    """

    mean: Float64[Tensor, " f"]
    factor: Float64[Tensor, "k f"]


def moments(features: Float[Tensor, "n f"], weights: Int[Tensor, " n"] | None = None) -> Moments:
    """Moments of features where image i counts `weights[i]` times (default: once)."""
    rows = features.double()
    if weights is None:
        weights = torch.ones(len(rows), dtype=torch.int64, device=rows.device)
    rows, weight = rows[weights > 0], weights[weights > 0].double()
    mean = (weight[:, None] * rows).sum(0) / weight.sum()
    factor = (weight / (weight.sum() - 1)).sqrt()[:, None] * (rows - mean)
    if len(factor) > factor.shape[1]:
        factor = torch.linalg.qr(factor, mode="r").R
    return Moments(mean, factor)


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
    value: float,
    real: Float32[Tensor, "n f"],
    synthetic: Float32[Tensor, "m f"],
    real_patients: Shaped[np.ndarray, " n"],
    synthetic_patients: Shaped[np.ndarray, " m"],
    draws: int,
    seed: int,
) -> tuple[float, float] | None:
    """95 % interval of the Fréchet distance at these numbers of images.

    Features are resampled over patients on both sides, and the interval is centred
    (`centred_interval`); it says nothing about the bias that a finite number of images brings.
    """

    def statistic(
        real_weights: Int[np.ndarray, " n"], synthetic_weights: Int[np.ndarray, " m"]
    ) -> float:
        if min(real_weights.sum(), synthetic_weights.sum()) < 2:
            return float("nan")
        return frechet(
            moments(real, torch.from_numpy(real_weights).to(real.device)),
            moments(synthetic, torch.from_numpy(synthetic_weights).to(synthetic.device)),
        )

    replicates = replicate(statistic, [real_patients, synthetic_patients], draws, seed)
    return centred_interval(value, replicates)


class Floor(NamedTuple):
    """What the Fréchet distance is between two halves of the real images, at equal n.

    Attributes:
        real: Half against half, mean over the splits.
        synthetic: Half against as many synthetic images, mean over the splits: what to compare
            `real` with, since the distance falls with n.
        n: Images on each side, the same in every split.
        splits: Random splits.
    """

    real: float
    synthetic: float
    n: int
    splits: int


def real_floor(
    real: Float32[Tensor, "n f"],
    synthetic: Float32[Tensor, "m f"],
    patients: Shaped[np.ndarray, " n"],
    seed: int,
    splits: int = FLOOR_SPLITS,
) -> Floor | None:
    """Real-versus-real Fréchet distance over patient-disjoint halves.

    Both halves and the synthetic side are cut at random to the same n, the smallest half of all
    splits or the number of synthetic images, whichever is less. None below 2 images a side.
    """
    generator = np.random.default_rng(seed)
    halves = [halve(patients, generator) for _ in range(splits)]
    n = min(len(synthetic), *(len(half) for pair in halves for half in pair))
    if n < 2:
        return None
    pairs = []
    for one, other in halves:
        half = moments(real[torch.from_numpy(generator.permutation(one)[:n])])
        rest = moments(real[torch.from_numpy(generator.permutation(other)[:n])])
        drawn = torch.from_numpy(generator.permutation(len(synthetic))[:n])
        pairs.append((frechet(half, rest), frechet(half, moments(synthetic[drawn]))))
    means = np.mean(pairs, axis=0)
    return Floor(float(means[0]), float(means[1]), n, splits)


def halve(
    patients: Shaped[np.ndarray, " n"], generator: np.random.Generator
) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    """Rows of two halves without a common patient, of about equal numbers of images."""
    _, patient, images = np.unique(patients, return_inverse=True, return_counts=True)
    order = generator.permutation(len(images))
    reached = np.cumsum(images[order])
    cut = int(np.abs(reached - len(patients) / 2).argmin()) + 1
    first = np.isin(patient, order[:cut])
    return np.flatnonzero(first), np.flatnonzero(~first)
