"""Weighted classification metrics against scikit-learn and torchmetrics, and by hand."""

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, brier_score_loss, roc_auc_score, roc_curve
from torchmetrics.functional.classification import binary_calibration_error

from cxr_lightning.metrics.bootstrap import bootstrap_weights
from cxr_lightning.metrics.classification import (
    auroc,
    calibration_error,
    mean,
    mean_at_share,
    reliability,
    subsets,
    youden_threshold,
)

N = 200


@pytest.fixture
def answers() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, probability with many ties, and weights of 1 and of 8 draws of 60 patients."""
    generator = np.random.default_rng(0)
    truth = generator.random(N) < 0.3
    probability = (0.5 * generator.random(N) + 0.4 * truth).round(2)
    weights = bootstrap_weights(generator.integers(0, 60, N), 8, seed=1)
    return truth, probability, weights


def test_auroc_equals_scikit_learn_in_every_draw(answers) -> None:  # type: ignore[no-untyped-def]
    truth, probability, weights = answers
    expected = [roc_auc_score(truth, probability, sample_weight=row) for row in weights]
    assert auroc(truth, probability, weights) == pytest.approx(expected, abs=1e-12)


def test_auroc_of_ties_is_one_half_and_of_one_class_is_missing() -> None:
    truth, one = np.array([True, False, True, False]), np.ones((1, 4))
    assert auroc(truth, np.full(4, 0.5), one) == pytest.approx(0.5)
    assert np.isnan(auroc(truth, np.arange(4.0), np.array([[1.0, 0.0, 1.0, 0.0]])))
    assert np.isnan(auroc(truth[:0], np.empty(0), np.ones((1, 0))))


def test_calibration_error_equals_torchmetrics_in_every_draw(answers) -> None:  # type: ignore[no-untyped-def]
    truth, probability, weights = answers
    # off the edges of the bins, where the two sort ties in other ways
    probability = np.clip(probability + 1e-4, 0.0, 1.0)
    expected = [
        binary_calibration_error(
            torch.from_numpy(np.repeat(probability, row.astype(int))),
            torch.from_numpy(np.repeat(truth, row.astype(int))).int(),
            n_bins=15,
        ).item()
        for row in weights
    ]
    assert calibration_error(truth, probability, weights) == pytest.approx(expected, abs=1e-6)


def test_means_equal_scikit_learn(answers) -> None:  # type: ignore[no-untyped-def]
    truth, probability, weights = answers
    right, error = (probability >= 0.4) == truth, np.square(probability - truth)
    for row, accuracy, brier in zip(
        weights, mean(right, weights), mean(error, weights), strict=True
    ):
        said = probability >= 0.4
        assert accuracy == pytest.approx(accuracy_score(truth, said, sample_weight=row))
        assert brier == pytest.approx(brier_score_loss(truth, probability, sample_weight=row))


def test_mean_at_share_weighs_the_classes() -> None:
    truth = np.array([True, True, False, False, False, False])
    values = np.array([1.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    one = np.ones((1, 6))
    assert mean_at_share(values, truth, 2 / 6, one) == pytest.approx(mean(values, one))
    assert mean_at_share(values, truth, 0.5, one) == pytest.approx(0.5 * 0.5 + 0.5 * 0.75)
    assert mean_at_share(values[2:], truth[2:], 0.0, one[:, 2:]) == pytest.approx(0.75)
    assert np.isnan(mean_at_share(values[2:], truth[2:], 0.5, one[:, 2:]))


def test_youden_threshold_is_the_best_of_all(answers) -> None:  # type: ignore[no-untyped-def]
    truth, probability, _ = answers
    threshold = youden_threshold(truth, probability)

    def j(cut: float) -> float:
        said = probability >= cut
        return said[truth].mean() - said[~truth].mean()

    false_rate, true_rate, _ = roc_curve(truth, probability)
    assert j(threshold) == pytest.approx((true_rate - false_rate).max())
    assert np.abs(probability - threshold).min() > 1e-3  # between two scores, on neither


def test_youden_threshold_of_a_wrong_classifier_is_a_number() -> None:
    assert np.isfinite(youden_threshold(np.array([True, False]), np.array([0.1, 0.9])))
    assert np.isfinite(youden_threshold(np.array([True, False]), np.array([0.5, 0.5])))


def test_reliability_equals_scikit_learn(answers) -> None:  # type: ignore[no-untyped-def]
    truth, probability, _ = answers
    probability = probability + 1e-4
    frequency, confidence = calibration_curve(truth, probability, n_bins=10)
    found = reliability(truth, probability)
    assert found["frequency"] == pytest.approx(frequency)
    assert found["confidence"] == pytest.approx(confidence)
    assert sum(found["count"]) == N


def test_subsets_hold_the_asked_number_of_each_class() -> None:
    truth = np.arange(30) < 10
    weights = bootstrap_weights(np.arange(30), 20, seed=3)
    chosen = subsets(truth, 4, 9, weights, seed=0)
    assert (chosen <= weights).all()
    assert (chosen[:, truth].sum(axis=1) == np.minimum(4, weights[:, truth].sum(axis=1))).all()
    assert (chosen[:, ~truth].sum(axis=1) == 9).all()
