"""Few coordinates whose distances bound the true ones from below."""

import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from cxr_lightning.metrics import projection
from cxr_lightning.metrics.neighbours import mean
from cxr_lightning.metrics.projection import Projection, principal_projection


def _cloud(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(0.0, 10.0, 30).neg().exp()
    return torch.randn(count, 30, generator=generator) * scales + 2.0


@pytest.mark.parametrize("dimensions", [1, 5, 29])
def test_no_two_points_are_farther_apart_than_in_truth(dimensions: int) -> None:
    points = _cloud(80, 1)
    short = principal_projection(points, mean(points), dimensions).of(points)
    assert short.shape == (80, dimensions + 1)
    truth = torch.cdist(points.double(), points.double())
    bound = torch.cdist(short.double(), short.double())
    assert torch.all(bound <= truth + 1e-6)
    if dimensions == 5:
        away = ~torch.eye(80, dtype=torch.bool)
        assert float((bound / truth)[away].quantile(0.1)) > 0.9  # and close to it


def test_the_components_are_principal() -> None:
    """They keep as much of the variance as scikit-learn's exact ones."""
    points = _cloud(500, 1)
    found = principal_projection(points, mean(points), 5)
    assert torch.allclose(found.basis.T @ found.basis, torch.eye(5).double(), atol=1e-12)
    kept = ((points.double() - found.centre) @ found.basis).square().sum() / len(points)
    best = PCA(5).fit(points.double().numpy()).explained_variance_.sum() * 499 / 500
    assert float(kept) == pytest.approx(best, rel=1e-3)


def test_many_points_are_sampled_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    points = _cloud(95, 1)
    whole = principal_projection(points, mean(points), 3)
    expected = whole.of(points)
    monkeypatch.setattr(projection, "BLOCK", 7)
    assert torch.allclose(whole.of(points), expected, atol=1e-6)
    monkeypatch.setattr(projection, "SAMPLE", 20)  # every fifth point
    sampled = principal_projection(points, mean(points), 3)
    again = principal_projection(points[::5], mean(points), 3)
    assert torch.equal(sampled.basis, again.basis)


def test_the_random_state_is_left_alone() -> None:
    points = _cloud(40, 1)
    state = torch.get_rng_state()
    principal_projection(points, mean(points), 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_equal_points_and_none() -> None:
    points = torch.ones(40, 30)
    found = principal_projection(points, mean(points), 3)
    assert torch.equal(found.of(points), torch.zeros(40, 4))
    assert Projection(found.centre, found.basis).of(points[:0]).shape == (0, 4)
