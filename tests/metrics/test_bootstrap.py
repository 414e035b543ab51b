"""Bootstrap over patients: draws, intervals and their coverage."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cxr_lightning.metrics.bootstrap import (
    Sample,
    TwoSamples,
    bootstrap_weights,
    centred_interval,
    draws_interval,
    patient_weights,
    percentile_interval,
    replicate,
    seeds_interval,
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


def test_bootstrap_weights_keep_patients_together_and_start_with_the_sample() -> None:
    patients = np.array(["b", "a", "b", "c"])
    weights = bootstrap_weights(patients, 30, seed=2)
    assert weights.shape == (31, 4)
    assert (weights[0] == 1.0).all()
    assert (weights[:, 0] == weights[:, 2]).all()
    assert len(np.unique(weights, axis=0)) > 5
    assert np.array_equal(weights, bootstrap_weights(patients, 30, seed=2))


def test_interval_leaves_the_value_and_missing_draws_out() -> None:
    estimates = np.array([1000.0, *np.arange(101.0), np.nan])
    assert draws_interval(estimates) == pytest.approx((2.5, 97.5))
    assert draws_interval(estimates[:1]) is None


def test_interval_of_a_share_that_no_draw_changes_is_wilsons() -> None:
    always, never = np.ones(31), np.zeros(31)
    assert draws_interval(always) == (1.0, 1.0)
    # (n + z^2 / 2 +- z^2 / 2) / (n + z^2), z = 1.96
    z2 = 1.959964**2
    assert draws_interval(always, 12) == pytest.approx((12 / (12 + z2), 1.0))
    assert draws_interval(never, 12) == pytest.approx((0.0, z2 / (12 + z2)))
    assert draws_interval(np.full(31, 0.5), 12) == (0.5, 0.5)
    assert draws_interval(always[:1], 12) is None


def test_two_samples_keep_whole_patients_and_draw_as_many_as_there_are() -> None:
    """Draws of 40 patients on one side and 10 on the other, from at most 12 images of each."""
    features = torch.arange(40.0)[:, None]
    one = Sample(features, np.arange(40))
    other = Sample(features[:20], np.arange(20) // 2)
    sides = TwoSamples(one, other, largest=12, seed=0)
    assert (len(sides.real), len(sides.synthetic)) == (12, 12)
    pairs = sides.synthetic.flatten().sort().values.view(6, 2)
    assert (pairs % 2 == torch.tensor([0.0, 1.0])).all()
    seen = []

    def statistic(of_real: Tensor, of_synthetic: Tensor) -> float:
        seen.append((int(of_real.sum()), int(of_synthetic.sum())))
        return float((of_real * sides.real[:, 0]).sum() / of_real.sum())

    interval = sides.interval(5.0, statistic, 50, least=4.0)
    assert set(seen) == {(40, 20)}
    assert interval is not None
    assert 4.0 <= interval[0] < 5.0 < interval[1]
    assert interval == sides.interval(5.0, statistic, 50, least=4.0)
    assert sides.interval(5.0, statistic, 10) is None


@pytest.mark.parametrize(("of_patients", "low", "high"), [(0.0, 0.925, 0.975), (0.3, 0.905, 0.975)])
def test_interval_over_three_seeds_holds_the_mean_as_often_as_it_says(
    of_patients: float, low: float, high: float
) -> None:
    """Seeds alone: Student's interval, 95 % within five standard errors of 2,000 repetitions.

    With patients too the degrees of freedom are estimated: Satterthwaite may be 2 % short.
    """
    random = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        values = random.normal(0, 1, 3) + random.normal(0, of_patients)
        draws = values + random.normal(0, of_patients, (100, 1))
        found = seeds_interval(np.concatenate([values[None], draws]))
        assert found is not None
        held += found[0] <= 0.0 <= found[1]
    assert low <= held / 2000 <= high


def test_one_seed_has_the_interval_of_the_patients() -> None:
    draws = np.random.default_rng(0).normal(0.5, 0.1, (1000, 1))
    found = seeds_interval(np.concatenate([[[0.5]], draws]))
    assert found == pytest.approx((0.5 - 0.196, 0.5 + 0.196), abs=0.02)
    assert seeds_interval(np.array([[0.5, 0.6, 0.7]])) is None
