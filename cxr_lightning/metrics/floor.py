"""The real-versus-real floor: a metric between two halves of the real images, at equal n.

Most distances between samples grow when the samples get smaller, so a value says something only
beside the value that real images reach with as many images.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Shaped
from torch import Tensor

from cxr_lightning.progress import bar_if_slow

SPLITS = 10
MIN_IMAGES = 4

Statistic = Callable[[Float[Tensor, "n f"], Float[Tensor, "m f"]], Sequence[float]]
"""From features of real and of other images to one or several numbers."""


class SplitFloor(NamedTuple):
    """A statistic of several numbers over random splits of the real images.

    Attributes:
        real: Half against half.
        synthetic: The first half against as many synthetic images: what to compare `real` with.
        n: Images on each side, the same in every split.
    """

    real: Float64[np.ndarray, "splits k"]
    synthetic: Float64[np.ndarray, "splits k"]
    n: int


def floor_size(patients: Shaped[np.ndarray, " n"], synthetic: int, seed: int) -> int:
    """Images a side that `split_floor` would use."""
    halves = _halves(patients, seed, SPLITS)
    return min(synthetic, *(len(half) for pair in halves for half in pair))


def split_floor(
    statistic: Statistic,
    real: Float[Tensor, "n f"],
    synthetic: Float[Tensor, "m f"],
    patients: Shaped[np.ndarray, " n"],
    seed: int,
    *,
    n: int | None = None,
    splits: int = SPLITS,
) -> SplitFloor | None:
    """A statistic between patient-disjoint halves of the real images, and with synthetic ones.

    Both halves and the synthetic side are cut at random to the same number of images: the smallest
    half of all splits or the number of synthetic images, whichever is less. None below 4 images.

    Args:
        statistic: What to compute.
        real: Features of the real images.
        synthetic: Features of the synthetic images.
        patients: Patient of each real image.
        seed: Of the splits.
        n: A smaller number of images a side.
        splits: Random splits.
    """
    halves = _halves(patients, seed, splits)
    largest = min(len(synthetic), *(len(half) for pair in halves for half in pair))
    size = largest if n is None else min(n, largest)
    if size < MIN_IMAGES:
        return None
    generator = np.random.default_rng(seed + 1)
    of_real, of_synthetic = [], []
    for one, other in bar_if_slow(halves, "real against real"):
        half = real[torch.from_numpy(generator.permutation(one)[:size])]
        rest = real[torch.from_numpy(generator.permutation(other)[:size])]
        drawn = synthetic[torch.from_numpy(generator.permutation(len(synthetic))[:size])]
        of_real.append(statistic(half, rest))
        of_synthetic.append(statistic(half, drawn))
    return SplitFloor(np.array(of_real, float), np.array(of_synthetic, float), size)


def _halves(
    patients: Shaped[np.ndarray, " n"], seed: int, splits: int
) -> list[tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]]:
    generator = np.random.default_rng(seed)
    return [halve(patients, generator) for _ in range(splits)]


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
