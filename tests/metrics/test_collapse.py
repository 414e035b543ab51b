"""Monitors of collapse against loops and known values; alarms on toy encoders."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cxr_lightning.metrics.collapse import (
    alignment,
    describe_collapse,
    effective_rank,
    pair_distance,
    retrieval,
    same_category,
    spread,
    uniformity,
)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_effective_rank_of_known_spectra() -> None:
    assert float(effective_rank(unit(1, 8).repeat(5, 1))) == pytest.approx(1.0, abs=1e-5)
    assert float(effective_rank(torch.eye(6))) == pytest.approx(6.0, abs=1e-5)
    share = torch.tensor([0.5, 0.25, 0.25])
    entropy = -(share * share.log()).sum().exp().log()
    assert float(effective_rank(torch.diag(share))) == pytest.approx(math.exp(entropy), abs=1e-5)


def test_pair_monitors_equal_plain_loops() -> None:
    first, second = unit(7, 5), unit(7, 5, seed=1)
    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    gaps = [float((first[i] - first[j]).square().sum()) for i, j in pairs]
    expected = math.log(sum(math.exp(-2 * gap) for gap in gaps) / len(gaps))
    assert float(uniformity(first)) == pytest.approx(expected, abs=1e-5)
    assert float(pair_distance(first)) == pytest.approx(sum(gaps) / len(gaps) / 2, abs=1e-5)
    views = [float((first[i] - second[i]).square().sum()) for i in range(7)]
    assert float(alignment(first, second)) == pytest.approx(sum(views) / 7, abs=1e-5)


def test_same_category_pairs_share_at_least_one_category() -> None:
    weights = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0, 0, 1.0], [0, 0, 0], [0, 1.0, 0]])
    embedding = unit(5, 4)
    pairs = [(0, 1), (1, 4)]
    expected = sum(1 - float(embedding[i] @ embedding[j]) for i, j in pairs) / 2
    found = pair_distance(embedding, same_category(weights))
    assert float(found) == pytest.approx(expected, abs=1e-6)
    assert pair_distance(embedding, same_category(torch.zeros(5, 3))).isnan()


def test_retrieval_counts_the_images_that_find_themselves() -> None:
    first = torch.eye(4)
    assert float(retrieval(first, first)) == 1.0
    assert float(retrieval(first, first[[1, 0, 2, 3]])) == 0.5


def toy(noise: float, categories: Tensor | None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two views: each image's own direction (or its category's) with noise of its view."""
    own = unit(200, 64, seed=seed) if categories is None else unit(5, 64)[categories]
    views = [F.normalize(own + noise * unit(200, 64, seed=seed + i), dim=1) for i in (1, 2)]
    return views[0], views[1]


def test_alarm_is_silent_on_a_healthy_toy_encoder_and_fires_on_collapsed_ones() -> None:
    categories = torch.arange(200) % 5
    weights = F.one_hot(categories).float()

    def reason(first: Tensor, second: Tensor) -> str | None:
        return describe_collapse(spread(first, second, weights), 200, 64, 5)

    assert reason(*toy(0.3, None)) is None
    assert "effective rank" in str(reason(*toy(0.001, categories)))  # a point a category
    assert "effective rank" in str(reason(*(unit(1, 64).repeat(200, 1),) * 2))  # one point
    assert "two views" in str(reason(*toy(2.0, categories)))  # images no longer told apart


def test_alarm_allows_for_few_images_and_for_none_that_share_a_category() -> None:
    first, second = unit(6, 64), unit(6, 64)
    monitors = spread(first, second, torch.zeros(6, 14))
    assert describe_collapse(monitors, 6, 64, 14) is None
