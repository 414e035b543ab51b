"""How well probabilities tell a finding from its absence, under many bootstrap draws at once.

The functions take image weights (draws, n), one row a draw, and give one number a draw; NaN where a
draw lacks what the number needs. Weights of 1 give what scikit-learn and torchmetrics give; those
take one draw a call, which is a hundred times slower.
"""

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Shaped
from sklearn.metrics import roc_curve

ECE_BINS = 15
"""Guo et al. 2017 (arXiv 1706.04599), section 2."""


def auroc(
    truth: Bool[np.ndarray, " n"],
    score: Float[np.ndarray, " n"],
    weights: Float64[np.ndarray, "draws n"],
) -> Float64[np.ndarray, " draws"]:
    """Area under the ROC curve: P(score of a positive > of a negative), ties count one half.

    Mann-Whitney form (Hanley and McNeil 1982), weighted.

    Args:
        truth: Whether the finding is present.
        score: Larger where it is more likely.
        weights: Of the images.
    """
    if len(score) == 0:
        return np.full(len(weights), np.nan)
    order = np.argsort(score)
    first_of_ties = np.flatnonzero(np.diff(score[order], prepend=-np.inf))
    positives = np.add.reduceat(weights[:, order] * truth[order], first_of_ties, axis=1)
    negatives = np.add.reduceat(weights[:, order] * ~truth[order], first_of_ties, axis=1)
    below = negatives.cumsum(axis=1) - 0.5 * negatives
    return _ratio((positives * below).sum(axis=1), positives.sum(axis=1) * negatives.sum(axis=1))


def mean(
    values: Shaped[np.ndarray, " n"], weights: Float64[np.ndarray, "draws n"]
) -> Float64[np.ndarray, " draws"]:
    """Weighted mean over the images."""
    return _ratio(weights @ values, weights.sum(axis=1))


def mean_at_share(
    values: Shaped[np.ndarray, " n"],
    truth: Bool[np.ndarray, " n"],
    share: float,
    weights: Float64[np.ndarray, "draws n"],
) -> Float64[np.ndarray, " draws"]:
    """Mean over images of which a stated share is positive, whatever their share here.

    So that sets of different prevalence can be compared.

    Args:
        values: One number an image, such as whether an answer is right.
        truth: Whether the finding is present.
        share: Share of positives, 0 to 1; a class of no share may be missing.
        weights: Of the images.
    """
    parts = zip((truth, ~truth), (share, 1.0 - share), strict=True)
    means = [part * mean(values[rows], weights[:, rows]) for rows, part in parts if part > 0.0]
    return np.sum(means, axis=0)


def calibration_error(
    truth: Bool[np.ndarray, " n"],
    probability: Float[np.ndarray, " n"],
    weights: Float64[np.ndarray, "draws n"],
) -> Float64[np.ndarray, " draws"]:
    """Expected calibration error over 15 bins of equal width (Guo et al. 2017, equation 3).

    The mean over the images of |frequency of the finding - mean probability| of their bin. It grows
    when the sample gets smaller: compare it at equal numbers of images only.
    """
    excess = np.where(truth, 1.0, 0.0) - probability
    by_bin = np.eye(ECE_BINS)[_bins(probability, ECE_BINS)] * excess[:, None]
    return _ratio(np.abs(weights @ by_bin).sum(axis=1), weights.sum(axis=1))


def youden_threshold(truth: Bool[np.ndarray, " n"], score: Float[np.ndarray, " n"]) -> float:
    """Threshold with the largest J = sensitivity + specificity - 1 (Youden 1950).

    Positive is what reaches it. It lies halfway to the next lower score, so that rounding moves no
    image across.

    Args:
        truth: Whether the finding is present; both classes occur.
        score: In [0, 1].
    """
    false_rate, true_rate, thresholds = roc_curve(truth, score)
    best = thresholds[1:][np.argmax((true_rate - false_rate)[1:])]  # the first is infinite
    lower = score[score < best]
    return float((best + lower.max()) / 2.0) if len(lower) else float(best)


def reliability(
    truth: Bool[np.ndarray, " n"], probability: Float[np.ndarray, " n"], bins: int = 10
) -> dict[str, list[float]]:
    """Reliability diagram (DeGroot and Fienberg 1983): bins of equal width that hold images.

    Returns:
        Mean probability (`confidence`), share of positives (`frequency`) and images (`count`).
    """
    bin_of = _bins(probability, bins)
    found = [bin_of == number for number in np.unique(bin_of)]
    return {
        "confidence": [float(probability[rows].mean()) for rows in found],
        "frequency": [float(truth[rows].mean()) for rows in found],
        "count": [float(rows.sum()) for rows in found],
    }


def subsets(
    truth: Bool[np.ndarray, " n"],
    positives: int,
    negatives: int,
    weights: Float64[np.ndarray, "draws n"],
    seed: int,
) -> Float64[np.ndarray, "draws n"]:
    """Weights of a random subset of each draw, of stated numbers of positives and negatives.

    Args:
        truth: Whether the finding is present.
        positives: Positive images of a subset; as many as there are in draws with fewer.
        negatives: Negative images of a subset, likewise.
        weights: Of the images in each draw, whole numbers.
        seed: The same seed gives the same subsets.
    """
    generator = np.random.default_rng(seed)
    chosen = np.zeros_like(weights)
    for row, weight in zip(chosen, weights.astype(int), strict=True):
        for part, size in ((truth, positives), (~truth, negatives)):
            images = np.repeat(np.flatnonzero(part), weight[part])
            kept = generator.permutation(images)[:size]
            row += np.bincount(kept, minlength=len(truth))
    return chosen


def _bins(probability: Float[np.ndarray, " n"], bins: int) -> Int[np.ndarray, " n"]:
    return np.minimum((probability * bins).astype(int), bins - 1)


def _ratio(
    numerator: Float64[np.ndarray, " draws"], denominator: Float64[np.ndarray, " draws"]
) -> Float64[np.ndarray, " draws"]:
    """The quotient; NaN where the denominator is 0."""
    missing = np.full_like(numerator, np.nan)
    return np.divide(numerator, denominator, out=missing, where=denominator > 0.0)
