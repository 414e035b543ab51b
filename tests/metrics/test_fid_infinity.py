"""FID-infinity against a slow computation and against Gaussians of known distance."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from cxr_lightning.metrics.bootstrap import Sample
from cxr_lightning.metrics.fid import frechet, moments
from cxr_lightning.metrics.fid_infinity import FEWEST_IMAGES, fid_infinity, fid_infinity_interval

DIM, SHIFT, SCALE = 32, 0.2, 1.1
TRUTH = DIM * (SHIFT**2 + (SCALE - 1) ** 2)


def _features(count: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, DIM, generator=generator) + shift


def _slow_fid(one: np.ndarray, other: np.ndarray) -> float:
    c1, c2 = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = np.real(scipy.linalg.sqrtm(c1 @ c2))
    return float(np.square(one.mean(0) - other.mean(0)).sum() + np.trace(c1 + c2 - 2 * root))


def test_against_scipy_and_polyfit_on_the_same_subsets() -> None:
    real, synthetic = _features(300, 1), _features(240, 2, SHIFT)
    found = fid_infinity(real, synthetic, points=6, seed=4)
    assert found is not None
    generator = np.random.default_rng(4)
    expected = []
    for size in found.sizes:
        one, other = (
            side.double().numpy()[generator.choice(len(side), size, replace=False)]
            for side in (real, synthetic)
        )
        expected.append(_slow_fid(one, other))
    slope, value = np.polyfit([1 / size for size in found.sizes], expected, 1)
    assert found.values == pytest.approx(expected, rel=1e-4)
    assert found.value == pytest.approx(value, rel=1e-4)
    assert found.slope == pytest.approx(slope, rel=1e-4)


def test_numbers_are_equally_spaced_in_their_inverse() -> None:
    found = fid_infinity(_features(600, 1), _features(900, 2), seed=0)
    assert found is not None
    assert (found.smallest, found.largest) == (200, 600) == (found.sizes[-1], found.sizes[0])
    assert len(found.sizes) == len(found.values) == 15
    steps = np.diff(1 / np.array(found.sizes))
    # Rounding to whole images moves 1 / N by 0.5 / N^2 at most, at both ends of a step.
    assert np.abs(steps - (1 / 200 - 1 / 600) / 14).max() < 1 / 200**2


def test_intercept_is_near_the_true_distance_and_fid_is_not() -> None:
    errors, biases = [], []
    for seed in range(8):
        real, synthetic = _features(500, 2 * seed), _features(400, 2 * seed + 1, SHIFT, SCALE)
        found = fid_infinity(real, synthetic, seed=seed)
        assert found is not None
        errors.append(found.value - TRUTH)
        biases.append(frechet(moments(real), moments(synthetic)) - TRUTH)
    assert all(abs(error) < bias for error, bias in zip(errors, biases, strict=True))
    standard_error = float(np.std(errors)) / len(errors) ** 0.5
    # The line leaves the curvature of the bias: its next term is about f / N = .1 of it.
    assert abs(np.mean(errors)) < 3 * standard_error + 0.1 * float(np.mean(biases))
    assert np.mean(biases) > 10 * standard_error


def test_equal_sides_have_distance_zero() -> None:
    values = []
    for seed in range(8):
        found = fid_infinity(_features(400, 2 * seed), _features(400, 2 * seed + 1), seed=seed)
        assert found is not None
        assert found.values[0] > 1.0
        values.append(found.value)
    assert abs(np.mean(values)) < 3 * np.std(values) / 8**0.5 + 0.1


def test_seed_and_too_few_images() -> None:
    one, other = _features(FEWEST_IMAGES, 1), _features(FEWEST_IMAGES, 2)
    found = fid_infinity(one, other, seed=0)
    assert found is not None
    assert found == fid_infinity(one, other, seed=0)
    assert found != fid_infinity(one, other, seed=1)
    assert fid_infinity(one, other[1:], seed=0) is None
    with pytest.raises(ValueError, match="`points`"):
        fid_infinity(one, other, points=1, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("images", [1, 2])
def test_interval_covers_the_expected_value(images: int) -> None:
    """Patients of one image, or of two equal ones."""
    patients, values, intervals = np.arange(200).repeat(images), [], []
    for seed in range(60):
        real, synthetic = (
            _features(200, 2 * seed + side, side * SHIFT)[:, :8].repeat_interleave(images, 0)
            for side in (0, 1)
        )
        found = fid_infinity(real, synthetic, seed=seed)
        assert found is not None
        sides = (Sample(real, patients), Sample(synthetic, patients))
        interval = fid_infinity_interval(found.value, *sides, draws=60, seed=seed)
        assert interval is not None
        values.append(found.value)
        intervals.append(interval)
    expected = float(np.mean(values))
    covered = sum(low <= expected <= high for low, high in intervals)
    assert covered >= 0.86 * len(values)  # .95 less 3 binomial standard errors of .028
    # The draws have 3 points and the value 15, so their subsets scatter more.
    assert np.mean([high - low for low, high in intervals]) < 1.5 * 2 * 1.96 * np.std(values)


def test_no_interval_without_draws() -> None:
    sample = Sample(_features(FEWEST_IMAGES, 1), np.arange(FEWEST_IMAGES))
    assert fid_infinity_interval(0.0, sample, sample, draws=0, seed=0) is None


def test_draws_of_too_few_images_are_left_out() -> None:
    patients = np.array([0] * 98 + [1, 2])
    real = Sample(_features(100, 0), patients)
    synthetic = Sample(_features(100, 1), np.arange(100))
    interval = fid_infinity_interval(1.0, real, synthetic, draws=60, seed=0)
    assert interval is not None
    assert np.isfinite(interval).all()
