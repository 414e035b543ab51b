"""Records of the privacy axis: what a statistic is of synthetic and of held-out images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Shaped

from cxr_lightning.evaluation.inputs import EvaluationInputs
from cxr_lightning.evaluation.records import Better, Floor, Record, Source
from cxr_lightning.metrics.bootstrap import percentile_interval, replicate
from cxr_lightning.metrics.memorization import (
    NEIGHBOURHOOD,
    Threshold,
    false_positive_range,
)

AXIS = "privacy"
FEW_IMAGES = 50
CANDIDATES = 10
"""Nearest training images that the re-identification model compares an image with."""

MEANINGS = {
    "nearest_train": "median distance to the nearest training image",
    "nearest_held_out": "median distance to the nearest held-out image",
    "closer_to_train": "chance that the nearest real image is a training image, at equal numbers "
    "of training and held-out images; 0.5 = nothing memorised",
    "authenticity": "share of images farther from their nearest training image than that is from "
    "its nearest one of another patient; blur lowers it too",
    "data_copying": "C_T, a z of the distances to the training images against those of held-out "
    "images; negative = nearer, which blur makes them too",
    "copy_rate": "share flagged by the distance to the nearest training image",
    "copy_rate_relative": "share flagged by the distance to the nearest training image over the "
    f"mean distance to the next {NEIGHBOURHOOD - 1} of other patients",
    "nearer_than_any": "images that lie nearer to a training image, by the same ratio, than every "
    "held-out image",
    "exact_copies": "images that equal a training image to within a grey level (root mean square)",
    "copied_images": "training images nearest to an image that copy_rate_relative flags",
    "copied_patients": "patients of the training images nearest to an image that "
    "copy_rate_relative flags",
    "reid_score": f"mean of the highest same-patient score with the {CANDIDATES} nearest training "
    "images",
    "reid_rate": f"share flagged by the highest same-patient score with the {CANDIDATES} nearest "
    "training images",
}


@dataclass(frozen=True)
class Split:
    """Who was there to be copied, and who was not.

    Attributes:
        train: Rows of the prepared table.
        held_out: Rows of the prepared table, whose patients are in no other split.
        patient: Number of the patient of each row.
    """

    train: Int[np.ndarray, " t"]
    held_out: Int[np.ndarray, " h"]
    patient: Int[np.ndarray, " n"]


Estimate = tuple[float, tuple[float, float] | None]
"""A number and its 95 % interval."""

Columns = tuple[Shaped[np.ndarray, " _"], ...]
"""What is known of each image of a sample."""

Patients = Shaped[np.ndarray, " _"]
"""Patient of each image of a sample."""


class Recorder:
    """Makes records of numbers from one source, with their intervals, floors and warnings.

    Args:
        inputs: The evaluation's.
        split: Its real images.
        source: What the numbers come from.
    """

    def __init__(self, inputs: EvaluationInputs, split: Split, source: Source) -> None:
        self.inputs = inputs
        self.split = split
        self.source = source
        self.synthetic = inputs.synthetic.patients
        self.held_out = inputs.real_patients[split.held_out]
        self.held_out_patients = len(np.unique(self.held_out))
        self.facts = {
            "train_images": len(split.train),
            "train_patients": len(np.unique(split.patient[split.train])),
            "held_out_images": len(split.held_out),
            "held_out_patients": self.held_out_patients,
        }
        self.warnings = [*_warnings(len(self.synthetic), split, source)]

    def record(
        self,
        metric: str,
        estimate: Estimate,
        floor: Floor | None = None,
        better: Better | None = None,
        details: dict[str, Any] | None = None,
        warning: str = "",
        **fields: Any,
    ) -> Record:
        """A record with what all records of this axis say."""
        common: dict[str, Any] = {
            "n_real": len(self.split.train) + len(self.split.held_out),
            "n_synthetic": len(self.synthetic),
            "source": self.source,
            "warning": "; ".join(filter(None, [*self.warnings, warning])) or None,
            "details": {"meaning": MEANINGS[metric], **self.facts, **(details or {})},
        }
        value, interval = estimate
        made = {"interval": interval, "floor": floor, "better": better}
        return Record(AXIS, metric, value, **(common | made | fields))

    def compare(
        self,
        metric: str,
        statistic: Callable[..., Any],
        synthetic: Columns,
        held_out: Columns,
        better: Better | None,
        **fields: Any,
    ) -> Record:
        """A statistic of synthetic images; its floor is that of held-out images in their place."""
        value, interval = self.estimate(statistic, (held_out, self.held_out))
        floor = Floor.around(value, interval, "held-out images in the place of synthetic ones")
        found = self.estimate(statistic, (synthetic, self.synthetic))
        return self.record(metric, found, floor, better, **fields)

    def rate(
        self,
        metric: str,
        threshold: Threshold,
        flagged: Bool[np.ndarray, " m"],
        rows: Int[np.ndarray, " k"],
        *,
        least: float = 0.0,
        details: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Record:
        """Share of some rows that is flagged.

        How sure the threshold is stands in the floor's range, not in the interval.

        Args:
            metric: Its name.
            threshold: What flags.
            flagged: Which images are.
            rows: Those that count.
            least: The smallest that the statistic can be.
            details: Further ones.
            fields: Further fields of the record.
        """
        values = flagged[rows].astype(float)
        low, high = false_positive_range(threshold, self.held_out_patients)
        share = threshold.false_positive_rate
        floor = Floor(share, low, high, meaning="share of real images of new patients it flags")
        return self.record(
            metric,
            self.estimate(np.mean, ((values,), self.synthetic[rows])),
            floor,
            "lower",
            {**threshold.facts(), "flagged": int(values.sum()), **(details or {})},
            self.threshold_warning(threshold, least),
            n_synthetic=len(rows),
            **fields,
        )

    def count(
        self,
        metric: str,
        threshold: Threshold,
        flagged: Bool[np.ndarray, " m"],
        copied: Int[np.ndarray, " m"],
    ) -> Record:
        """Number of those whom flagged images copy; the floor is that all flags are false.

        The interval is that of the number of flagged images, at as many of them on each one copied:
        draws with repetition would hold too few distinct ones.
        """
        value, n = len(np.unique(copied[flagged])), len(flagged)
        images, interval = self.estimate(np.sum, ((flagged,), self.synthetic))
        if interval is not None and images:
            interval = interval[0] * value / images, interval[1] * value / images
        low, high = false_positive_range(threshold, self.held_out_patients)
        meaning = "as many images if all were real and of new patients"
        floor = Floor(n * threshold.false_positive_rate, n * low, n * high, meaning=meaning)
        warning, facts = self.threshold_warning(threshold), threshold.facts()
        return self.record(metric, (float(value), interval), floor, "lower", facts, warning)

    def estimate(
        self, statistic: Callable[..., Any], *samples: tuple[Columns, Patients]
    ) -> Estimate:
        """A statistic of the columns of all samples, with its interval over their patients."""

        def resampled(*weights: Int[np.ndarray, " _"]) -> float:
            rows = [np.repeat(np.arange(len(weight)), weight) for weight in weights]
            pairs = zip(samples, rows, strict=True)
            return float(statistic(*(column[row] for (part, _), row in pairs for column in part)))

        settings = self.inputs.settings
        patients = [part for _, part in samples]
        replicates = replicate(resampled, patients, settings.bootstrap, settings.seed)
        value = float(statistic(*(column for part, _ in samples for column in part)))
        return value, percentile_interval(replicates)

    def threshold_warning(self, threshold: Threshold, least: float = 0.0) -> str:
        """Why the threshold needs care; `least` is the smallest that the statistic can be."""
        wanted, reached = self.inputs.settings.false_positives, threshold.false_positive_rate
        if threshold.value <= least:
            return (
                "held-out images are as near to training images as can be, so that no copy can be "
                "told from them"
            )
        if reached > wanted + 1e-9:
            return (
                f"{threshold.n} held-out images allow no less than {reached:.1%} false positives "
                f"instead of {wanted:.1%}"
            )
        return ""


def _warnings(synthetic: int, split: Split, source: Source) -> Iterator[str]:
    for name, count in (("held-out", len(split.held_out)), ("synthetic", synthetic)):
        if count < FEW_IMAGES:
            yield f"only {count} {name} images"
    if source.name == "fixed":
        yield "the extractor has random weights and serves smoke tests only"
