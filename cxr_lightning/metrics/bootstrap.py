"""Bootstrap over patients: the images of one patient are no independent draws."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int, Shaped
from scipy.stats import binomtest
from scipy.stats import t as student
from torch import Tensor

from cxr_lightning.progress import bar_if_slow

LEAST_DRAWS = 20
"""Of an interval."""


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
        for _ in bar_if_slow(range(draws), "bootstrap"):
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
    if len(replicates) < LEAST_DRAWS:
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
    if len(replicates) < LEAST_DRAWS:
        return None
    interval = percentile_interval(replicates - replicates.mean() + value, level)
    return None if interval is None else (max(interval[0], least), max(interval[1], least))


def bootstrap_weights(
    patients: Shaped[np.ndarray, " n"], draws: int, seed: int
) -> Float64[np.ndarray, "draws n"]:
    """Weights of the images in draws of patients; the first row is 1: the images as they are.

    Args:
        patients: Patient of each image.
        draws: Bootstrap draws, so `draws` + 1 rows.
        seed: The same seed gives the same draws.
    """
    generator = np.random.default_rng(seed)
    patient = np.unique(patients, return_inverse=True)[1]
    weights = np.ones((draws + 1, len(patients)))
    for row in weights[1:]:
        row[:] = patient_weights(patient, generator)
    return weights


def draws_interval(
    estimates: Float64[np.ndarray, " draws"], patients: int | None = None
) -> tuple[float, float] | None:
    """95 % percentile interval of the draws behind the first, which is the value itself.

    Where a share is 0 or 1 in every draw, the bootstrap has no width; then it is Wilson's interval
    (1927) of as many patients, all alike.

    Args:
        estimates: The value and its draws.
        patients: Patients behind it; None where the value is no share.
    """
    drawn = estimates[1:]
    found = percentile_interval(drawn[np.isfinite(drawn)])
    if found is None or not patients or found[0] < found[1] or estimates[0] not in (0.0, 1.0):
        return found
    alike = binomtest(int(estimates[0]) * patients, patients).proportion_ci(method="wilson")
    return float(alike.low), float(alike.high)


def seeds_interval(
    each: Float64[np.ndarray, "draws seeds"], level: float = 0.95
) -> tuple[float, float] | None:
    """Interval of a mean over a few trainings, by patients and by seeds.

    The variance is that of the mean over bootstrap draws of the patients, plus that of the seeds
    over their number; Student's quantile has the degrees of freedom of Satterthwaite 1946, which
    hold the mean in 92 to 95 % for three seeds. A bootstrap of three seeds would exclude 0 whenever
    all three have one sign.

    Args:
        each: The number of each seed with all patients, then in every draw of the patients.
        level: How often it shall hold the true mean.

    Returns:
        Its ends; None without draws.
    """
    drawn = each[1:].mean(axis=1)
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < 2:
        return None
    of_patients, seeds = float(drawn.var(ddof=1)), each.shape[1]
    of_seeds = float(each[0].var(ddof=1)) / seeds if seeds > 1 else 0.0
    variance = of_patients + of_seeds
    freedom = (seeds - 1) * (variance / of_seeds) ** 2 if of_seeds > 0.0 else np.inf
    reach = float(student.ppf(0.5 + level / 2, freedom)) * variance**0.5
    middle = float(each[0].mean())
    return middle - reach, middle + reach


class Sample(NamedTuple):
    """One of the sets of images that a statistic compares.

    Attributes:
        features: Of the images.
        patients: Patient of each image.
    """

    features: Float32[Tensor, "n f"]
    patients: Shaped[np.ndarray, " n"]


class TwoSamples:
    """Bootstrap of a costly statistic of two samples, each cut to a few whole patients.

    Args:
        real: The real images.
        synthetic: The synthetic images.
        largest: Images to keep of each, see `subsample`.
        seed: Of their choice and of the draws.

    Attributes:
        real: Features of the real images that are kept.
        synthetic: Features of the synthetic images that are kept.
    """

    def __init__(self, real: Sample, synthetic: Sample, largest: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.sides = [subsample(side.patients, largest, generator) for side in (real, synthetic)]
        self.real, self.synthetic = (
            sample.features[torch.from_numpy(side.rows)]
            for sample, side in zip((real, synthetic), self.sides, strict=True)
        )
        self.seed = seed

    def interval(
        self,
        value: float,
        statistic: Callable[[Int[Tensor, " n"], Int[Tensor, " m"]], float],
        draws: int,
        least: float = 0.0,
    ) -> tuple[float, float] | None:
        """95 % interval around the value of the whole samples, see `centred_interval`.

        Args:
            value: The value.
            statistic: From how often each kept image is drawn to a number.
            draws: Bootstrap draws; None below 20.
            least: The least that the statistic can be.
        """

        def of_arrays(*weights: Int[np.ndarray, " _"]) -> float:
            return statistic(*(torch.from_numpy(w).to(self.real.device) for w in weights))

        patients = [side.patients for side in self.sides]
        drawn = [side.drawn for side in self.sides]
        replicates = replicate(of_arrays, patients, draws, self.seed, drawn)
        return centred_interval(value, replicates, least=least)
