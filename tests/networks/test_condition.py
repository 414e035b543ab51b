"""Embeddings of a condition and of a latent code."""

import itertools

import pytest
import torch

from cxr_lightning.networks.condition import ConditionEmbedding, LatentEmbedding
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


def with_text(condition: Condition, columns: int = 5) -> Condition:
    text = torch.randn(len(condition.value), columns, generator=torch.Generator().manual_seed(1))
    return condition._replace(text=text / text.norm(dim=1, keepdim=True))


def test_a_text_that_is_not_there_is_a_value_of_its_own(randomize):
    network = randomize(ConditionEmbedding(16, text_dim=5))
    stated = with_text(some(4))
    none = stated.keep_text(torch.zeros(4, 1, dtype=torch.bool))
    assert torch.equal(network(none), network(some(4)))  # zeros are as good as no columns
    assert not torch.allclose(network(stated), network(none), atol=1e-3)
    half = network(stated._replace(text=0.5 * stated.text))
    assert not torch.allclose(half, (network(stated) + network(none)) / 2, atol=1e-3)


def test_starts_blind_to_the_text_and_refuses_one_of_another_encoder():
    network = ConditionEmbedding(8, text_dim=5)
    assert torch.equal(network(with_text(some(3))), network(some(3)))
    with pytest.raises(ValueError, match="6 columns, and 5"):
        network(with_text(some(3), 6))
    blind = ConditionEmbedding(8)
    assert torch.equal(blind(with_text(some(3))), blind(some(3)))


def test_a_latent_code_that_may_not_be_seen_is_not_seen(randomize):
    network = randomize(LatentEmbedding(3, 8))
    z = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    seen, hidden = torch.tensor([True, True]), torch.tensor([True, False])
    assert torch.equal(network(z, hidden)[0], network(z, seen)[0])
    assert torch.equal(network(z, hidden)[1], network(2 * z, hidden)[1])
    assert not torch.allclose(network(0 * z, hidden)[0], network(z, hidden)[1], atol=1e-3)
