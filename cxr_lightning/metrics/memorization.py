"""Memorisation: do synthetic images come nearer to training images than new patients' images do?

All functions compare distances in one feature space. What real images of held-out patients reach is
no copying, so they set every scale.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int
from scipy.stats import beta
from torch import Tensor

from cxr_lightning.metrics.data_copying import cells
from cxr_lightning.metrics.neighbours import nearest

NEIGHBOURHOOD = 20
"""Training images that a nearest one is compared with, itself included."""

SPARE = 4
"""Images searched beyond a neighbourhood, since some may be of the nearest one's patient."""

DRAWS = 400


class NearestTraining(NamedTuple):
    """The nearest training image of each image.

    Attributes:
        distance: To it.
        index: Its row among the training images.
        relative: The distance over that to its neighbourhood, about 0 ... 1; see
            `nearest_training`.
    """

    distance: Float64[np.ndarray, " n"]
    index: Int[np.ndarray, " n"]  # type: ignore[assignment]  # hides tuple.index, unused here
    relative: Float64[np.ndarray, " n"]


def nearest_training(
    queries: Float32[Tensor, "n f"],
    train: Float32[Tensor, "t f"],
    patients: Int[Tensor, " t"],
    k: int = NEIGHBOURHOOD,
    progress: str | None = None,
) -> NearestTraining:
    """Nearest training image, absolutely and relative to its neighbourhood.

    The relative distance is d_1 / mean(d_2 ... d_k), where d_2 ... d_k belong to the nearest images
    of other patients than the first one's. It is near 0 for a copy and near 1 where no training
    patient stands out, even if blur brings the image nearer to all of them; 1 where there is no
    such neighbourhood. The idea of a copy as an outlier among its neighbours: Carlini et al. 2023,
    arXiv 2301.13188, section 5.

    Args:
        queries: Features of synthetic or held-out images.
        train: Features of the training images.
        patients: Patient of each training image, as a number.
        k: Size of the neighbourhood; fewer where there are not so many.
        progress: Title of the progress bars.
    """
    near = nearest(queries, train, k + SPARE, progress=progress)
    own = patients[near.index[:, 0]]
    same = patients[near.index] == own[:, None]
    others = near.distance.masked_fill(same, torch.inf).sort().values[:, : k - 1]
    crowded = others[:, -1].isposinf()  # by the first one's patient, as far as was searched
    others[crowded] = nearest(
        queries[crowded], train, k - 1, query_groups=own[crowded], point_groups=patients
    ).distance
    there = others.isfinite()
    mean = others.where(there, 0.0).sum(1) / there.sum(1)
    relative = (near.distance[:, 0] / mean).where(mean > 0, 1.0)
    parts = (near.distance[:, 0], near.index[:, 0], relative)
    return NearestTraining(*(part.cpu().numpy() for part in parts))


def authentic(
    found: NearestTraining,
    train: Float32[Tensor, "t f"],
    patients: Int[Tensor, " t"],
    progress: str | None = None,
) -> Bool[np.ndarray, " n"]:
    """Whether images are farther from their nearest training image than that is from its own.

    Authenticity, Alaa et al. 2022, arXiv 2102.08921: a_j = 1[d(x_j, x*) > d(x*, x')],
    x* the training image nearest to x_j, x' the one nearest to x*. Here x' is of another patient
    than x*, since what a patient's own images share is what a copy gives away.
    """
    hits, position = np.unique(found.index, return_inverse=True)
    rows = torch.from_numpy(hits).to(train.device)
    own = nearest(
        train[rows],
        train,
        1,
        query_groups=patients[rows],
        point_groups=patients,
        progress=progress,
    ).distance[:, 0]
    return found.distance > own.cpu().numpy()[position]


def closer_to_train(
    to_train: Float64[np.ndarray, " n"],
    to_held_out: Float64[np.ndarray, " n"],
    held_out: Float64[np.ndarray, " n"],
    train: int,
) -> float:
    """How often the nearest real image is a training image, at equal numbers of both.

    Were nothing memorised, training and held-out images could change places, so that the share s of
    images whose nearest real image is a training image would be t / (t + h). The value is
    (s / t) / (s / t + (1 - s) / h): 0.5 then, and 1 where all are nearer to a training image. It
    needs no drawing of equal sets, in which most copied training images would be missing.

    Args:
        to_train: Distance of each image to the nearest training image.
        to_held_out: The same to the nearest held-out image.
        held_out: h, the number of held-out images that each image is compared with.
        train: t, the number of training images.
    """
    closer = (to_train < to_held_out) + 0.5 * (to_train == to_held_out)
    return _at_equal_numbers(float(closer.mean()), float(train), float(held_out.mean()))


def closer_to_train_by_chance(
    nearest_patient: Int[np.ndarray, " n"],
    train_patients: Int[np.ndarray, " t"],
    held_out_patients: Int[np.ndarray, " h"],
    seed: int,
    draws: int = DRAWS,
) -> Float64[np.ndarray, " draws"]:
    """`closer_to_train` if other patients had been held out, as many of them at random.

    Its exact distribution where nothing is memorised and held-out patients were drawn at random. It
    is wide where few real images are the nearest ones of many, as for images unlike all real ones.

    Args:
        nearest_patient: Patient of the real image that each image is nearest to.
        train_patients: Patient of each training image.
        held_out_patients: Patient of each held-out image.
        seed: Of the draws.
        draws: How many.
    """
    everybody = np.concatenate([train_patients, held_out_patients])
    names, images = np.unique(everybody, return_counts=True)
    hits = np.bincount(np.searchsorted(names, nearest_patient), minlength=len(names))
    generator = np.random.default_rng(seed)
    count = len(np.unique(train_patients))
    chosen = (generator.permutation(len(names))[:count] for _ in range(draws))
    parts = [(float(hits[rows].mean()), float(images[rows].sum())) for rows in chosen]
    values = [
        _at_equal_numbers(hit * count / len(nearest_patient), train, len(everybody) - train)
        for hit, train in parts
    ]
    return np.array(values)


def _at_equal_numbers(share: float, train: float, held_out: float) -> float:
    per_train, per_held_out = share / train, (1 - share) / held_out
    return float(per_train / (per_train + per_held_out))


class Threshold(NamedTuple):
    """Below which value an image is called a copy.

    Attributes:
        value: The threshold; only smaller values are flagged.
        false_positive_rate: Expected share of real images of new patients that it flags.
        n: Held-out images that it was set on.
    """

    value: float
    false_positive_rate: float
    n: int

    def facts(self) -> dict[str, float]:
        """As the details of a record say it."""
        return {
            "threshold": self.value,
            "false_positive_rate": self.false_positive_rate,
            "threshold_n": self.n,
        }

    def flags(self, statistic: Float64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Which images are flagged."""
        return statistic < self.value


def copy_threshold(held_out: Float64[np.ndarray, " h"], false_positives: float) -> Threshold:
    """Sets a threshold on real images whose nearest training image is of another patient.

    The j-th smallest of h values, j = floor(alpha (h + 1)): a value of the same distribution falls
    below it with probability j / (h + 1) <= alpha at most, exactly for continuous values (Wilks
    1941, Annals of Mathematical Statistics 12, 91). Where h is so small that j would be 0, the
    smallest value serves, and the false-positive rate is 1 / (h + 1) > alpha.

    Args:
        held_out: The statistic of held-out images, at least one; small = copy.
        false_positives: alpha, the share of real images that may be flagged.
    """
    n = len(held_out)
    rank = max(math.floor(false_positives * (n + 1) + 1e-9), 1)
    return Threshold(float(np.sort(held_out)[rank - 1]), rank / (n + 1), n)


def false_positive_range(threshold: Threshold, patients: int) -> tuple[float, float]:
    """95 % range of the share of real images of new patients that a threshold in truth flags.

    The share below the j-th smallest of h independent values follows Beta(j, h + 1 - j) (Wilks
    1941). A patient's images are not independent, so patients are counted instead of images, at the
    same mean.

    Args:
        threshold: The threshold.
        patients: Patients of the held-out images that it was set on.
    """
    rate = threshold.false_positive_rate
    low, high = beta(rate * (patients + 1), (1 - rate) * (patients + 1)).ppf([0.025, 0.975])
    return float(low), float(high)


class Nearest(NamedTuple):
    """Where images lie among the training and the held-out images.

    Attributes:
        train: Their nearest training images.
        to_held_out: Distance to the nearest held-out image, of another patient.
        held_out: Row of that image among the held-out images.
        authentic: Whether they are authentic.
        cell: Their cell among the training images.
    """

    train: NearestTraining
    to_held_out: Float64[np.ndarray, " n"]
    held_out: Int[np.ndarray, " n"]
    authentic: Bool[np.ndarray, " n"]
    cell: Int[np.ndarray, " n"]


class Space(NamedTuple):
    """One feature space: where both sets lie in it, and from where on an image is a copy.

    Attributes:
        synthetic: Of the synthetic images.
        held_out: Of the held-out images.
        absolute: Threshold of the distance to the nearest training image.
        relative: Threshold of the relative distance.
    """

    synthetic: Nearest
    held_out: Nearest
    absolute: Threshold
    relative: Threshold

    @property
    def copies(self) -> Bool[np.ndarray, " m"]:
        """Synthetic images that are copies by the relative distance."""
        return self.relative.flags(self.synthetic.train.relative)


def measure_space(
    synthetic: Float32[Tensor, "m f"],
    train: Float32[Tensor, "t f"],
    held_out: Float32[Tensor, "h f"],
    train_patients: Int[Tensor, " t"],
    held_out_patients: Int[Tensor, " h"],
    false_positives: float,
    seed: int,
    progress: str | None = None,
) -> Space:
    """Measures all that the statistics above need.

    Args:
        synthetic: Features of the synthetic images.
        train: Features of the training images.
        held_out: Features of held-out images, of none of the training patients.
        train_patients: Patient of each training image, a number from 0.
        held_out_patients: The same of each held-out image.
        false_positives: Share of real images that the thresholds may flag.
        seed: Of the cells.
        progress: First words of the titles of progress bars; none by default.
    """

    def title(work: str) -> str | None:
        return None if progress is None else f"{progress}: {work}"

    nobody = torch.full((len(synthetic),), -1, device=train.device)
    found = []
    for name, images, own in (
        ("synthetic", synthetic, nobody),
        ("held-out", held_out, held_out_patients),
    ):
        work = title(f"{name} among training images")
        near = nearest_training(images, train, train_patients, progress=work)
        distance, index = nearest(
            images,
            held_out,
            1,
            query_groups=own,
            point_groups=held_out_patients,
            progress=title(f"{name} among held-out images"),
        )
        others = distance[:, 0].cpu().numpy(), index[:, 0].cpu().numpy()
        work = title("training images among each other")
        found.append((near, *others, authentic(near, train, train_patients, work)))
    of_synthetic, of_held_out = cells(train, [synthetic, held_out], seed)
    return Space(
        Nearest(*found[0], of_synthetic),
        Nearest(*found[1], of_held_out),
        copy_threshold(found[1][0].distance, false_positives),
        copy_threshold(found[1][0].relative, false_positives),
    )
