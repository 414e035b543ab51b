"""Bootstrap over patients: the images of one patient are no independent draws."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped


def patient_weights(
    patients: Shaped[np.ndarray, " n"],
    generator: np.random.Generator,
    drawn: int | None = None,
) -> Int[np.ndarray, " n"]:
    """One bootstrap draw: as many patients as there are, with replacement.

    Cluster bootstrap (Davison and Hinkley 1997, Bootstrap Methods and their Application, section
    3.8): all images of a drawn patient come along.

    Args:
        patients: Patient of each image.
        generator: Source of the draw.
        drawn: Patients to draw, where it is not the number there are; see `subsample`.

    Returns:
        How often each image is in the draw.
    """
    _, patient = np.unique(patients, return_inverse=True)
    count = int(patient.max()) + 1
    times = np.bincount(generator.integers(0, count, drawn or count), minlength=count)
    return times[patient].astype(np.int64)


def replicate(
    statistic: Callable[..., float],
    patients: list[Shaped[np.ndarray, " _"]],
    draws: int,
    seed: int,
    drawn: list[int] | None = None,
) -> Float[np.ndarray, " draws"]:
    """Bootstrap values of a statistic of one or several independent samples.

    Args:
        statistic: From one array of image weights a sample to a number; not finite = left out.
        patients: Patient of each image, one array a sample.
        draws: Bootstrap draws.
        seed: The same seed gives the same values.
        drawn: Patients to draw from each sample; as many as there are by default.
    """
    numbers = drawn or [len(np.unique(sample)) for sample in patients]
    # Numbers are sorted faster than names.
    coded = [np.unique(sample, return_inverse=True)[1] for sample in patients]

    def values() -> Iterator[float]:
        generator = np.random.default_rng(seed)
        for _ in range(draws):
            weights = (
                patient_weights(sample, generator, number)
                for sample, number in zip(coded, numbers, strict=True)
            )
            yield statistic(*weights)

    found = np.fromiter(values(), dtype=np.float64)
    return found[np.isfinite(found)]


class Subsample(NamedTuple):
    """Whole patients that stand for all in the bootstrap of a costly statistic.

    Attributes:
        rows: Their images, ascending.
        patients: Patient of each of these images.
        drawn: Patients of the whole sample: how many to draw from these.
    """

    rows: Int[np.ndarray, " m"]
    patients: Shaped[np.ndarray, " m"]
    drawn: int


def subsample(
    patients: Shaped[np.ndarray, " n"], largest: int, generator: np.random.Generator
) -> Subsample:
    """Random patients with at most so many images in all, but at least one patient.

    Bag of little bootstraps (Kleiner et al. 2014, arXiv 1112.5016, section 2, with one subsample):
    as many patients as the whole sample has are drawn from the patients of the subsample. The
    draws then vary as those of the whole sample would, at the cost of the subsample. The m out of n
    bootstrap (Bickel et al. 1997) draws m and scales deviations by sqrt(m / n), which fits only
    where m / n is the same for all samples of a statistic.
    """
    _, patient, images = np.unique(patients, return_inverse=True, return_counts=True)
    order = generator.permutation(len(images))
    fitting = int(np.searchsorted(np.cumsum(images[order]), largest, side="right"))
    rows = np.flatnonzero(np.isin(patient, order[: max(fitting, 1)]))
    return Subsample(rows, patients[rows], len(images))


def percentile_interval(
    replicates: Float[np.ndarray, " draws"], level: float = 0.95
) -> tuple[float, float] | None:
    """Percentile interval; None where fewer than 20 values carry no tail."""
    if len(replicates) < 20:
        return None
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def centred_interval(
    value: float,
    replicates: Float[np.ndarray, " draws"],
    level: float = 0.95,
    least: float = 0.0,
) -> tuple[float, float] | None:
    """Percentile interval with the mean of the replicates moved onto the value, cut at `least`.

    For statistics such as the Fréchet distance that grow when samples repeat: a draw holds about
    63 % distinct images, so the plain percentile interval lies above the value itself.
    """
    if len(replicates) < 20:
        return None
    interval = percentile_interval(replicates - replicates.mean() + value, level)
    return None if interval is None else (max(interval[0], least), max(interval[1], least))
