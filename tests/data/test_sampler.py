"""Which rows make up which batch."""

from collections.abc import Iterable
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from cxr_lightning.data.sampler import BatchSampler, ResumableLoader, resample


def sampler(rows: int = 22, batch_size: int = 4, **changes) -> BatchSampler:
    return BatchSampler(rows, batch_size, **{"shuffle": True, "seed": 0, **changes})


def flat(batches: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(batches))


def epochs(s: BatchSampler, count: int) -> list[list[list[int]]]:
    result = []
    for epoch in range(count):
        s.set_epoch(epoch)
        result.append(list(s))
    return result


def test_an_epoch_is_whole_batches_of_different_rows():
    s = sampler()
    batches = list(s)
    assert len(batches) == len(s) == 5
    rows = flat(batches)
    assert len(set(rows)) == len(rows) == 20
    assert set(rows) <= set(range(22))


def test_order_depends_on_seed_and_epoch_alone():
    first = epochs(sampler(), 3)
    assert epochs(sampler(), 3) == first
    late = sampler()
    late.set_epoch(2)
    assert list(late) == first[2]
    assert first[0] != first[1] != first[2]
    assert epochs(sampler(seed=1), 1)[0] != first[0]


def test_every_row_is_seen_over_a_few_epochs():
    seen = {row for epoch in epochs(sampler(), 6) for batch in epoch for row in batch}
    assert seen == set(range(22))


def test_without_shuffle_all_rows_come_in_order_the_last_batch_short():
    s = sampler(shuffle=False)
    assert flat(s) == list(range(22))
    assert [len(b) for b in s] == [4, 4, 4, 4, 4, 2]
    assert len(s) == 6


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_together_make_the_batches_of_one_process(world, shuffle):
    alone = list(sampler(shuffle=shuffle))
    ranks = [list(sampler(shuffle=shuffle, rank=r, world_size=world)) for r in range(world)]
    if shuffle:
        assert [flat(parts) for parts in zip(*ranks, strict=True)] == alone
        assert {len(part) for rank in ranks for part in rank} == {4 // world}
    else:
        assert flat(flat(parts) for parts in zip(*ranks, strict=True)) == flat(alone)


@pytest.mark.parametrize("rows", [5, 6, 8, 9, 13])
def test_no_rank_gets_an_empty_batch_in_validation(rows):
    """An empty batch has a loss of NaN, and the mean over ranks with it."""
    for world in (2, 4):
        ranks = [
            list(sampler(rows, 4, shuffle=False, rank=r, world_size=world)) for r in range(world)
        ]
        assert all(part for rank in ranks for part in rank)
        assert sorted(flat(flat(rank) for rank in ranks)) == list(range(rows))
        for r in range(world):
            s = sampler(rows, 4, shuffle=False, rank=r, world_size=world)
            assert len(s) == len(ranks[r])


def test_each_pass_of_an_epoch_starts_from_its_beginning():
    s = sampler()
    whole = list(s)
    assert list(s) == whole
    partly = iter(s)
    next(partly)
    assert list(s) == whole


class Numbers(Dataset[list[int]]):
    """Items are the row numbers asked for."""

    def __getitem__(self, rows: list[int]) -> list[int]:
        return rows


def loader(**changes) -> ResumableLoader:
    return ResumableLoader(Numbers(), sampler(**changes), pin_memory=False)


def as_lists(batches) -> list[list[int]]:
    return [torch.as_tensor(b).tolist() for b in batches]


@pytest.mark.parametrize("taken", [0, 1, 3, 5])
def test_a_loader_goes_on_behind_its_saved_place(taken):
    first, whole = loader(), loader()
    for each in (first, whole):
        each.batches.set_epoch(1)
    batches = iter(first)
    for _ in range(taken):
        next(batches)
    second = loader()
    second.load_state_dict(first.state_dict())
    second.batches.set_epoch(1)  # as Lightning does before iterating
    rest = as_lists(second)
    # a finished epoch is begun again, not answered with nothing
    assert rest == as_lists(whole)[taken % 5 :]
    second.batches.set_epoch(2)
    whole.batches.set_epoch(2)
    assert as_lists(second) == as_lists(whole)


def test_place_is_saved_whatever_the_number_of_processes():
    first = loader(rank=0, world_size=2)
    next(iter(first))
    second = loader()
    second.load_state_dict(first.state_dict())
    assert as_lists(second) == as_lists(loader())[1:]


def test_length_is_the_number_of_batches():
    assert len(loader()) == 5
    assert len(loader(shuffle=False)) == 6


@pytest.mark.parametrize("offset", [0.0, 0.3, 0.999999])
def test_resampling_is_each_share_rounded(offset):
    rng = np.random.default_rng(0)
    for weights in (rng.uniform(0, 4, 50), np.ones(7), np.array([0.0, 5.0, 0.0, 1.0])):
        rows = resample(weights, offset)
        assert len(rows) == len(weights)
        share = len(weights) * weights / weights.sum()
        counts = np.bincount(rows, minlength=len(weights))
        assert (counts >= np.floor(share - 1e-9)).all()
        assert (counts <= np.ceil(share + 1e-9)).all()


def test_resampling_has_the_right_mean():
    weights = np.array([0.2, 1.7, 0.4, 1.7])
    offsets = (np.arange(1000) + 0.5) / 1000  # every uniform number once
    counts = sum(np.bincount(resample(weights, u), minlength=4) for u in offsets) / 1000
    np.testing.assert_allclose(counts, weights, atol=1e-3)


def test_weighted_epochs_are_stateless_and_shared_by_ranks():
    weights = np.random.default_rng(0).uniform(0.1, 3, 22)
    alone = epochs(sampler(weights=weights), 3)
    assert epochs(sampler(weights=weights), 3) == alone
    assert alone[0] != alone[1]
    ranks = [epochs(sampler(weights=weights, rank=r, world_size=2), 3) for r in range(2)]
    for epoch, parts in zip(alone, zip(*ranks, strict=True), strict=True):
        assert [flat(pair) for pair in zip(*parts, strict=True)] == epoch
    assert flat(sampler(weights=np.ones(22))) != flat(sampler(shuffle=False))
    assert len(set(flat(sampler(weights=np.ones(22))))) == 20  # equal weights: a permutation
