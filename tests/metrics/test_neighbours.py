"""Nearest neighbours against all distances in float64."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from cxr_lightning.metrics import neighbours
from cxr_lightning.metrics.neighbours import nearest


def _features(count: int, dim: int, seed: int) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def _reference(
    queries: Tensor, points: Tensor, k: int, same: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Sorts all distances; `same` marks the pairs to leave out."""
    distance = cdist(queries.double().numpy(), points.double().numpy())
    if same is not None:
        distance[same] = np.inf
    index = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distance, index, axis=1), index


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that divide nothing evenly."""
    monkeypatch.setattr(neighbours, "QUERY_BLOCK", 7)
    monkeypatch.setattr(neighbours, "POINT_BLOCK", 11)
    monkeypatch.setattr(neighbours, "PAIR_BLOCK", 5)


@pytest.mark.parametrize(("n", "m", "dim", "k"), [(40, 60, 8, 5), (3, 200, 300, 1), (30, 9, 2, 9)])
def test_against_all_distances(small_blocks: None, n: int, m: int, dim: int, k: int) -> None:
    queries, points = _features(n, dim, 1) + 5.0, _features(m, dim, 2) + 5.0
    found = nearest(queries, points, k)
    distance, index = _reference(queries, points, k)
    assert np.array_equal(found.index, index)
    assert np.allclose(found.distance, distance, rtol=1e-12)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, points = _features(50, 16, 1), _features(80, 16, 2)
    whole = nearest(queries, points, 4)
    monkeypatch.setattr(neighbours, "QUERY_BLOCK", 7)
    monkeypatch.setattr(neighbours, "POINT_BLOCK", 3)
    parts = nearest(queries, points, 4)
    assert torch.equal(whole.index, parts.index)
    assert torch.allclose(whole.distance, parts.distance, rtol=1e-14)


def _flat_cloud(count: int, seed: int) -> Tensor:
    """Points of 40 features most of whose variance lies in few directions, as of images."""
    scales = torch.linspace(0.0, 14.0, 40).neg().exp()
    return _features(count, 40, seed) * scales + 5.0


@pytest.fixture
def few_coordinates(monkeypatch: pytest.MonkeyPatch, small_blocks: None) -> list[int]:
    """Searches principal components first; notes how many features each search had."""
    monkeypatch.setattr(neighbours, "MANY_POINTS", 50)
    monkeypatch.setattr(neighbours, "DIMENSIONS", 6)
    searched: list[int] = []
    plain = neighbours.squared_distances

    def noted(one: Tensor, other: Tensor) -> Tensor:
        searched.append(one.shape[1])
        return plain(one, other)

    monkeypatch.setattr(neighbours, "squared_distances", noted)
    return searched


@pytest.mark.parametrize("k", [1, 7])
def test_principal_components_change_nothing(few_coordinates: list[int], k: int) -> None:
    queries, points = _flat_cloud(40, 1), _flat_cloud(600, 2)
    one, other = torch.arange(40) % 6, torch.arange(600) % 6
    for groups in ({}, {"query_groups": one, "point_groups": other}):
        found = nearest(queries, points, k, **groups)
        same = one.numpy()[:, None] == other.numpy() if groups else None
        distance, index = _reference(queries, points, k, same)
        assert np.array_equal(found.index, index)
        assert np.allclose(found.distance, distance, rtol=1e-12)
    assert set(few_coordinates) == {7}  # they alone were enough


def test_features_decide_where_principal_components_do_not(few_coordinates: list[int]) -> None:
    """Round clouds: 7 coordinates say little of a distance in 40, so the rest is searched too."""
    queries, points = _features(40, 40, 1), _features(600, 40, 2)
    found = nearest(queries, points, 3)
    distance, index = _reference(queries, points, 3)
    assert np.array_equal(found.index, index)
    assert np.allclose(found.distance, distance, rtol=1e-12)
    assert set(few_coordinates) == {7, 40}


def test_near_copies_among_principal_components(few_coordinates: list[int]) -> None:
    points = _flat_cloud(600, 1)
    cloud = points[:1] + 1e-6 * _features(60, 40, 2)
    queries, points = points[:3].clone(), torch.cat([points, cloud])
    found = nearest(queries, points, 5)
    distance, index = _reference(queries, points, 5)
    assert np.array_equal(found.index, index)
    assert np.allclose(found.distance, distance, rtol=1e-12)
    assert found.distance[:, 0].tolist() == [0.0, 0.0, 0.0]


def test_pairs_of_a_group_are_left_out(small_blocks: None) -> None:
    queries, points = _features(40, 8, 1), _features(60, 8, 2)
    one, other = torch.arange(40) % 6, torch.arange(60) % 6
    found = nearest(queries, points, 5, query_groups=one, point_groups=other)
    same = one.numpy()[:, None] == other.numpy()
    distance, index = _reference(queries, points, 5, same)
    assert np.array_equal(found.index, index)
    assert np.allclose(found.distance, distance, rtol=1e-12)


def test_not_itself() -> None:
    points = _features(30, 4, 1)
    rows = torch.arange(30)
    assert torch.equal(nearest(points, points, 1).index[:, 0], rows)
    others = nearest(points, points, 1, query_groups=rows, point_groups=rows)
    assert torch.all(others.index[:, 0] != rows)
    assert torch.all(others.distance > 0)


def test_fewer_points_than_k(small_blocks: None) -> None:
    points = _features(20, 3, 1)
    groups = torch.tensor([0] * 18 + [1] * 2)
    found = nearest(points, points, 3, query_groups=groups, point_groups=groups)
    assert torch.all(found.index[:18, :2] >= 18)
    assert torch.all(found.index[:18, 2] == -1)
    assert torch.all(found.distance[:18, 2].isposinf())
    assert torch.all(found.index[18:] >= 0)
    assert nearest(points, points[:0], 2).index.tolist() == [[-1, -1]] * 20
    assert nearest(points[:0], points, 2).distance.shape == (0, 2)


def test_near_copies_have_their_right_distance() -> None:
    """At relative distance 1e-6 the squares differ by 1e-12, far below fp32's rounding of 6e-8."""
    points = _features(500, 256, 1) + 3.0
    rows = torch.arange(0, 500, 5)
    queries = points[rows] * (1 + 1e-6)
    found = nearest(queries, points, 1)
    assert torch.equal(found.index[:, 0], rows)
    expected = (queries.double() - points[rows].double()).norm(dim=1)
    assert 0 < float(expected.max()) < 1e-4
    assert torch.allclose(found.distance[:, 0], expected, rtol=1e-12)


def test_copies_have_distance_zero() -> None:
    points = _features(300, 64, 1) + 3.0
    found = nearest(points.clone(), points, 2)
    assert torch.equal(found.index[:, 0], torch.arange(300))
    assert torch.all(found.distance[:, 0] == 0.0)
    assert torch.all(found.distance[:, 1] > 1.0)


def test_more_near_copies_than_candidates_are_told_apart() -> None:
    """60 points within fp32's rounding of each other: their order needs float64."""
    base = _features(1, 64, 1)
    cloud = base + 1e-6 * _features(60, 64, 2)
    points = torch.cat([_features(200, 64, 3), cloud])
    found = nearest(base, points, 5)
    distance, index = _reference(base, points, 5)
    assert np.array_equal(found.index, index)
    assert np.allclose(found.distance, distance, rtol=1e-12)


def test_bound_of_the_rounding_error_holds() -> None:
    """It is not exceeded, and not so wide as to be no bound."""
    balls, points = _features(200, 512, 1), _features(300, 512, 2)
    exact = torch.from_numpy(cdist(balls.double().numpy(), points.double().numpy()))
    error = (neighbours.squared_distances(balls, points).double() - exact.square()).abs()
    bound = neighbours.rounding_error(balls, exact.max(1).values)
    assert torch.all(error < bound[:, None])
    assert float(bound.max()) < 1e-3 * float(exact.square().min())


def test_wrong_arguments() -> None:
    points = _features(4, 3, 1)
    with pytest.raises(ValueError, match="`k`"):
        nearest(points, points, 0)
    with pytest.raises(ValueError, match="`point_groups`"):
        nearest(points, points, 1, query_groups=torch.arange(4))
    broken = points.clone()
    broken[2, 1] = torch.nan
    with pytest.raises(ValueError, match="`points`"):
        nearest(points, broken, 1)
    with pytest.raises(ValueError, match="`queries`"):
        nearest(broken, points, 1)
