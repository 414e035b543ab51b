"""Floors of records from random splits of the real images."""

import numpy as np
from jaxtyping import Float64

from cxr_lightning.evaluation.records import Floor
from cxr_lightning.metrics.floor import SplitFloor

MEANING = "real against real: {splits} random splits into two patient-disjoint halves of {n} images"


def floor_of(splits: SplitFloor | None, column: int = 0) -> Floor | None:
    """The floor of one number of a statistic; its range is that of all splits.

    None where there are no splits, or where the statistic is NaN at that number of images.
    """
    if splits is None or np.isnan(splits.real[:, column]).any():
        return None
    real: Float64[np.ndarray, " splits"] = splits.real[:, column]
    return Floor(
        value=float(real.mean()),
        low=float(real.min()),
        high=float(real.max()),
        n=splits.n,
        at_n=float(splits.synthetic[:, column].mean()),
        meaning=MEANING.format(splits=len(real), n=splits.n),
    )
