"""InfoNCE against loops and lightly; the queue is first in, first out, and saved."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cxr_lightning.losses.contrastive import (
    NOBODY,
    Queue,
    in_batch_info_nce,
    info_nce,
    info_nce_logits,
    instance_accuracy,
)
from cxr_lightning.networks.gather import all_ranks


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def slow_info_nce(query: Tensor, key: Tensor, negatives: list[Tensor], t: float) -> float:
    losses = []
    for i in range(len(query)):
        positive = math.exp(float(query[i] @ key[i]) / t)
        total = positive + sum(math.exp(float(query[i] @ k) / t) for k in negatives[i])
        losses.append(-math.log(positive / total))
    return sum(losses) / len(losses)


def loss_of(*arguments: Any) -> Tensor:
    return info_nce(info_nce_logits(*arguments))


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("dim", [2, 32])
@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_equals_plain_loops(size: int, dim: int, temperature: float) -> None:
    query, key, queue = unit(5, dim), unit(5, dim, seed=1), unit(size, dim, seed=2)
    expected = slow_info_nce(query.double(), key.double(), [queue.double()] * 5, temperature)
    assert float(loss_of(query, key, queue, temperature)) == pytest.approx(expected, abs=1e-5)


def test_in_batch_form_equals_plain_loops() -> None:
    query, key = unit(6, 8), unit(6, 8, seed=1)
    others = [torch.cat([key[:i], key[i + 1 :]]) for i in range(6)]
    expected = slow_info_nce(query, key, list(others), 0.2)
    assert float(in_batch_info_nce(query, key, 0.2)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.1, 0.2])
def test_equals_lightly_with_an_equal_queue(temperature: float) -> None:
    lightly_loss = pytest.importorskip("lightly.loss")
    query, key, queue = unit(16, 32), unit(16, 32, seed=1), unit(128, 32, seed=2)
    oracle = lightly_loss.NTXentLoss(temperature=temperature, memory_bank_size=(128, 32))
    oracle.memory_bank.bank = queue.clone()
    query = query.requires_grad_()
    expected = oracle(query, key)
    torch.testing.assert_close(loss_of(query, key, queue, temperature), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1, 100])
def test_equal_embeddings_give_log_of_queue_size_plus_one(size: int) -> None:
    same = unit(1, 8)
    loss = loss_of(same.repeat(4, 1), same.repeat(4, 1), same.repeat(size, 1), 0.2)
    assert loss.item() == pytest.approx(math.log(size + 1), abs=1e-5)


def test_gradient_goes_to_the_query_alone() -> None:
    query, key, queue = (unit(4, 8, seed=i).requires_grad_() for i in range(3))
    loss_of(query, key, queue, 0.2).backward()
    in_batch_info_nce(query, key, 0.2).backward()
    assert query.grad is not None
    assert key.grad is None
    assert queue.grad is None


def test_queue_may_move_on_before_the_backward_pass() -> None:
    queue = Queue(8, 4, 1)
    before, queries = queue.keys.clone(), [unit(2, 4).requires_grad_() for _ in range(2)]
    loss = loss_of(queries[0], unit(2, 4, seed=1), queue.keys, 0.2)
    queue.enqueue(unit(8, 4, seed=2), torch.zeros(8, 1), torch.arange(8), 0)
    loss.backward()
    loss_of(queries[1], unit(2, 4, seed=1), before, 0.2).backward()
    torch.testing.assert_close(queries[0].grad, queries[1].grad)


def test_loss_is_float32_under_autocast() -> None:
    query, key, queue = unit(4, 8), unit(4, 8, seed=1), unit(16, 8, seed=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(query, key, queue, 0.2)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, loss_of(query, key, queue, 0.2), rtol=0, atol=1e-7)


@pytest.mark.parametrize("batch", [1, 3, 4, 10, 11, 25])
def test_queue_keeps_the_newest_keys_for_any_batch(batch: int) -> None:
    queue = Queue(10, 4, 2)
    assert len(queue) == 10
    assert int(queue.filled) == 0
    history: list[Tensor] = []
    for step in range(7):
        keys = unit(batch, 4, seed=step)
        history += list(keys)
        patients = torch.arange(batch) + step * batch
        queue.enqueue(keys, keys[:, :2], patients, step)
        newest = history[-10:]
        places = [(int(queue.pointer) - len(newest) + i) % 10 for i in range(len(newest))]
        torch.testing.assert_close(queue.keys[places], torch.stack(newest))
        torch.testing.assert_close(queue.weights[places], torch.stack(newest)[:, :2])
        number = (step + 1) * batch
        expected = torch.arange(number - len(newest), number)
        assert torch.equal(queue.patients[places], expected)
        assert torch.equal(queue.steps[places], expected // batch)
        assert int(queue.filled) == len(newest)


def test_queue_starts_with_unit_vectors_in_no_category_and_is_saved(tmp_path: Path) -> None:
    queue = Queue(10, 4, 2)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(10))
    assert queue.weights.sum() == 0
    torch.testing.assert_close(Queue(10, 4, 2).keys, queue.keys)  # so all ranks start alike
    queue.enqueue(unit(3, 4), torch.ones(3, 2), torch.arange(3), 5)
    torch.save(queue.state_dict(), tmp_path / "queue.pt")
    again = Queue(10, 4, 2)
    again.load_state_dict(torch.load(tmp_path / "queue.pt"))
    named = {"keys", "weights", "patients", "steps", "pointer", "filled"}
    assert set(again.state_dict()) == named
    for name, tensor in queue.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor)
    assert int(again.pointer) == 3


def test_queue_holds_no_graph_and_no_half_precision() -> None:
    queue = Queue(4, 4, 1)
    queue.enqueue(unit(2, 4).requires_grad_() * 1.0, torch.ones(2, 1), torch.arange(2), 0)
    assert not queue.keys.requires_grad
    assert queue.keys.dtype == torch.float32


def test_empty_queue_is_refused() -> None:
    with pytest.raises(ValueError, match="size"):
        Queue(0, 4, 1)


def test_one_process_gathers_its_own_rows() -> None:
    rows = unit(3, 2)
    assert all_ranks(rows) is rows


def test_excluded_keys_are_no_negatives_and_take_no_gradient() -> None:
    query, key, queue = unit(3, 8).requires_grad_(), unit(3, 8, seed=1), unit(6, 8, seed=2)
    excluded = torch.zeros(3, 6, dtype=torch.bool)
    excluded[0, [1, 4]] = True
    excluded[2] = True
    negatives = [queue[~row].double() for row in excluded]
    expected = slow_info_nce(query.detach().double(), key.double(), list(negatives), 0.2)
    loss = loss_of(query, key, queue, 0.2, excluded)
    loss.backward()
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(query.grad[2], torch.zeros(8))  # nothing to be told from


def test_accuracy_counts_the_queries_that_find_their_key() -> None:
    key, queue = torch.eye(4), -torch.eye(4)
    query = torch.stack([key[0], key[1], -key[2], key[3]])  # the third is nearer to the queue
    assert float(instance_accuracy(info_nce_logits(query, key, queue, 0.2))) == 0.75


def test_age_is_the_mean_over_keys_of_images() -> None:
    queue = Queue(6, 4, 1)
    assert float(queue.age(9)) == 0.0
    queue.enqueue(unit(2, 4), torch.ones(2, 1), torch.arange(2), 4)
    queue.enqueue(unit(1, 4), torch.ones(1, 1), torch.arange(1), 7)
    assert float(queue.age(9)) == pytest.approx((5 + 5 + 2) / 3)
    assert (queue.patients == NOBODY).sum() == 3
