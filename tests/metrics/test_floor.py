"""Random halves of the real images: disjoint patients, equal n, any statistic."""

import numpy as np
import pytest
import torch

from cxr_lightning.metrics.floor import SPLITS, floor_size, halve, split_floor


def _features(count: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def _gap(one: torch.Tensor, other: torch.Tensor) -> list[float]:
    return [float((one.mean(0) - other.mean(0)).square().sum()), float(len(one))]


def test_halves_share_no_patient() -> None:
    patients = np.repeat(np.arange(20), np.arange(1, 21))
    for seed in range(10):
        one, other = halve(patients, np.random.default_rng(seed))
        assert not set(patients[one]) & set(patients[other])
        assert sorted([*one, *other]) == list(range(len(patients)))
        assert abs(len(one) - len(other)) <= 20


def test_floor_at_equal_n_of_several_numbers() -> None:
    real, synthetic = _features(200, 3, 0), _features(40, 3, 1) + 2.0
    patients = np.arange(200)
    floor = split_floor(_gap, real, synthetic, patients, seed=0)
    assert floor is not None
    assert floor.n == 40 == floor_size(patients, 40, seed=0)
    assert floor.real.shape == floor.synthetic.shape == (SPLITS, 2)
    assert (floor.real[:, 1] == 40).all()
    # E |mean - mean'|^2 = 3 (1/40 + 1/40), plus 3 * 4 between the sets; the sample of 40 and that
    # of 200 stay the same, which moves the latter by 2 * 2 * sqrt(3 (1/40 + 1/200)) = 1.2
    assert floor.real[:, 0].mean() == pytest.approx(3 * 2 / 40, rel=0.5)
    assert floor.synthetic[:, 0].mean() == pytest.approx(12 + 3 * 2 / 40, abs=3 * 1.2)


def test_a_smaller_n_can_be_asked_for_but_no_larger_one() -> None:
    real = _features(60, 3, 0)
    for asked, expected in ((10, 10), (1000, 30)):
        floor = split_floor(_gap, real, real, np.arange(60), seed=0, n=asked)
        assert floor is not None
        assert floor.n == expected


@pytest.mark.parametrize(("patients", "synthetic"), [(np.zeros(9), 9), (np.arange(9), 3)])
def test_none_for_one_patient_or_too_few_images(patients: np.ndarray, synthetic: int) -> None:
    real = _features(9, 3, 1)
    assert split_floor(_gap, real, real[:synthetic], patients, seed=0) is None
