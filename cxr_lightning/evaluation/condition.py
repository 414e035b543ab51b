"""The condition axis: do synthetic images show what was requested of them?

A classifier that was trained on real images answers for held-out real images and for synthetic ones
alike; what it reaches on the real ones is the floor. The real ones are those of the evaluated
conditions, so that both sides pose the same question.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from jaxtyping import Float64, Int

from cxr_lightning.evaluation.classification import FINDINGS, MIN_PER_CLASS
from cxr_lightning.evaluation.comparison import (
    HELD_OUT,
    Answers,
    Comparison,
    Estimates,
    compare,
)
from cxr_lightning.evaluation.inputs import EvaluationInputs
from cxr_lightning.evaluation.judge import Judge, choose_judge
from cxr_lightning.evaluation.presence import agreement, presence
from cxr_lightning.evaluation.records import OVERALL, AxisResult, Floor, Record
from cxr_lightning.metrics.bootstrap import centred_interval
from cxr_lightning.metrics.classification import (
    reliability,
    subsets,
)
from cxr_lightning.types import FIELDS

SUBSETS = 20
"""Random subsets of equal size behind the floor of the calibration error."""


def condition(inputs: EvaluationInputs) -> AxisResult:
    """Whether synthetic images show the findings, views, sexes and ages that they should."""
    result = AxisResult()
    held_out = _held_out(inputs)
    if reason := _missing(inputs, held_out):
        result.skip("condition", OVERALL, reason)
        return result
    judge = choose_judge(inputs)
    comparison = compare(inputs, judge, held_out)
    fields = _findings(judge, comparison, result)
    for field in fields:
        result.records += _finding(comparison, field, inputs.settings.seed)
    if fields:
        result.records += _macro(comparison, fields)
        sides = {"real": comparison.real, "synthetic": comparison.synthetic}
        result.curves["calibration"] = {
            FINDINGS[field]: {k: _reliability(side.answers(field)) for k, side in sides.items()}
            for field in fields
        }
    for wanted in inputs.conditions:
        rows = np.flatnonzero(wanted.matches(comparison.real.table))
        drawn = np.flatnonzero(inputs.synthetic.matches(wanted))
        presence(comparison, wanted, rows, drawn, result)
    result.records += agreement(comparison)
    return result


def _held_out(inputs: EvaluationInputs) -> Int[np.ndarray, " k"]:
    """Held-out real images of the evaluated conditions."""
    rows = [inputs.real_rows(wanted, "held_out") for wanted in inputs.conditions]
    return np.unique(np.concatenate(rows)) if rows else inputs.split_rows("held_out")


def _missing(inputs: EvaluationInputs, held_out: Int[np.ndarray, " k"]) -> str | None:
    """Why there is no such axis; None where there is."""
    if not inputs.synthetic.labelled:
        return "the synthetic set states no finding of any image"
    if inputs.classifier is None and not len(inputs.split_rows("train")):
        return "no real image is in the split train, to train a classifier on"
    if not len(held_out):
        return "no real image of an evaluated condition is in the splits valid and test"
    return None


def _findings(judge: Judge, comparison: Comparison, result: AxisResult) -> list[int]:
    """Findings that were requested and can be judged; the others are noted."""
    fields = []
    for field, name in enumerate(FINDINGS):
        if not len(comparison.synthetic.classes(field)[0]):
            continue
        if FIELDS[field] not in judge.fields:
            reason = "the classifier did not learn it"
        elif np.isnan(comparison.real.probability[:, field]).any():
            reason = "the classifier gives every real image the same answer"
        elif field not in comparison.thresholds:
            reason = f"fewer than {MIN_PER_CLASS} held-out images show it, or show its absence"
        elif comparison.synthetic.rarer(field) < MIN_PER_CLASS:
            reason = f"fewer than {MIN_PER_CLASS} images were requested with it, or without it"
        else:
            fields.append(field)
            continue
        result.skip("condition", "auroc", reason, name)
    return fields


def _finding(comparison: Comparison, field: int, seed: int) -> Iterator[Record]:
    """AUROC, accuracy, Brier score and calibration error of a finding."""
    real, synthetic = comparison.real.answers(field), comparison.synthetic.answers(field)
    record = partial(
        comparison.record,
        counts=(len(real.truth), len(synthetic.truth)),
        patients=(
            comparison.real.rarer_patients([field]),
            comparison.synthetic.rarer_patients([field]),
        ),
        condition=FINDINGS[field],
        warning=comparison.warning([field]),
    )
    positives = {"real_positives": int(real.truth.sum()), "positives": int(synthetic.truth.sum())}
    yield record("auroc", synthetic.auroc(), real.auroc(), "higher", details=positives)
    share = synthetic.share
    at_share = partial(record, meaning=f"{HELD_OUT}, weighted to {share:.1%} positives as here")
    thresholds = comparison.thresholds[field]
    right = synthetic.accuracy(thresholds, share), real.accuracy(thresholds, share)
    yield at_share("accuracy", *right, "higher", details={"thresholds": thresholds.tolist()})
    yield at_share("brier", synthetic.brier(share), real.brier(share), "lower")
    plain = record("calibration_error", synthetic.calibration_error(), None, "lower")
    yield _with_floor(plain, real, synthetic, seed)


def _with_floor(record: Record, real: Answers, synthetic: Answers, seed: int) -> Record:
    """Calibration error with a floor at equal numbers of positives and of negatives.

    The error grows when the sample gets smaller, also in bootstrap draws, so the intervals are
    moved onto the value.
    """
    classes = [(a.truth.sum(), (~a.truth).sum()) for a in (real, synthetic)]
    scale = min(1.0, *(there / here for there, here in zip(*classes, strict=True)))
    positives, negatives = (max(1, int(scale * count)) for count in classes[1])

    def at_size(answers: Answers, weights: Float64[np.ndarray, "draws n"]) -> Estimates:
        chosen = subsets(answers.truth, positives, negatives, weights, seed)
        return answers.calibration_error(chosen)

    equal, here = (at_size(a, np.ones((SUBSETS, len(a.truth)))) for a in (real, synthetic))
    value = float(equal.mean())
    low, high = centred_interval(value, at_size(real, real.weights[1:])) or (
        float(equal.min()),
        float(equal.max()),
    )
    meaning = f"{HELD_OUT}: mean of {SUBSETS} random subsets with the synthetic share of positives"
    return replace(
        record,
        interval=centred_interval(record.value, synthetic.calibration_error()[1:]),
        floor=Floor(value, low, high, positives + negatives, float(here.mean()), meaning),
    )


def _reliability(answers: Answers) -> dict[str, list[float]]:
    return reliability(answers.truth, answers.probability)


def _macro(comparison: Comparison, fields: list[int]) -> Iterator[Record]:
    """Mean AUROC over the findings: of all images, and of each subgroup that is stated."""
    real, synthetic = comparison.real, comparison.synthetic
    judged = {name: real.enough(fields, rows) for name, rows in real.subgroups.items()}
    floors = {
        name: float(real.macro_auroc(enough, real.subgroups[name])[0])
        for name, enough in judged.items()
        if enough
    }
    yield comparison.record(
        "auroc",
        synthetic.macro_auroc(fields),
        real.macro_auroc(fields),
        "higher",
        (len(real.value), len(synthetic.value)),
        patients=(real.rarer_patients(fields), synthetic.rarer_patients(fields)),
        warning=comparison.warning(fields),
        details={"findings": [FINDINGS[f] for f in fields], "real_subgroups": floors},
    )
    for name, rows in synthetic.subgroups.items():
        there = real.subgroups[name]
        if enough := synthetic.enough(judged[name], rows):
            yield comparison.record(
                "auroc",
                synthetic.macro_auroc(enough, rows),
                real.macro_auroc(enough, there),
                "higher",
                (len(there), len(rows)),
                patients=(
                    real.rarer_patients(enough, there),
                    synthetic.rarer_patients(enough, rows),
                ),
                subgroup=name,
                warning=comparison.warning(enough, there, rows),
                details={"findings": [FINDINGS[f] for f in enough]},
            )
