"""What a classifier says of real and of synthetic images, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Float64, Int, Shaped, UInt8

from cxr_lightning.data.dataset import table_condition
from cxr_lightning.data.split import patient_fraction
from cxr_lightning.evaluation.classification import (
    AGE,
    FINDINGS,
    MIN_PER_CLASS,
    POLICY,
    predict,
)
from cxr_lightning.evaluation.inputs import EvaluationInputs, subgroups
from cxr_lightning.evaluation.judge import Judge, stuck
from cxr_lightning.evaluation.records import Better, Floor, Record, Source
from cxr_lightning.metrics.bootstrap import bootstrap_weights, draws_interval
from cxr_lightning.metrics.classification import (
    auroc,
    calibration_error,
    mean_at_share,
    youden_threshold,
)
from cxr_lightning.types import FIELDS

FEW = 10
"""Images of a class below which a number needs care."""

WEAK = 0.7
"""AUROC on real images below which a classifier cannot judge a field."""

NAMES = (*FINDINGS, "view", "sex", "age")
"""How texts call the fields."""

CANNOT_JUDGE = "cannot judge this"
"""What the warning of a number by such a classifier says; the number is not compared then."""

CHOSEN = "this very classifier chose the images, so its answers prove nothing"
"""What the warning of its numbers says of a set of `cxr generate --reject`."""

FOLD_SEED = 0
FOLDS = 5
"""Parts that the patients are cut into, so that no image is judged by a threshold chosen on it."""

HELD_OUT = "held-out real images of the evaluated conditions"

Estimates = Float64[np.ndarray, " draws"]
"""A number and its bootstrap draws: the first is the number itself."""


@dataclass(frozen=True)
class Answers:
    """What the classifier says of one field of the images of which the truth is known.

    Attributes:
        truth: Whether the field is 1.
        probability: What the classifier says; NaN where it has no answer.
        weights: Of the images in each bootstrap draw.
        fold: Part that each image is in.
    """

    truth: Bool[np.ndarray, " n"]
    probability: Float64[np.ndarray, " n"]
    weights: Float64[np.ndarray, "draws n"]
    fold: Int[np.ndarray, " n"]

    @property
    def share(self) -> float:
        """Share of positives."""
        return float(self.truth.mean())

    def auroc(self) -> Estimates:
        """Area under the ROC curve."""
        return auroc(self.truth, self.probability, self.weights)

    def accuracy(self, thresholds: Float64[np.ndarray, " folds"], share: float) -> Estimates:
        """Share of right answers where a stated share of the images is positive.

        Args:
            thresholds: What reaches that of its fold counts as positive.
            share: Share of positives; that of these answers gives their plain accuracy.
        """
        right = (self.probability >= thresholds[self.fold]) == self.truth
        return mean_at_share(right, self.truth, share, self.weights)

    def brier(self, share: float) -> Estimates:
        """Mean squared error of the probability (Brier 1950), likewise."""
        error = np.square(self.probability - self.truth)
        return mean_at_share(error, self.truth, share, self.weights)

    def calibration_error(
        self, weights: Float64[np.ndarray, "subsets n"] | None = None
    ) -> Float64[np.ndarray, " _"]:
        """Expected calibration error, of the draws or of other weights of the images."""
        chosen = self.weights if weights is None else weights
        return calibration_error(self.truth, self.probability, chosen)


@dataclass(frozen=True)
class Side:
    """One of the two image sets: what is known of it, and what the classifier says.

    Attributes:
        value: Values of `FIELDS`; 0 where unknown.
        known: Whether they are known.
        probability: What the classifier says; NaN where it has no answer.
        weights: Of the images in each bootstrap draw, the images as they are first.
        table: Their rows of a prepared table.
    """

    value: Float32[np.ndarray, "n 17"]
    known: Bool[np.ndarray, "n 17"]
    probability: Float32[np.ndarray, "n 17"]
    weights: Float64[np.ndarray, "draws n"]
    table: pd.DataFrame

    @cached_property
    def patients(self) -> Shaped[np.ndarray, " n"]:
        """Patient of each image."""
        return self.table["patient"].astype(str).to_numpy(dtype=str)

    @cached_property
    def fold(self) -> Int[np.ndarray, " n"]:
        """One of the `FOLDS` for each patient."""
        names, patient = np.unique(self.patients, return_inverse=True)
        fold = [int(FOLDS * patient_fraction(name, FOLD_SEED)) for name in names]
        return np.array(fold)[patient]

    def answers(self, field: int, rows: Int[np.ndarray, " k"] | None = None) -> Answers:
        """The answers for a field, of all images or of some."""
        chosen = np.flatnonzero(self.known[:, field])
        if rows is not None:
            chosen = np.intersect1d(chosen, rows)
        return Answers(
            self.value[chosen, field] == 1.0,
            self.probability[chosen, field].astype(np.float64),
            self.weights[:, chosen],
            self.fold[chosen],
        )

    def classes(
        self, field: int, rows: Int[np.ndarray, " k"] | None = None
    ) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " q"]]:
        """Rows of the images that show a field, and of those that do not."""
        present = self.value[:, field] == 1.0
        known = self.known[:, field]
        if rows is not None:
            known = known & np.isin(np.arange(len(known)), rows)
        return np.flatnonzero(known & present), np.flatnonzero(known & ~present)

    def rarer(self, field: int, rows: Int[np.ndarray, " k"] | None = None) -> int:
        """Images of the class that has fewer."""
        return min(len(part) for part in self.classes(field, rows))

    def macro_auroc(
        self, fields: Sequence[int], rows: Int[np.ndarray, " k"] | None = None
    ) -> Estimates:
        """Mean of the AUROC of some fields; NaN in draws in which one has none."""
        each = [self.answers(field, rows).auroc() for field in fields]
        macro: Estimates = np.mean(each, axis=0)
        return macro

    def enough(self, fields: Sequence[int], rows: Int[np.ndarray, " k"] | None = None) -> list[int]:
        """Those fields of which there are enough images of both classes."""
        return [f for f in fields if self.rarer(f, rows) >= MIN_PER_CLASS]

    def rarer_patients(
        self, fields: Sequence[int], rows: Int[np.ndarray, " k"] | None = None
    ) -> int:
        """Patients of the class that has fewest, over some fields."""
        return min(
            len(np.unique(self.patients[part]))
            for field in fields
            for part in self.classes(field, rows)
        )

    @cached_property
    def subgroups(self) -> dict[str, Int[np.ndarray, " k"]]:
        """Rows of each view, sex and age band."""
        return subgroups(self.table)


class Comparison:
    """Both sides, and how a number of the synthetic one becomes a record with the real as floor.

    Args:
        real: Held-out real images.
        synthetic: Synthetic images with their requested labels.
        source: The classifier.
        chosen: Whether this very classifier chose the synthetic images (`cxr generate --reject`):
            then no number is compared.

    Attributes:
        thresholds: One a fold, of each field that the classifier answers and that has both classes
            among the real images: the one with the largest Youden's J in the other folds of these.
            A synthetic image is judged by that of its fold too, so that both sides are treated
            alike; one threshold of all real images would flatter them.
        reached: AUROC of these fields on the real images.
    """

    def __init__(
        self, real: Side, synthetic: Side, source: Source, *, chosen: bool = False
    ) -> None:
        self.real = real
        self.synthetic = synthetic
        self.source = source
        self.chosen = chosen
        self.thresholds: dict[int, Float64[np.ndarray, " folds"]] = {}
        self.reached: dict[int, float] = {}
        for field in real.enough(range(AGE)):
            answers = real.answers(field)
            if not np.isnan(answers.probability).any():
                self.thresholds[field] = _thresholds(answers)
                self.reached[field] = float(answers.auroc()[0])

    def record(
        self,
        metric: str,
        synthetic: Estimates,
        real: Estimates | None,
        better: Better | None,
        counts: tuple[int, int],
        *,
        patients: tuple[int, int] | None = None,
        meaning: str = HELD_OUT,
        **about: Any,
    ) -> Record:
        """A record of the synthetic side.

        Args:
            metric: Its name.
            synthetic: The number with its draws.
            real: The same of the real side, for the floor.
            better: How they compare; they are not where the classifier cannot judge the field.
            counts: Real and synthetic images behind it.
            patients: Real and synthetic patients behind a share, see `interval`.
            meaning: How the floor was made.
            about: Other fields of the record.
        """
        floor = None
        of_real, of_synthetic = patients or (None, None)
        if self.chosen:
            about["warning"] = "; ".join(filter(None, [CHOSEN, about.get("warning")]))
        if self.chosen or CANNOT_JUDGE in (about.get("warning") or ""):
            better = None
        if real is not None and np.isfinite(real[0]):
            floor = Floor.around(float(real[0]), draws_interval(real, of_real), meaning)
        return Record(
            "condition",
            metric,
            float(synthetic[0]),
            *counts,
            source=self.source,
            interval=draws_interval(synthetic, of_synthetic),
            floor=floor,
            better=better,
            **about,
        )

    def warning(
        self,
        fields: Sequence[int],
        real: Int[np.ndarray, " k"] | None = None,
        synthetic: Int[np.ndarray, " m"] | None = None,
    ) -> str | None:
        """Why a number over some fields, of all images or of some, needs care; None if nothing."""
        reasons = self.weak(fields)
        for field in fields:
            there = self.real.rarer(field, real)
            here = self.synthetic.rarer(field, synthetic)
            if min(there, here) < FEW:
                reasons.append(
                    f"{NAMES[field]}: the rarer class has {there} real and {here} synthetic images"
                )
        return "; ".join(reasons) or None

    def weak(self, fields: Sequence[int]) -> list[str]:
        """What the classifier cannot judge, in words."""
        return [
            f"{NAMES[field]}: the classifier reaches an AUROC of only {self.reached[field]:.2f} on "
            f"real images, so it {CANNOT_JUDGE}"
            for field in fields
            if self.reached[field] < WEAK
        ]


def _thresholds(answers: Answers) -> Float64[np.ndarray, " folds"]:
    """The best threshold for each fold, from all others; from all where these lack a class."""
    found = []
    for fold in range(FOLDS):
        chosen = answers.fold != fold
        if len(np.unique(answers.truth[chosen])) < 2:
            chosen = np.ones_like(chosen)
        found.append(youden_threshold(answers.truth[chosen], answers.probability[chosen]))
    return np.array(found)


def compare(inputs: EvaluationInputs, judge: Judge, held_out: Int[np.ndarray, " k"]) -> Comparison:
    """Both sides as a classifier sees them.

    Fields that it did not learn, or in which it gives all real images the same answer, have none.

    Args:
        inputs: The evaluation.
        judge: The classifier.
        held_out: Rows of the real images to compare with.
    """
    drawn = inputs.synthetic
    everything = np.arange(len(drawn.images))
    real = _side(inputs, judge, inputs.real.images, inputs.real.table, held_out)
    synthetic = _side(inputs, judge, drawn.images, drawn.table, everything)
    unable = stuck(real.probability) | ~np.isin(FIELDS, judge.fields)
    for side in (real, synthetic):
        side.probability[:, unable] = np.nan
    chosen = drawn.confirmed_by is not None and drawn.confirmed_by == judge.source.sha256
    return Comparison(real, synthetic, judge.source, chosen=chosen)


def _side(
    inputs: EvaluationInputs,
    judge: Judge,
    images: UInt8[np.ndarray, "n h w"],
    table: pd.DataFrame,
    rows: Int[np.ndarray, " k"],
) -> Side:
    chosen, settings = table.iloc[rows], inputs.settings
    value, known, *_ = table_condition(chosen, POLICY)
    return Side(
        value.numpy(),
        known.numpy(),
        predict(judge.network, images, rows, settings.batch_size, inputs.device),
        bootstrap_weights(chosen["patient"].to_numpy(), settings.bootstrap, settings.seed),
        chosen,
    )
