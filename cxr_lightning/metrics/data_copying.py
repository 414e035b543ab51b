"""Data copying: C_T, which compares the distances of synthetic and of held-out images by rank."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int
from scipy.stats import rankdata
from sklearn.cluster import KMeans
from torch import Tensor

CELL_IMAGES = 100
"""Images of each side that a cell of `cells` holds on average, at least."""

MIN_CELL_IMAGES = 20
"""Images of each side below which the normal approximation of a cell's z does not hold."""

MAX_CELLS = 20
FIT_IMAGES = 10_000
"""Training images that the cells are fitted to, at most."""


class DataCopying(NamedTuple):
    """The data-copying statistic.

    Attributes:
        value: C_T; negative where synthetic images are nearer to the training images.
        error: Its standard deviation for independent images that copy nothing, where its mean is 0.
        cells: Cells with enough images.
        share: Share of the held-out images in them.
    """

    value: float
    error: float
    cells: int
    share: float


def cells(
    train: Float32[Tensor, "t f"], others: Sequence[Float32[Tensor, "_ f"]], seed: int
) -> list[Int[np.ndarray, " _"]]:
    """Cell of each image of other sets, by k-means of the training images.

    One cell for every 100 images of the smallest set, at least 1 and at most 20.
    """
    smallest = min(len(train), *(len(other) for other in others))
    count = min(max(smallest // CELL_IMAGES, 1), MAX_CELLS)
    chosen = np.random.default_rng(seed).permutation(len(train))[:FIT_IMAGES]
    sample = train[torch.from_numpy(chosen).to(train.device)].cpu().numpy()
    fitted = KMeans(count, n_init=1, random_state=seed).fit(sample)
    return [fitted.predict(other.cpu().numpy()).astype(np.int64) for other in others]


def data_copying(
    synthetic: Float64[np.ndarray, " n"],
    synthetic_cells: Int[np.ndarray, " n"],
    held_out: Float64[np.ndarray, " h"],
    held_out_cells: Int[np.ndarray, " h"],
) -> DataCopying | None:
    """The data-copying statistic C_T, Meehan et al. 2020, arXiv 2004.05675.

    Within each cell the distances to the training images of synthetic and of held-out images are
    compared by their ranks; C_T is the mean of the cells' z, weighted by their held-out images.
    Cells with fewer than 20 images of either are left out. Unlike in the paper's program, the
    nearest training image may lie in another cell.

    Args:
        synthetic: Distance of each synthetic image to the nearest of all training images.
        synthetic_cells: Cell of each synthetic image.
        held_out: As `synthetic`, of each held-out image.
        held_out_cells: Cell of each held-out image.

    Returns:
        The statistic; None where no cell has enough images.
    """
    parts = [
        (synthetic[synthetic_cells == cell], held_out[held_out_cells == cell])
        for cell in np.unique(held_out_cells)
    ]
    parts = [(one, other) for one, other in parts if min(len(one), len(other)) >= MIN_CELL_IMAGES]
    if not parts:
        return None
    counts = np.array([len(other) for _, other in parts])
    weights = counts / counts.sum()
    z = np.array([mann_whitney_z(one, other) for one, other in parts])
    error = float(np.sqrt((weights**2).sum()))
    return DataCopying(float(weights @ z), error, len(parts), float(counts.sum() / len(held_out)))


def mann_whitney_z(one: Float64[np.ndarray, " n"], other: Float64[np.ndarray, " m"]) -> float:
    """Standardised U of Mann and Whitney 1947; negative where `one` tends to be smaller.

    The variance is corrected for ties; 0 where all values are equal.
    """
    n, m = len(one), len(other)
    together = np.concatenate([one, other])
    u = rankdata(together)[:n].sum() - n * (n + 1) / 2
    tied = np.unique(together, return_counts=True)[1].astype(float)
    total = n + m
    variance = n * m / 12 * (total + 1 - (tied**3 - tied).sum() / (total * (total - 1)))
    return 0.0 if variance <= 0 else float((u - n * m / 2) / math.sqrt(variance))
