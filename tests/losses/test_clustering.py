"""Clustering loss against loops; centroids on the sphere, saved, and the same on all ranks."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from processes import in_group
from torch import Tensor
from torch.nn import functional as F

from cxr_lightning.losses.clustering import (
    Centroids,
    clustering_loss,
    nearest_centre,
    rarer_category,
    spherical_kmeans,
)
from cxr_lightning.losses.contrastive import Queue

FORMS = ["prototype", "pull"]


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def one_hot(*categories: int, count: int = 3) -> Tensor:
    return F.one_hot(torch.tensor(categories), count).float()


MULTI = torch.tensor(
    [[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 0], [0, 1 / 3, 1 / 3, 1 / 3], [0, 1.0, 0, 0]]
)


def slow_loss(z: Tensor, weights: Tensor, c: Tensor, form: str, t: float) -> float:
    means = []
    for k in range(len(c)):
        total = weight = 0.0
        for i in range(len(z)):
            share = float(weights[i, k])
            cosine = float(z[i] @ c[k])
            if form == "pull":
                loss = 1 - cosine
            else:
                others = [j for j in range(len(c)) if weights[i, j] == 0]
                own = math.exp(cosine / t)
                loss = -math.log(
                    own / (own + sum(math.exp(float(z[i] @ c[j]) / t) for j in others))
                )
            total, weight = total + share * loss, weight + share
        if weight > 0:
            means.append(total / weight)
    return sum(means) / max(len(means), 1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [0], [0, 4], [2, 3]])
def test_equals_plain_loops(form, rows: list[int]) -> None:  # type: ignore[no-untyped-def]
    z, c, weights = unit(5, 8)[rows], unit(4, 8, seed=1), MULTI[rows]
    loss = clustering_loss(z, weights, c, form=form, temperature=0.2)
    expected = slow_loss(z.double(), weights.double(), c.double(), form, 0.2)
    assert loss.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_weight_zero_contribute_exactly_zero(form) -> None:  # type: ignore[no-untyped-def]
    z = unit(5, 8).requires_grad_()
    c = unit(4, 8, seed=1)
    loss = clustering_loss(z, MULTI, c, form=form)
    loss.backward()
    assert torch.equal(z.grad[2], torch.zeros(8))
    assert z.grad[0].abs().sum() > 0
    kept = [0, 1, 3, 4]
    torch.testing.assert_close(loss, clustering_loss(z[kept], MULTI[kept], c, form=form))


@pytest.mark.parametrize("form", FORMS)
def test_batch_without_any_category_is_zero_and_connected(form) -> None:  # type: ignore[no-untyped-def]
    z = unit(3, 8).requires_grad_()
    loss = clustering_loss(z, torch.zeros(3, 4), unit(4, 8, seed=1), form=form)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(z.grad, torch.zeros(3, 8))


@pytest.mark.parametrize("form", FORMS)
def test_absent_and_unknown_categories_give_no_nan(form) -> None:  # type: ignore[no-untyped-def]
    z, c = unit(2, 8).requires_grad_(), unit(3, 8, seed=1)
    c[2] = 0.0
    known = torch.tensor([True, True, False])
    loss = clustering_loss(z, one_hot(0, 2), c, known=known, form=form)
    loss.backward()
    expected = slow_loss(z[:1].detach(), one_hot(0, count=2), c[:2], form, 0.2)
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert torch.isfinite(z.grad).all()
    assert torch.equal(z.grad[1], torch.zeros(8))


def test_image_in_all_categories_has_nothing_to_be_told_from() -> None:
    z = unit(1, 8).requires_grad_()
    loss = clustering_loss(z, torch.full((1, 4), 0.25), unit(4, 8, seed=1))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.isfinite(z.grad).all()


def test_own_categories_do_not_repel_each_other() -> None:
    c = torch.eye(4)
    z = unit(1, 4, seed=3).requires_grad_()
    clustering_loss(z, torch.tensor([[0.5, 0.5, 0.0, 0.0]]), c).backward()
    # descent moves towards both own centroids and away from both others
    assert (z.grad[0, :2] < 0).all()
    assert (z.grad[0, 2:] > 0).all()


def test_categories_weigh_the_same_however_many_images_they_have() -> None:
    z, c = unit(2, 8), unit(3, 8, seed=1)
    few = clustering_loss(z, one_hot(0, 1), c)
    many = clustering_loss(z[[0, 0, 0, 0, 1]], one_hot(0, 0, 0, 0, 1), c)
    torch.testing.assert_close(few, many)


def test_mean_over_ranks_with_global_totals_is_the_global_loss() -> None:
    z, c = unit(5, 8), unit(4, 8, seed=1)
    whole = clustering_loss(z, MULTI, c)
    totals = MULTI.sum(dim=0) / 2
    parts = [clustering_loss(z[p], MULTI[p], c, totals=totals) for p in (slice(2), slice(2, 5))]
    torch.testing.assert_close(sum(parts) / 2, whole)


def test_loss_is_float32_under_autocast_and_spares_the_centroids() -> None:
    z, c = unit(5, 8), unit(4, 8, seed=1).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = clustering_loss(z, MULTI, c)
    assert loss.dtype == torch.float32
    assert not loss.requires_grad
    torch.testing.assert_close(loss, clustering_loss(z, MULTI, c), rtol=0, atol=1e-7)


def test_centroid_starts_with_the_first_mean_and_follows_by_the_average() -> None:
    centroids = Centroids(3, 8, momentum=0.9)
    assert not centroids.known.any()
    keys = unit(4, 8)
    totals = centroids.update(keys, one_hot(0, 0, 1, 1))
    torch.testing.assert_close(totals, torch.tensor([2.0, 2.0, 0.0]))
    first = F.normalize(keys[:2].mean(dim=0), dim=0)
    torch.testing.assert_close(centroids.vectors[0], first)
    assert centroids.known.tolist() == [True, True, False]
    untouched = centroids.vectors[1].clone()
    centroids.update(keys[2:3], one_hot(0))
    moved = F.normalize(0.9 * first + 0.1 * keys[2], dim=0)
    torch.testing.assert_close(centroids.vectors[0], moved)
    torch.testing.assert_close(centroids.vectors[1], untouched)
    torch.testing.assert_close(centroids.seen, torch.tensor([3.0, 2.0, 0.0]))


def test_centroids_stay_on_the_unit_sphere() -> None:
    centroids = Centroids(4, 8)
    for step in range(50):
        centroids.update(unit(5, 8, seed=step), MULTI)
    torch.testing.assert_close(centroids.vectors.norm(dim=1), torch.ones(4), rtol=0, atol=1e-6)
    key = unit(1, 8)
    opposed = Centroids(1, 8)
    opposed.update(torch.cat([key, -key]), torch.ones(2, 1))  # a mean of 0 has no direction
    assert not opposed.known.any()
    assert torch.equal(opposed.vectors, torch.zeros(1, 8))


def test_centroids_are_saved() -> None:
    centroids = Centroids(4, 8)
    centroids.update(unit(5, 8), MULTI)
    again = Centroids(4, 8)
    again.load_state_dict(centroids.state_dict())
    assert set(again.state_dict()) == {"vectors", "known", "seen"}
    for name, tensor in centroids.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor)


def test_rarer_category_alone_keeps_its_weights() -> None:
    kept = rarer_category(one_hot(0, 1, 1, count=2), torch.tensor([10.0, 90.0]))
    torch.testing.assert_close(kept, torch.tensor([[1.0, 0], [0, 0], [0, 0]]))


def test_pull_gathers_a_category_faster_than_nothing_does() -> None:
    z = unit(8, 8).requires_grad_()
    weights, centroids = one_hot(*[0, 1] * 4, count=2), unit(2, 8, seed=5)
    losses = []
    for _ in range(20):
        loss = clustering_loss(F.normalize(z, dim=1), weights, centroids)
        losses.append(loss.item())
        (gradient,) = torch.autograd.grad(loss, z)
        z = (z - 0.5 * gradient).detach().requires_grad_()
    assert all(b < a for a, b in itertools.pairwise(losses))


def test_kmeans_finds_separate_directions_again_and_starts_the_centroids_there() -> None:
    own = F.one_hot(torch.arange(90) % 3, 8).float()
    embedding = F.normalize(own + 0.05 * unit(90, 8), dim=1)
    centres = spherical_kmeans(embedding, 3, seed=1)
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(3))
    assert torch.equal(centres, spherical_kmeans(embedding, 3, seed=1))
    found = nearest_centre(embedding, centres)
    together = found @ found.T
    assert torch.equal(together, own @ own.T)  # the same partition
    centroids = Centroids(3, 8)
    centroids.update(embedding, own[:, [2, 0, 1]])
    centroids.restart(centres)
    assert centroids.seen.tolist() == [0, 0, 0]  # cluster 1 is another one than before
    assert centroids.known.all()
    torch.testing.assert_close(centroids.vectors, centres)


def run_rank(rank: int, folder: Path) -> None:
    """What each of two processes does."""
    queue, centroids = Queue(10, 8, 4), Centroids(4, 8)
    for step in range(5):
        rows = slice(rank * 3, rank * 3 + 3)
        keys, weights = unit(6, 8, seed=step)[rows], MULTI[[0, 1, 2, 3, 4, 0]][rows]
        totals = centroids.update(keys, weights)
        queue.enqueue(keys, weights, torch.arange(6)[rows], step)
    state = {"queue": queue.state_dict(), "centroids": centroids.state_dict(), "totals": totals}
    torch.save(state, folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_ranks_hold_the_queue_and_centroids_that_one_process_would(tmp_path: Path) -> None:
    in_group(lambda rank: run_rank(rank, tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    queue, centroids = Queue(10, 8, 4), Centroids(4, 8)
    for step in range(5):
        weights = MULTI[[0, 1, 2, 3, 4, 0]]
        totals = centroids.update(unit(6, 8, seed=step), weights)
        queue.enqueue(unit(6, 8, seed=step), weights, torch.arange(6), step)
    for part, module in (("queue", queue), ("centroids", centroids)):
        for name, tensor in module.state_dict().items():
            assert torch.equal(ranks[0][part][name], ranks[1][part][name]), name
            torch.testing.assert_close(ranks[0][part][name], tensor)  # sums in another order
    torch.testing.assert_close(ranks[0]["totals"], totals)
