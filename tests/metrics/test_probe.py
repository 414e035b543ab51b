"""Linear probe and nearest neighbours against scikit-learn and loops, labels masked."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from cxr_lightning.metrics.probe import (
    MASKED,
    fit_probe,
    knn_scores,
    label_auroc,
    probe_labels,
)
from cxr_lightning.types import Condition


def toy(count: int = 80, dim: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features, and three labels that depend on them; a third of the labels are masked."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, dim, generator=generator)
    noise = torch.randn(count, 3, generator=generator)
    labels = (features[:, :3] + noise > 0.3).long()
    masked = torch.rand(count, 3, generator=generator) < 1 / 3
    return 10.0 + 3.0 * features, torch.where(masked, MASKED, labels)


def test_labels_are_masked_where_unknown_or_between() -> None:
    value, known = torch.zeros(2, 17), torch.zeros(2, 17, dtype=torch.bool)
    value[0, :3], known[0, :3] = torch.tensor([1.0, 0.0, 0.7]), True
    labels = probe_labels(Condition.of(value, known))
    assert labels[0].tolist() == [1, 0, *[MASKED] * 12]
    assert (labels[1] == MASKED).all()


def test_probe_equals_scikit_learn_on_the_labelled_images() -> None:
    features, labels = toy()
    found = fit_probe(features, labels)(features)
    standard = ((features - features.mean(0)) / features.std(0, correction=0)).double().numpy()
    for k in range(3):
        rows = (labels[:, k] != MASKED).numpy()
        oracle = LogisticRegression(C=1.0, tol=1e-8).fit(standard[rows], labels[rows, k].numpy())
        expected = torch.from_numpy(oracle.decision_function(standard)).float()
        # both stop at a gradient of about 1e-5; the curvature is above 1 (the penalty alone)
        torch.testing.assert_close(found[:, k], expected, rtol=0, atol=5e-3)


def test_probe_leaves_the_network_behind_the_features_alone() -> None:
    network = nn.Linear(5, 4)
    features, labels = toy()
    with torch.inference_mode():  # as Lightning validates
        fit_probe(network(features), labels)
    fit_probe(network(features), labels)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_feature_that_never_varies_and_label_that_nobody_has() -> None:
    features, labels = toy()
    features[:, 0], labels[:, 2] = 7.0, MASKED
    probe = fit_probe(features, labels)
    assert torch.isfinite(probe(features)).all()
    assert torch.equal(probe(features)[:, 2], torch.zeros(80))


def slow_votes(query: Tensor, bank: Tensor, labels: Tensor, neighbours: int) -> list[list[float]]:
    rows = []
    for z in F.normalize(query, dim=1):
        cosine = [float(z @ c) for c in F.normalize(bank, dim=1)]
        nearest = sorted(range(len(bank)), key=lambda j: -cosine[j])[:neighbours]
        row = []
        for k in range(labels.shape[1]):
            votes = [(math.exp(cosine[j] / 0.1), int(labels[j, k])) for j in nearest]
            all_votes = sum(vote for vote, label in votes if label != MASKED)
            shown = sum(vote for vote, label in votes if label == 1)
            row.append(shown / all_votes if all_votes else 0.5)
        rows.append(row)
    return rows


@pytest.mark.parametrize("neighbours", [2, 10, 200])
def test_nearest_neighbours_equal_plain_loops(neighbours: int) -> None:
    (query, _), (bank, labels) = toy(20, seed=1), toy(40)
    query, bank = query - 10.0, bank - 10.0
    found = knn_scores(query, bank, labels, neighbours=neighbours)
    expected = torch.tensor(slow_votes(query, bank, labels, neighbours))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_auroc_of_each_label_is_scikit_learns_on_the_labelled_images() -> None:
    features, labels = toy()
    labels[:, 2] = torch.where(labels[:, 2] == 0, MASKED, labels[:, 2])  # no negative is left
    found = label_auroc(features[:, :3], labels)
    for k in (0, 1):
        rows = labels[:, k] != MASKED
        expected = roc_auc_score(labels[rows, k], features[rows, k])
        assert float(found[k]) == pytest.approx(expected, abs=1e-6)
    assert found[2].isnan()


def test_large_logits_are_not_taken_for_ties() -> None:
    score = torch.tensor([[30.0], [31.0], [32.0], [33.0]])  # sigmoid in float32: all 1
    labels = torch.tensor([[0], [0], [1], [1]])
    assert label_auroc(score, labels).item() == 1.0
    assert np.isclose(label_auroc(-score, labels).item(), 0.0)
