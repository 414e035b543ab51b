"""Memorisation statistics against plain loops, scipy and their meaning where nothing is copied."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu, norm
from torch import Tensor

from cxr_lightning.metrics.data_copying import DataCopying, cells, data_copying, mann_whitney_z
from cxr_lightning.metrics.memorization import (
    authentic,
    closer_to_train,
    closer_to_train_by_chance,
    copy_threshold,
    false_positive_range,
    measure_space,
    nearest_training,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gap(one: Tensor, other: Tensor) -> float:
    return math.dist(one.tolist(), other.tolist())


@pytest.mark.parametrize("k", [3, 5, 20])
def test_nearest_training_equals_loops(k: int) -> None:
    queries, train = draw(6, 4), draw(12, 4, seed=1)
    patients = torch.tensor([0, 0, 0, 1, 1, 2, 3, 4, 4, 5, 6, 6])
    found = nearest_training(queries, train, patients, k)
    for i, query in enumerate(queries):
        gaps = sorted((gap(query, point), j) for j, point in enumerate(train))
        first, row = gaps[0]
        others = [d for d, j in gaps if patients[j] != patients[row]][: k - 1]
        assert found.distance[i] == pytest.approx(first)
        assert found.index[i] == row
        assert found.relative[i] == pytest.approx(first / (sum(others) / len(others)))


def test_relative_distance_is_0_for_a_copy_and_1_where_nobody_stands_out() -> None:
    train = draw(30, 8)
    copy = nearest_training(train[:1].clone(), train, torch.arange(30)).relative
    assert copy == 0.0
    corners = torch.eye(30)  # all at the same distance from the origin
    assert nearest_training(torch.zeros(1, 30), corners, torch.arange(30)).relative == 1.0
    one = nearest_training(draw(2, 8, seed=1), train, torch.zeros(30, dtype=torch.int64))
    assert one.relative.tolist() == [1.0, 1.0]  # one patient alone has no neighbourhood
    same = nearest_training(torch.zeros(1, 2), torch.zeros(5, 2), torch.arange(5))
    assert same.relative == 1.0


def test_authentic_equals_loops() -> None:
    queries, train = draw(40, 3), draw(25, 3, seed=1)
    patients = torch.arange(25) // 2
    found = authentic(nearest_training(queries, train, patients), train, patients)
    for i, query in enumerate(queries):
        gaps = [gap(query, point) for point in train]
        nearest = gaps.index(min(gaps))
        own = min(
            gap(train[nearest], train[j]) for j in range(25) if patients[j] != patients[nearest]
        )
        assert found[i] == (gaps[nearest] > own)
    assert 0 < found.sum() < 40


def test_closer_to_train_by_hand() -> None:
    to_train, to_held_out = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 1.0, 3.0, 9.0])
    share = (1 + 0 + 0.5 + 1) / 4
    expected = (share / 90) / (share / 90 + (1 - share) / 10)
    value = closer_to_train(to_train, to_held_out, np.full(4, 10.0), 90)
    assert value == pytest.approx(expected)
    assert closer_to_train(np.zeros(4), np.ones(4), np.full(4, 10.0), 90) == 1.0
    assert closer_to_train(np.ones(4), np.zeros(4), np.full(4, 10.0), 90) == 0.0


@pytest.mark.parametrize("held_out", [60, 200])
def test_closer_to_train_is_half_where_both_may_change_places(held_out: int) -> None:
    """Mean over 30 draws of 400 images; the share nearest to held-out images is h / (200 + h)."""
    values = []
    for seed in range(30):
        everything = draw(600 + held_out, 8, seed=seed)
        queries, train, rest = everything.split([400, 200, held_out])
        distances = [torch.cdist(queries, part).amin(1).double().numpy() for part in (train, rest)]
        values.append(closer_to_train(*distances, np.full(400, float(held_out)), 200))
    error = np.std(values) / math.sqrt(30)
    assert abs(np.mean(values) - 0.5) < 3.5 * error + 0.005  # .005: the ratio's bias, of order 1/n


@pytest.mark.parametrize("far", [False, True])
def test_closer_to_train_by_chance_covers_it(far: bool) -> None:
    """Also where the images lie so far off that one or two real images are nearest to all."""
    covered, widths = 0, []
    for seed in range(100):
        everything = draw(450, 6, seed=seed)
        everything[300:] += 30.0 if far else 0.0
        patients = torch.arange(300).numpy() // 2  # 100 in training, 50 held out
        gaps = torch.cdist(everything[300:], everything[:300])
        nearest = gaps.argmin(1).numpy()
        parts = [gaps[:, rows].amin(1).double().numpy() for rows in (slice(200), slice(200, None))]
        value = closer_to_train(*parts, np.full(150, 100.0), 200)
        chance = closer_to_train_by_chance(
            patients[nearest], patients[:200], patients[200:], seed, 200
        )
        low, high = np.quantile(chance, [0.025, 0.975])
        covered += bool(low <= value <= high)
        widths.append(high - low)
    assert covered >= 95 - 3.5 * math.sqrt(100 * 0.05 * 0.95)
    assert (np.mean(widths) > 0.8) == far


@pytest.mark.parametrize("levels", [3, 1000])
def test_mann_whitney_z_equals_scipy(levels: int) -> None:
    generator = np.random.default_rng(0)
    one = generator.integers(0, levels, 37).astype(float)
    other = generator.integers(0, levels, 52) + 0.1 * levels // 1
    z = mann_whitney_z(one, other)
    expected = mannwhitneyu(one, other, use_continuity=False, method="asymptotic")
    assert 2 * norm.sf(abs(z)) == pytest.approx(expected.pvalue)
    assert np.sign(z) == np.sign(expected.statistic - len(one) * len(other) / 2)
    assert mann_whitney_z(other, one) == pytest.approx(-z)
    assert mann_whitney_z(np.ones(5), np.ones(7)) == 0.0


def test_data_copying_equals_loops() -> None:
    generator = np.random.default_rng(1)
    synthetic, held_out = generator.random(300), generator.random(200) + 0.1
    of_synthetic, of_held_out = generator.integers(0, 3, 300), generator.integers(0, 3, 200)
    of_held_out[:15], of_synthetic[:150] = 3, 0  # cell 3 has 15 held-out images and none synthetic
    values, weights = [], []
    for cell in range(3):
        one, other = synthetic[of_synthetic == cell], held_out[of_held_out == cell]
        wins = sum((x > y) + 0.5 * (x == y) for x in one for y in other)
        n, m = len(one), len(other)
        values.append((wins - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12))
        weights.append(m)
    found = data_copying(synthetic, of_synthetic, held_out, of_held_out)
    total = sum(weights)
    value = sum(w * v for w, v in zip(weights, values, strict=True)) / total
    error = math.sqrt(sum(w * w for w in weights)) / total
    assert found is not None
    assert found == pytest.approx(DataCopying(value, error, 3, total / 200))
    assert found.value < 0  # the synthetic distances are smaller


def test_data_copying_without_enough_images_is_none() -> None:
    few, many = np.arange(19.0), np.arange(50.0)
    zero, zeros = np.zeros(19, dtype=np.int64), np.zeros(50, dtype=np.int64)
    assert data_copying(few, zero, many, zeros) is None
    assert data_copying(many, zeros, few, zero) is None


def test_data_copying_error_is_that_of_independent_images() -> None:
    values = []
    for seed in range(300):
        generator = np.random.default_rng(seed)
        parts = [(generator.random(n), generator.integers(0, 3, n)) for n in (120, 90)]
        found = data_copying(*parts[0], *parts[1])
        assert found is not None
        values.append(found.value / found.error)
    assert abs(np.mean(values)) < 3.5 / math.sqrt(300)
    assert np.std(values) == pytest.approx(1.0, abs=3.5 / math.sqrt(2 * 300))


def test_cells_follow_the_training_images() -> None:
    centres = 20 * draw(3, 5)
    near = [centres[torch.arange(n) % 3] + draw(n, 5, seed=n) for n in (900, 330, 300)]
    synthetic, held_out = cells(near[0], near[1:], seed=0)
    assert len(np.unique(held_out)) == 3  # 300 // 100
    assert np.array_equal(synthetic[:300], held_out)  # image i lies around centre i % 3
    assert {*cells(near[0], [near[1][:150], near[2][:99]], seed=0)[0]} == {0}


@pytest.mark.parametrize(
    ("n", "share", "rank"),
    [(5, 0.01, 1), (98, 0.01, 1), (99, 0.01, 1), (199, 0.01, 2), (400, 0.01, 4), (19, 0.1, 2)],
)
def test_threshold_flags_the_stated_share_exactly(n: int, share: float, rank: int) -> None:
    """Of n + 1 values that may change places, each in turn is the new one."""
    values = np.random.default_rng(n).permutation(n + 1).astype(float)
    thresholds = [copy_threshold(np.delete(values, i), share) for i in range(n + 1)]
    flagged = [bool(t.flags(values[i : i + 1])[0]) for i, t in enumerate(thresholds)]
    assert sum(flagged) == rank
    assert thresholds[0].false_positive_rate == rank / (n + 1)
    assert thresholds[0].n == n
    assert rank / (n + 1) <= max(share, 1 / (n + 1))


def test_false_positive_range_holds() -> None:
    """Of uniform values, the true rate of a threshold is its value."""
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(500):
        threshold = copy_threshold(generator.random(250), 0.02)
        low, high = false_positive_range(threshold, 250)
        inside += low <= threshold.value <= high
    assert inside == pytest.approx(475, abs=3.5 * math.sqrt(500 * 0.95 * 0.05))
    clustered = false_positive_range(threshold, 50)  # 5 images a patient
    assert clustered[0] < low
    assert high < clustered[1]


def test_flagged_share_of_real_images_is_the_stated_one() -> None:
    """40 splits of 900 images into training, held-out and "synthetic" images."""
    shares, n, m, splits = [], 240, 240, 40
    for seed in range(splits):
        everything = draw(900, 6, seed=seed).exp()
        synthetic, held_out, train = everything.split([m, n, 900 - m - n])
        patients, others = torch.arange(len(train)), torch.arange(1000, 1000 + n)
        space = measure_space(synthetic, train, held_out, patients, others, 0.02, seed)
        flags = space.absolute.flags(space.synthetic.train.distance)
        shares.append([space.copies.mean(), flags.mean()])
    threshold = space.relative
    a, b = threshold.false_positive_rate * (n + 1), (1 - threshold.false_positive_rate) * (n + 1)
    variance = a * b * (a + b + m) / (m * (a + b) ** 2 * (a + b + 1))  # beta-binomial, of a share
    error = math.sqrt(variance / splits)
    assert np.mean(shares, axis=0) == pytest.approx(threshold.false_positive_rate, abs=3.5 * error)
    assert threshold.false_positive_rate <= 0.02


def test_space_leaves_out_a_held_out_images_own_patient() -> None:
    held_out = draw(10, 4)
    held_out[1] = held_out[0]
    own = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6, 7, 8])
    train, synthetic = draw(20, 4, seed=1), held_out[:2].clone()
    space = measure_space(synthetic, train, held_out, torch.arange(20), own, 0.01, 0)
    assert space.synthetic.to_held_out.tolist() == [0.0, 0.0]
    assert space.held_out.to_held_out[0] == pytest.approx(
        min(gap(held_out[0], point) for point in held_out[2:])
    )
