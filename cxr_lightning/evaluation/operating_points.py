"""At which answer a classifier says that a finding is there, and how well it tells then."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int

from cxr_lightning.evaluation.classification import AGE, both_classes
from cxr_lightning.metrics.classification import auroc, youden_threshold
from cxr_lightning.types import FIELDS, Condition


@dataclass(frozen=True)
class OperatingPoint:
    """Of one field, on held-out real images.

    Attributes:
        threshold: With the largest Youden's J; what reaches it counts as positive.
        auroc: Area under the ROC curve.
        positives: Images that show the field.
        negatives: Images that do not.
    """

    threshold: float
    auroc: float
    positives: int
    negatives: int


def operating_points(
    probability: Float32[np.ndarray, "k 17"],
    condition: Condition,
    rows: Int[np.ndarray, " k"],
    fields: Sequence[str],
) -> dict[str, OperatingPoint]:
    """The operating points of the fields that have enough images of both classes.

    Args:
        probability: What the classifier says of the held-out images.
        condition: What is known of every image.
        rows: Rows of the held-out images.
        fields: Those that the classifier learned.
    """
    chosen = condition.rows(torch.from_numpy(rows))
    found = {}
    for field in np.flatnonzero(both_classes(chosen)[:AGE]):
        if FIELDS[field] not in fields:
            continue
        known = chosen.known[:, field].numpy()
        truth = chosen.value[:, field].numpy()[known] == 1.0
        answers = probability[known, field].astype(np.float64)
        found[FIELDS[field]] = OperatingPoint(
            youden_threshold(truth, answers),
            float(auroc(truth, answers, np.ones((1, len(truth))))[0]),
            int(truth.sum()),
            int((~truth).sum()),
        )
    return found
