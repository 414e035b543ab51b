"""Whether all that was requested is there together, and the view, sex and age that are stated."""

from collections.abc import Iterator
from functools import partial

import numpy as np
from jaxtyping import Bool, Float64, Int

from cxr_lightning.data.vocabulary import HealthCondition
from cxr_lightning.evaluation.classification import AGE, FINDINGS, MIN_PER_CLASS
from cxr_lightning.evaluation.comparison import CANNOT_JUDGE, FEW, HELD_OUT, Comparison, Side
from cxr_lightning.evaluation.inputs import AGE_BANDS
from cxr_lightning.evaluation.records import AxisResult, Better, Record
from cxr_lightning.metrics.classification import mean
from cxr_lightning.types import FIELDS, OBSERVATIONS

AGREEMENT = {"PA": "view_agreement", "Male": "sex_agreement"}

BETTER: dict[str, Better] = {"presence": "higher", "joint_all": "higher", "joint_none": "lower"}

WEAK_AGE = 0.8
"""Errors of the age, over those of one age for all, above which a classifier cannot judge it."""

AGE_TOLERANCE = 16.0
"""Years; RoentGen-v2 (arXiv 2508.16783) generates an image again that is further off."""


def presence(
    comparison: Comparison,
    condition: HealthCondition,
    real: Int[np.ndarray, " k"],
    synthetic: Int[np.ndarray, " m"],
    result: AxisResult,
) -> None:
    """Adds the shares of images that show all, one alone, or none of the requested findings.

    An image shows a finding where the classifier's answer reaches the threshold of its fold.

    Args:
        comparison: Both sides.
        condition: What was requested.
        real: Rows of its held-out images on the real side.
        synthetic: Rows of its images on the synthetic side.
        result: Where the records go.
    """
    fields = [OBSERVATIONS.index(observation) for observation in condition.present]
    lacking = [FINDINGS[f] for f in fields if f not in comparison.thresholds]
    if lacking:
        reason = (
            f"the classifier has no answer for {' and '.join(lacking)}, or fewer than "
            f"{MIN_PER_CLASS} held-out images show it or its absence"
        )
        result.skip("condition", "presence", reason, condition.name)
        return
    if not len(synthetic):
        result.skip("condition", "presence", "no synthetic image was made for it", condition.name)
        return
    there, here = (
        _outcomes(side, rows, fields, comparison.thresholds)
        for side, rows in ((comparison.real, real), (comparison.synthetic, synthetic))
    )
    patients = (
        len(np.unique(comparison.real.patients[real])),
        len(np.unique(comparison.synthetic.patients[synthetic])),
    )
    reasons = comparison.weak(fields)
    if min(len(real), len(synthetic)) < FEW:
        reasons.append(f"only {len(real)} real and {len(synthetic)} synthetic images")
    for metric in here:
        record = comparison.record(
            metric,
            mean(here[metric], comparison.synthetic.weights[:, synthetic]),
            mean(there[metric], comparison.real.weights[:, real]),
            BETTER.get(metric),
            (len(real), len(synthetic)),
            patients=patients,
            meaning="held-out real images of this condition",
            condition=condition.name,
            warning="; ".join(reasons) or None,
        )
        result.records.append(record)


def _outcomes(
    side: Side,
    rows: Int[np.ndarray, " n"],
    fields: list[int],
    thresholds: dict[int, Float64[np.ndarray, " folds"]],
) -> dict[str, Bool[np.ndarray, " n"]]:
    """Which images have which outcome; the joint ones exclude each other and leave nothing out."""
    fold, probability = side.fold[rows], side.probability[rows]
    shown = np.stack([probability[:, f] >= thresholds[f][fold] for f in fields], axis=1)
    count = shown.sum(axis=1)
    outcomes = {"presence": count == len(fields)}
    if len(fields) > 1:
        outcomes["joint_all"] = count == len(fields)
        for column, field in enumerate(fields):
            outcomes[f"joint_only_{FINDINGS[field]}"] = shown[:, column] & (count == 1)
        outcomes["joint_none"] = count == 0
    if len(fields) > 2:
        outcomes["joint_some"] = (count > 1) & (count < len(fields))
    return outcomes


def agreement(comparison: Comparison) -> Iterator[Record]:
    """Agreement of the classifier with the view, sex and age that synthetic images state."""
    real, synthetic = comparison.real, comparison.synthetic
    for name, metric in AGREEMENT.items():
        field = FIELDS.index(name)
        there, here = real.answers(field), synthetic.answers(field)
        if field not in comparison.thresholds or not len(here.truth):
            continue
        thresholds = comparison.thresholds[field]
        yield comparison.record(
            metric,
            here.accuracy(thresholds, here.share),
            there.accuracy(thresholds, here.share),
            "higher",
            (len(there.truth), len(here.truth)),
            patients=(real.rarer_patients([field]), len(np.unique(synthetic.patients))),
            meaning=f"held-out real images, weighted to {here.share:.1%} {name} as here",
            warning="; ".join(comparison.weak([field])) or None,
            details={"thresholds": thresholds.tolist()},
        )
    if len(_age_errors(real)[0]) and len(_age_errors(synthetic)[0]):
        yield from _age(comparison)


def _age(comparison: Comparison) -> Iterator[Record]:
    """Mean absolute error of the age, and the share of images within `AGE_TOLERANCE`."""
    (there, real_ages, real_weights), (here, ages, weights) = map(
        _age_errors, (comparison.real, comparison.synthetic)
    )
    counts = (len(there), len(here))
    reasons = []
    if min(counts) < FEW:
        reasons.append(f"only {counts[0]} real and {counts[1]} synthetic images")
    guess = np.abs(real_ages - np.median(real_ages))
    if there.mean() > WEAK_AGE * guess.mean():
        reasons.append(
            f"the classifier errs by {there.mean():.1f} years on real images, and one age for all "
            f"by {guess.mean():.1f}, so it {CANNOT_JUDGE}"
        )
    ratio = _band_ratio(real_ages, ages)
    if ratio is None:
        reasons.append(
            f"some of the ages asked for have no real image, so the classifier {CANNOT_JUDGE}"
        )
    else:
        real_weights = real_weights * ratio
    record = partial(
        comparison.record,
        counts=counts,
        warning="; ".join(reasons) or None,
        meaning=HELD_OUT if ratio is None else f"{HELD_OUT}, weighted to the age bands here",
    )
    errors = mean(here, weights), mean(there, real_weights)
    yield record("age_error", *errors, "lower", unit="years")
    within = mean(here <= AGE_TOLERANCE, weights), mean(there <= AGE_TOLERANCE, real_weights)
    yield record("age_agreement", *within, "higher", details={"years": AGE_TOLERANCE})


def _band_ratio(
    real: Float64[np.ndarray, " k"], synthetic: Float64[np.ndarray, " m"]
) -> Float64[np.ndarray, " k"] | None:
    """Weights of real images that give each age band the share of the synthetic ones.

    None where a band of synthetic images has no real one.
    """
    bands, wanted = (np.digitize(ages, AGE_BANDS[1:-1]) for ages in (real, synthetic))
    have, want = (
        np.bincount(band, minlength=len(AGE_BANDS) - 1) / len(band) for band in (bands, wanted)
    )
    if (want[have == 0] > 0).any():
        return None
    ratio: Float64[np.ndarray, " k"] = want[bands] / have[bands]
    return ratio


def _age_errors(
    side: Side,
) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, " k"], Float64[np.ndarray, "draws k"]]:
    """Absolute errors of the age where it is known and answered, the ages, and image weights."""
    rows = np.flatnonzero(side.known[:, AGE] & np.isfinite(side.probability[:, AGE]))
    error = 100.0 * np.abs(side.probability[rows, AGE] - side.value[rows, AGE])
    age = 100.0 * side.value[rows, AGE].astype(np.float64)
    return error.astype(np.float64), age, side.weights[:, rows]
