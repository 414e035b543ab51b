"""Spread within a condition, against the spread of real images of other patients."""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float64, Int, Shaped

from cxr_lightning.evaluation.inputs import Settings
from cxr_lightning.evaluation.records import Better, Floor, Record
from cxr_lightning.metrics.bootstrap import Sample, percentile_interval, replicate
from cxr_lightning.metrics.diversity import different_pairs, pair_distances

PAIRS = 2_000
"""Random pairs of images of different patients."""


def embedding_diversity(
    record: Callable[..., Record], settings: Settings, real: Sample, synthetic: Sample
) -> Iterator[Record]:
    """Mean 1 - cosine of pairs, synthetic and real."""
    found = []
    for features, patients in (real, synthetic):
        pairs = draw_pairs(patients, settings.seed)
        if pairs is None:
            return
        found.append((pair_distances(features, pairs).double().cpu().numpy(), pairs, patients))
    yield compare_pairs(record, "embedding_diversity", "equal", settings, found[0], found[1])


Pairs = tuple[Float64[np.ndarray, " _"], Int[np.ndarray, "2 _"], Shaped[np.ndarray, " _"]]
"""A value of each pair, the pairs, and the patient of each image."""


def draw_pairs(patients: Shaped[np.ndarray, " n"], seed: int) -> Int[np.ndarray, "2 p"] | None:
    """Random pairs of images of different patients; None with fewer than two patients."""
    groups = np.unique(patients, return_inverse=True)[1].astype(np.int64)
    if groups.max() < 1:
        return None
    return different_pairs(groups, PAIRS, np.random.default_rng(seed))


def compare_pairs(
    record: Callable[..., Record],
    metric: str,
    better: Better,
    settings: Settings,
    real: Pairs,
    synthetic: Pairs,
) -> Record:
    """A record of a mean over synthetic pairs whose floor is the mean over real pairs."""
    meaning = "pairs of real images of different patients"
    return record(
        metric,
        float(synthetic[0].mean()),
        interval=pair_interval(synthetic, settings),
        floor=Floor.around(float(real[0].mean()), pair_interval(real, settings), meaning),
        better=better,
        details={"pairs": len(synthetic[0]), "real_pairs": len(real[0])},
    )


def pair_interval(pairs: Pairs, settings: Settings) -> tuple[float, float] | None:
    """Bootstrap interval of a mean over pairs; a pair counts the product of its images' weights."""
    values, (one, other), patients = pairs

    def mean(weights: Shaped[np.ndarray, " n"]) -> float:
        weight = weights[one] * weights[other]
        return float((weight * values).sum() / weight.sum()) if weight.any() else float("nan")

    return percentile_interval(replicate(mean, [patients], settings.bootstrap, settings.seed))
