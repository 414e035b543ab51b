"""Bootstrap over patients: the images of one patient are no independent draws."""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, Int, Shaped


def patient_weights(
    patients: Shaped[np.ndarray, " n"], generator: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """One bootstrap draw: as many patients as there are, with replacement.

    Cluster bootstrap (Davison and Hinkley 1997, Bootstrap Methods and their Application, section
    3.8): all images of a drawn patient come along.

    Args:
        patients: Patient of each image.
        generator: Source of the draw.

    Returns:
        How often each image is in the draw.
    """
    _, patient = np.unique(patients, return_inverse=True)
    count = int(patient.max()) + 1
    drawn = np.bincount(generator.integers(0, count, count), minlength=count)
    return drawn[patient].astype(np.int64)


def replicate(
    statistic: Callable[..., float],
    patients: list[Shaped[np.ndarray, " _"]],
    draws: int,
    seed: int,
) -> Float[np.ndarray, " draws"]:
    """Bootstrap values of a statistic of one or several independent samples.

    Args:
        statistic: From one array of image weights a sample to a number; not finite = left out.
        patients: Patient of each image, one array a sample.
        draws: Bootstrap draws.
        seed: The same seed gives the same values.
    """

    def values() -> Iterator[float]:
        generator = np.random.default_rng(seed)
        for _ in range(draws):
            yield statistic(*(patient_weights(sample, generator) for sample in patients))

    drawn = np.fromiter(values(), dtype=np.float64)
    return drawn[np.isfinite(drawn)]


def percentile_interval(
    replicates: Float[np.ndarray, " draws"], level: float = 0.95
) -> tuple[float, float] | None:
    """Percentile interval; None where fewer than 20 values carry no tail."""
    if len(replicates) < 20:
        return None
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def centred_interval(
    value: float, replicates: Float[np.ndarray, " draws"], level: float = 0.95
) -> tuple[float, float] | None:
    """Percentile interval with the mean of the replicates moved onto the value, cut at 0.

    For statistics such as the Fréchet distance that grow when samples repeat: a draw holds about
    63 % distinct images, so the plain percentile interval lies above the value itself.
    """
    if len(replicates) < 20:
        return None
    interval = percentile_interval(replicates - replicates.mean() + value, level)
    return None if interval is None else (max(interval[0], 0.0), max(interval[1], 0.0))
