"""Linear evaluation: what linear classifiers tell from an encoder's features, by share of labels.

The protocol of MoCo-CXR (Sowrirajan et al. 2021, arXiv 2010.05352): classifiers are fitted on the
features of 0.1 %, 1 %, 10 % and all of the training patients, in five draws, and judged on those
of other patients.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Shaped
from torch import Tensor

from cxr_lightning.data.split import patient_fraction
from cxr_lightning.metrics.bootstrap import bootstrap_weights, draws_interval
from cxr_lightning.metrics.classification import auroc
from cxr_lightning.metrics.probe import both_shown, fit_probe
from cxr_lightning.types import OBSERVATIONS

FRACTIONS = (0.001, 0.01, 0.1, 1.0)
DRAWS = 5
BOOTSTRAP = 400
MACRO = "macro"


class Images(NamedTuple):
    """A split, seen by several encoders.

    Attributes:
        features: One table (n, f) an encoder, by its name; f may differ.
        labels: 1 present, 0 absent, -1 masked.
        patients: Patient of each image.
    """

    features: Mapping[str, Tensor]
    labels: Int[Tensor, "n 14"]
    patients: Shaped[np.ndarray, " n"]


class Gain(NamedTuple):
    """AUROC of an encoder less that of another.

    Attributes:
        value: Mean over the draws.
        interval: 95 % interval, on the same draws and patients; None where there are too few.
    """

    value: float
    interval: tuple[float, float] | None


class LinearRecord(NamedTuple):
    """One number of a linear evaluation.

    Attributes:
        encoder: Name of the encoder.
        fraction: Share of the training patients whose labels were used.
        label: An observation, or `macro`: the mean of those that every draw could judge.
        auroc: Mean over the draws.
        interval: 95 % interval over draws and patients; None where there are too few.
        gains: Gain over each of the encoders before it, by name.
        draws: Draws in which the training images both show and do not show it.
        patients: Training patients of a draw.
    """

    encoder: str
    fraction: float
    label: str
    auroc: float
    interval: tuple[float, float] | None
    gains: Mapping[str, Gain]
    draws: int
    patients: int


class Skipped(NamedTuple):
    """What could not be judged.

    Attributes:
        fraction: Share of the training patients.
        label: An observation.
        reason: Why.
    """

    fraction: float
    label: str
    reason: str


def linear_evaluation(train: Images, test: Images) -> tuple[list[LinearRecord], list[Skipped]]:
    """AUROC of linear classifiers on frozen features, for each encoder, share and observation.

    Intervals are from a bootstrap that draws test patients and training draws anew at once; it is
    the same for all encoders, so that the gain of one over another is a paired comparison.

    Args:
        train: The images that classifiers are fitted on; no patient of `test` is among them.
        test: The images that they are judged on, seen by the same encoders.
    """
    weights = bootstrap_weights(test.patients, BOOTSTRAP, seed=0)
    records: list[LinearRecord] = []
    skipped: list[Skipped] = []
    for fraction in FRACTIONS:
        draws = DRAWS if fraction < 1.0 else 1  # there is one way to take all
        rows = [patient_share(train.patients, fraction, seed) for seed in range(draws)]
        judged = np.stack([_can_judge(train.labels[r], test.labels) for r in rows])
        skipped += [
            Skipped(fraction, name, _reason(test.labels, label))
            for label, name in enumerate(OBSERVATIONS)
            if not judged[:, label].any()
        ]
        replicates = {
            name: np.stack(
                [
                    _replicates(train, test, name, r, labels, weights)
                    for r, labels in zip(rows, judged, strict=True)
                ]
            )
            for name in train.features
        }
        patients = len(np.unique(train.patients[rows[0]]))
        records += _records(replicates, judged, fraction, patients)
    return records, skipped


def patient_share(
    patients: Shaped[np.ndarray, " n"], fraction: float, seed: int
) -> Int[np.ndarray, " m"]:
    """Rows of a random share of the patients, at least one of them.

    With one seed, the patients of a smaller share are among those of a larger one.
    """
    names, patient = np.unique(patients, return_inverse=True)
    order = np.argsort([patient_fraction(str(name), seed) for name in names])
    chosen = order[: max(math.ceil(fraction * len(names)), 1)]
    return np.flatnonzero(np.isin(patient, chosen))


def _can_judge(train: Int[Tensor, "n 14"], test: Int[Tensor, "m 14"]) -> Bool[np.ndarray, " 14"]:
    found: Bool[np.ndarray, " 14"] = (both_shown(train) & both_shown(test)).cpu().numpy()
    return found


def _reason(test: Int[Tensor, "n 14"], label: int) -> str:
    if not bool(both_shown(test)[label]):
        return "the images to judge on do not both show it and not show it"
    return "no draw of the training images both shows it and does not show it"


def _replicates(
    train: Images,
    test: Images,
    encoder: str,
    rows: Int[np.ndarray, " m"],
    judged: Bool[np.ndarray, " 14"],
    weights: Float64[np.ndarray, "b n"],
) -> Float64[np.ndarray, "14 b"]:
    """AUROC of one draw's classifiers under each row of image weights; NaN where not judged."""
    found = np.full((len(judged), len(weights)), np.nan)
    labels = np.flatnonzero(judged)
    if not len(labels):
        return found
    probe = fit_probe(train.features[encoder][rows], train.labels[rows][:, labels])
    scores = probe(test.features[encoder].float()).cpu().numpy()
    truth = test.labels.cpu().numpy()
    for column, label in enumerate(labels):
        known = truth[:, label] >= 0
        found[label] = auroc(truth[known, label] == 1, scores[known, column], weights[:, known])
    return found


def _records(
    replicates: Mapping[str, Float64[np.ndarray, "d 14 b"]],
    judged: Bool[np.ndarray, "d 14"],
    fraction: float,
    patients: int,
) -> list[LinearRecord]:
    """The records of a share of the patients: each observation, then their mean."""
    generator = np.random.default_rng(0)
    draws = {name: judged[:, label] for label, name in enumerate(OBSERVATIONS)}
    whole = judged.all(axis=0)
    if whole.any():
        draws[MACRO] = np.ones(len(judged), dtype=bool)
    records = []
    for label, able in draws.items():
        if not able.any():
            continue
        count = int(able.sum())
        bootstraps = next(iter(replicates.values())).shape[2] - 1
        picks = generator.integers(count, size=(bootstraps, count))
        curves = {}
        for name, values in replicates.items():
            columns = whole if label == MACRO else [OBSERVATIONS.index(label)]
            curves[name] = over_draws(label_mean(values[able][:, columns]), picks)
        names = list(curves)
        for place, (name, curve) in enumerate(curves.items()):
            less = {other: curve - curves[other] for other in names[:place]}
            records.append(
                LinearRecord(
                    encoder=name,
                    fraction=fraction,
                    label=label,
                    auroc=float(curve[0]),
                    interval=draws_interval(curve),
                    gains={k: Gain(float(v[0]), draws_interval(v)) for k, v in less.items()},
                    draws=count,
                    patients=patients,
                )
            )
    return records


def label_mean(values: Float64[np.ndarray, "d k b"]) -> Float64[np.ndarray, "d b"]:
    """Mean over the labels that a bootstrap draw of patients can judge; NaN where it is none."""
    able = ~np.isnan(values)
    total, count = np.where(able, values, 0.0).sum(axis=1), able.sum(axis=1)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def over_draws(
    values: Float64[np.ndarray, "d b"], picks: Int[np.ndarray, "b1 d"]
) -> Float[np.ndarray, " b"]:
    """Mean over the draws, then over draws drawn anew, one set a bootstrap draw of patients.

    Args:
        values: A row a draw: the value, then its bootstrap values, one more than `picks` has rows.
        picks: Which draws each bootstrap value is the mean of.
    """
    resampled = values[picks, np.arange(1, values.shape[1])[:, None]].mean(axis=1)
    return np.concatenate([values[:, 0].mean(keepdims=True), resampled])
