"""Precision, recall, density and coverage against package prdc and against plain loops."""

import contextlib
import io

import numpy as np
import pytest
import torch
from torch import Tensor

from cxr_lightning.metrics import neighbours
from cxr_lightning.metrics import prdc as module
from cxr_lightning.metrics.prdc import prdc


def _features(count: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) + shift


def _means(real: Tensor, synthetic: Tensor, k: int) -> dict[str, float]:
    return {
        name: float(v.double().mean()) for name, v in prdc(real, synthetic, k)._asdict().items()
    }


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that divide nothing evenly."""
    for name in ("QUERY_BLOCK", "POINT_BLOCK", "PAIR_BLOCK"):
        monkeypatch.setattr(neighbours, name, 31)
    monkeypatch.setattr(module, "REAL_BLOCK", 13)
    monkeypatch.setattr(module, "SYNTHETIC_BLOCK", 17)


@pytest.mark.parametrize(
    ("n", "m", "dim", "shift", "k"),
    [(300, 200, 16, 0.0, 5), (150, 260, 64, 0.3, 3), (90, 80, 4, 0.8, 5), (7, 7, 2, 0.0, 5)],
)
def test_against_package_prdc(
    small_blocks: None, n: int, m: int, dim: int, shift: float, k: int
) -> None:
    package = pytest.importorskip("prdc")
    real, synthetic = _features(n, dim, 1), 0.9 * _features(m, dim, 2, shift)
    with contextlib.redirect_stdout(io.StringIO()):
        expected = package.compute_prdc(
            real.double().numpy(), synthetic.double().numpy(), nearest_k=k
        )
    assert _means(real, synthetic, k) == pytest.approx(expected, abs=1e-6)


def test_each_image_against_loops() -> None:
    """The definitions, word by word."""
    k = 2
    real, synthetic = _features(12, 3, 1), _features(9, 3, 2, 0.5)

    def distance(a: Tensor, b: Tensor) -> float:
        return float((a.double() - b.double()).square().sum().sqrt())

    def radius(side: Tensor, i: int) -> float:
        return sorted(distance(side[i], side[j]) for j in range(len(side)) if j != i)[k - 1]

    found = prdc(real, synthetic, k)
    for j in range(9):
        balls = sum(distance(real[i], synthetic[j]) < radius(real, i) for i in range(12))
        assert found.density[j] == balls / k
        assert found.precision[j] == (balls > 0)
    for i in range(12):
        near = [distance(real[i], synthetic[j]) for j in range(9)]
        assert found.coverage[i] == (min(near) < radius(real, i))
        assert found.recall[i] == any(near[j] < radius(synthetic, j) for j in range(9))


def test_blocks_change_nothing(request: pytest.FixtureRequest) -> None:
    real, synthetic = _features(100, 8, 1), _features(70, 8, 2)
    whole = prdc(real, synthetic)
    request.getfixturevalue("small_blocks")
    assert all(torch.equal(a, b) for a, b in zip(whole, prdc(real, synthetic), strict=True))


def test_known_cases() -> None:
    real = _features(100, 8, 1)
    far = _means(real, real + 1e3, 5)
    assert far == {"precision": 0.0, "density": 0.0, "recall": 0.0, "coverage": 0.0}
    same = _means(real, real.clone(), 5)
    # A copy lies in its own ball and in those whose centres have it among their nearest 4: the
    # 5th is on the border. Each ball so holds 1 + 4 copies, which is k of them.
    assert same == {"precision": 1.0, "density": 1.0, "recall": 1.0, "coverage": 1.0}
    collapsed = real[:1].repeat(50, 1)
    balls = float(prdc(real, collapsed).coverage.double().sum())
    found = _means(real, collapsed, 5)
    assert found["precision"] == 1.0
    assert found["density"] == balls / 5
    assert found["recall"] == 0.0  # balls of radius 0 are empty


def test_points_on_the_border_are_outside() -> None:
    """Copies of the real images: fp32 rounding must not put the k-th neighbours in the balls."""
    for dim in (16, 512):
        real = _features(300, dim, 1, shift=2.0)
        assert torch.equal(prdc(real, real.clone()).density.sum(), torch.tensor(300.0).double())


def test_as_many_images_as_neighbours() -> None:
    with pytest.raises(ValueError, match="`k`"):
        prdc(_features(5, 3, 1), _features(9, 3, 2), 5)


def test_sharp_generator_has_density_above_one_and_low_coverage() -> None:
    """Naeem et al. 2020, section 3: what density is for, and precision cannot say."""
    real, synthetic = _features(500, 8, 1), 0.3 * _features(500, 8, 2)
    found = _means(real, synthetic, 5)
    assert found["precision"] > 0.99
    assert found["density"] > 1.5
    assert found["coverage"] < 0.6
    assert found["recall"] < 0.2
    assert np.isfinite(list(found.values())).all()
