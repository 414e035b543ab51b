"""Bootstrap over patients: draws, intervals and their coverage."""

import numpy as np
import pytest

from cxr_lightning.metrics.bootstrap import (
    centred_interval,
    patient_weights,
    percentile_interval,
    replicate,
    subsample,
)


def test_images_of_a_patient_come_together() -> None:
    patients = np.array(["a", "b", "a", "c", "b", "a"])
    generator = np.random.default_rng(0)
    for _ in range(20):
        weights = patient_weights(patients, generator)
        assert len({*weights[patients == "a"]}) == len({*weights[patients == "b"]}) == 1
        assert weights[[0, 1, 3]].sum() == 3  # as many patients drawn as there are


def test_same_seed_same_values_and_not_finite_left_out() -> None:
    patients = np.arange(10)
    values = np.random.default_rng(0).normal(size=10)

    def mean(weights: np.ndarray) -> float:
        return float(weights @ values / weights.sum())

    first, again = (replicate(mean, [patients], 50, seed=3) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, replicate(mean, [patients], 50, seed=4))
    assert len(replicate(lambda _: float("nan"), [patients], 50, seed=3)) == 0


def test_intervals_by_hand() -> None:
    replicates = np.arange(101.0)
    assert percentile_interval(replicates) == pytest.approx((2.5, 97.5))
    assert centred_interval(60.0, replicates) == pytest.approx((12.5, 107.5))
    assert centred_interval(10.0, replicates) == pytest.approx((0.0, 57.5))
    assert percentile_interval(replicates[:19]) is None
    assert centred_interval(10.0, replicates[:0]) is None


def test_interval_of_a_mean_covers_it_despite_clusters() -> None:
    """40 patients of 5 nearly equal images: the interval over images would cover about 60 %."""
    generator = np.random.default_rng(0)
    patients = np.repeat(np.arange(40), 5)
    covered = 0
    for trial in range(100):
        values = generator.normal(size=40)[patients] + 0.1 * generator.normal(size=200)

        def mean(weights: np.ndarray, values: np.ndarray = values) -> float:
            return float(weights @ values / weights.sum())

        low, high = percentile_interval(replicate(mean, [patients], 200, seed=trial)) or (0, 0)
        covered += low <= 0.0 <= high
    assert (
        87 <= covered <= 100
    )  # 95 less 3 binomial standard errors of .022, and a bootstrap's lack


def test_subsample_holds_whole_patients_up_to_a_number_of_images() -> None:
    patients = np.repeat(["a", "b", "c", "d"], [3, 1, 4, 2])
    chosen = set()
    for seed in range(20):
        sub = subsample(patients, 5, np.random.default_rng(seed))
        assert 1 <= len(sub.rows) <= 5
        assert sub.drawn == 4
        assert np.array_equal(sub.patients, patients[sub.rows])
        for patient in {*sub.patients}:
            assert (sub.patients == patient).sum() == (patients == patient).sum()
        chosen |= {*sub.patients}
    assert chosen == {"a", "b", "c", "d"}
    whole = subsample(patients, 10, np.random.default_rng(0))
    assert np.array_equal(whole.rows, np.arange(10))
    assert len(subsample(np.array(["a"] * 9), 5, np.random.default_rng(0)).rows) == 9


def test_draws_from_a_subsample_vary_like_draws_from_all() -> None:
    """The mean of 4,000 patients of 2 equal images has variance 1 / 4000, also from 400 of them."""
    generator = np.random.default_rng(0)
    patients = np.repeat(np.arange(4000), 2)
    values = generator.normal(size=4000)[patients]
    sub = subsample(patients, 800, generator)

    def mean(weights: np.ndarray) -> float:
        return float(weights @ values[sub.rows] / weights.sum())

    drawn = replicate(mean, [sub.patients], 500, seed=1, drawn=[sub.drawn])
    # 400 values give the variance within 2 / sqrt(2 * 400) = 7 %, 500 draws within 6 %: 3 x 9 %.
    assert drawn.var() * 4000 == pytest.approx(1.0, rel=0.28)
