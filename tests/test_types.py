"""Condition: unknown is a value of its own."""

import torch

from cxr_lightning.types import FIELDS, OBSERVATIONS, Condition


def full(count: int) -> Condition:
    value = torch.rand(count, len(FIELDS), generator=torch.Generator().manual_seed(0))
    return Condition(value, torch.ones(count, len(FIELDS), dtype=torch.bool))


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
