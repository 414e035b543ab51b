"""Condition: unknown is a value of its own."""

import pytest
import torch

from cxr_lightning.types import FIELDS, OBSERVATIONS, Condition


def full(count: int) -> Condition:
    value = torch.rand(count, len(FIELDS), generator=torch.Generator().manual_seed(0))
    return Condition.of(value, torch.ones(count, len(FIELDS), dtype=torch.bool))


def test_fields_are_the_14_observations_of_chexpert_then_view_sex_age():
    assert len(OBSERVATIONS) == 14
    assert (*OBSERVATIONS, "PA", "Male", "Age") == FIELDS


def test_observations_are_the_first_14_columns():
    condition = full(3)
    assert torch.equal(condition.observations, condition.value[:, :14])
    assert torch.equal(condition.observations_known, condition.known[:, :14])


def test_unknown_knows_nothing_and_is_zero():
    null = Condition.unknown(5)
    assert null.value.shape == null.known.shape == (5, 17)
    assert not null.value.any()
    assert not null.known.any()


def test_keep_by_field_clears_value_and_mask_together():
    condition = full(4)
    mask = torch.rand(4, 17, generator=torch.Generator().manual_seed(1)) < 0.5
    kept = condition.keep(mask)
    assert torch.equal(kept.known, mask)
    assert torch.equal(kept.value, condition.value * mask)


def test_keep_broadcasts_a_column_over_the_fields():
    kept = full(2).keep(torch.tensor([[True], [False]]))
    assert kept.known.tolist() == [[True] * 17, [False] * 17]
    assert not kept.value[1].any()


def test_keep_never_makes_an_unknown_field_known():
    kept = Condition.unknown(2).keep(torch.ones(2, 17, dtype=torch.bool))
    assert not kept.known.any()


def test_rows_takes_numbers_masks_and_slices():
    condition = full(4)
    numbers = condition.rows(torch.tensor([1, 3]))
    mask = condition.rows(torch.tensor([False, True, False, True]))
    assert torch.equal(numbers.value, condition.value[[1, 3]])
    assert torch.equal(mask.value, numbers.value)
    assert torch.equal(condition.rows(slice(1, 4, 2)).value, numbers.value)


def test_uncertain_is_a_state_of_its_own():
    uncertain = torch.zeros(2, 17, dtype=torch.bool)
    uncertain[1, 4] = True
    condition = Condition.unknown(2)._replace(uncertain=uncertain)
    assert condition.rows(torch.tensor([1])).uncertain[0, 4]
    joined = Condition.cat([condition, condition.rows(torch.tensor([1]))])
    assert joined.uncertain[:, 4].tolist() == [False, True, True]
    assert not condition.keep(torch.zeros(2, 1, dtype=torch.bool)).uncertain.any()
    assert condition.keep(torch.ones(2, 1, dtype=torch.bool)).uncertain.equal(uncertain)


def test_features_written_out():
    condition = full(1).keep(torch.arange(17)[None] != 2)
    condition.uncertain[0, 2] = True
    features = condition.features()[0].reshape(3, 17)
    for field in range(17):
        value = 2.0 * condition.value[0, field] - 1.0
        expected = [0.0, 0.0, 1.0] if field == 2 else [value, 1.0, 0.0]
        assert torch.allclose(features[:, field], torch.tensor(expected))


def test_to_keeps_the_values():
    condition = full(2)
    for part, moved in zip(condition, condition.to("cpu"), strict=True):
        assert torch.equal(part, moved)


def test_a_text_goes_with_its_image() -> None:
    text = torch.eye(3)
    condition = Condition.unknown(3)._replace(text=text)
    assert torch.equal(condition.rows(torch.tensor([2, 0])).text, text[[2, 0]])
    assert torch.equal(Condition.cat([condition, condition]).text, torch.cat([text, text]))
    dropped = condition.keep_text(torch.tensor([[True], [False], [True]]))
    assert dropped.text.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    nothing = condition.keep(torch.zeros(1, 1, dtype=torch.bool))
    assert torch.equal(nothing.text, text)  # fields and text are dropped apart


def test_features_of_texts() -> None:
    condition = Condition.unknown(2)._replace(text=torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    expected = torch.tensor([[2**0.5 * 0.6, 2**0.5 * 0.8, 1.0], [0.0, 0.0, 0.0]])
    assert torch.allclose(condition.text_features(2), expected)
    assert torch.equal(Condition.unknown(2).text_features(2), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="2 columns, and 3"):
        condition.text_features(3)
