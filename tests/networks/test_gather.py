"""Rows of all processes: alone, and with two gloo processes."""

from pathlib import Path

import pytest
import torch
from processes import in_group

from cxr_lightning.networks.gather import all_ranks, all_rows, first_rank


def test_alone_rows_stay_as_they_are() -> None:
    rows = torch.arange(6.0).reshape(3, 2)
    assert all_ranks(rows) is rows
    assert torch.equal(all_rows([rows[:1], rows[1:]]), rows)
    assert first_rank(rows) is rows


@pytest.mark.slow
def test_two_processes_hold_the_same_rows_in_rank_order(tmp_path: Path) -> None:
    def run(rank: int) -> None:
        mine = 10.0 * rank + torch.arange(2.0)[:, None]
        uneven = [mine[:1]] * (1 + 2 * rank)
        found = all_ranks(mine), all_rows(uneven), first_rank(mine.clone())
        torch.save(found, tmp_path / f"{rank}.pt")

    in_group(run)
    for rank in (0, 1):
        even, uneven, first = torch.load(tmp_path / f"{rank}.pt")
        assert even.flatten().tolist() == [0.0, 1.0, 10.0, 11.0]
        assert uneven.flatten().tolist() == [0.0, 10.0, 10.0, 10.0]
        assert first.flatten().tolist() == [0.0, 1.0]
