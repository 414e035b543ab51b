"""Embedding of a condition."""

import itertools

import torch

from cxr_lightning.networks.condition import ConditionEmbedding
from cxr_lightning.types import FIELDS, Condition


def some(count: int, seed: int = 0) -> Condition:
    generator = torch.Generator().manual_seed(seed)
    known = torch.rand(count, len(FIELDS), generator=generator) < 0.5
    return Condition.of(torch.rand(count, len(FIELDS), generator=generator) * known, known)


def test_unknown_uncertain_absent_and_present_are_four_different_things(randomize):
    network = randomize(ConditionEmbedding(16))
    condition = Condition.unknown(4)
    condition.uncertain[1, 4] = True
    condition.known[2:, 4], condition.value[3, 4] = True, 1.0
    embedded = network(condition)
    for first, second in itertools.combinations(embedded, 2):
        assert not torch.allclose(first, second, atol=1e-4)
    assert not torch.allclose(embedded[1], (embedded[2] + embedded[3]) / 2, atol=1e-4)


def test_the_value_of_an_unknown_field_is_not_seen(randomize):
    network = randomize(ConditionEmbedding(16))
    condition = some(4)
    garbled = condition._replace(value=torch.where(condition.known, condition.value, 0.77))
    assert torch.equal(network(condition), network(garbled))


def test_starts_blind_to_the_condition():
    network = ConditionEmbedding(8)
    assert torch.equal(network(some(3)), network(Condition.unknown(3)))


def test_a_field_that_training_never_knows_leaves_no_trace():
    """Trained with AdamW on conditions whose field 3 is always unknown, then asked for field 3."""
    torch.manual_seed(0)
    network = ConditionEmbedding(8)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    mask = torch.ones(1, 17, dtype=torch.bool)
    mask[:, 3] = False
    for step in range(20):
        optimizer.zero_grad()
        (network(some(8, step).keep(mask)) - 1.0).square().mean().backward()
        optimizer.step()
    null = Condition.unknown(1)
    asked = Condition.of(null.value.clone(), null.known.clone())
    asked.value[0, 3], asked.known[0, 3] = 1.0, True
    assert torch.equal(network(asked), network(null))
    asked.value[0, 4], asked.known[0, 4] = 1.0, True
    assert not torch.allclose(network(asked), network(null), atol=1e-3)
