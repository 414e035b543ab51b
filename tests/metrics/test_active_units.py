"""Active units against numpy, in batches and over two processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from processes import in_group
from torch import Tensor

from cxr_lightning.metrics.active_units import ActiveUnits, variance_from_sums

PARTS = (slice(0, 371), slice(371, 500))
SPREAD = torch.tensor([1.0, 0.2, 0.11, 0.09, 0.0])  # the bar is at sqrt(0.01) = 0.1
OFFSET = torch.tensor([0.0, 3.0, -7.0, 1000.0, 7.0])


def means() -> Tensor:
    """Posterior means whose columns have the standard deviations of `SPREAD`, exactly."""
    x = torch.randn(500, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (x - x.mean(0)) / x.std(0)
    return (x * SPREAD + OFFSET).float()


def test_counts_the_dimensions_whose_mean_varies() -> None:
    metric = ActiveUnits(5)
    for batch in means().split(64):
        metric.update(batch)
    expected = (np.var(means().double().numpy(), axis=0, ddof=1) > 0.01).sum()
    assert float(metric.compute()) == expected == 3


@pytest.mark.parametrize("count", [2, 3, 500])
def test_variance_equals_numpy_far_from_zero(count: int) -> None:
    x = means()[:count].double()
    found = variance_from_sums(x.sum(0), x.square().sum(0), torch.tensor(count))
    expected = np.var(x.numpy(), axis=0, ddof=1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-9)


def test_batches_do_not_matter_and_reset_forgets() -> None:
    metric = ActiveUnits(5)
    found = []
    for size in (500, 7, 1):
        for batch in means().split(size):
            metric.update(batch)
        found.append(metric.compute())
        metric.reset()
    assert found == [3.0] * 3
    assert int(metric.count) == 0


def test_one_image_uses_no_dimension() -> None:
    metric = ActiveUnits(5)
    metric.update(means()[:1])
    assert float(metric.compute()) == 0.0


def test_sums_are_kept_out_of_checkpoints() -> None:
    assert not ActiveUnits(5).state_dict()


def run_rank(rank: int, folder: Path) -> None:
    """What each of two processes does."""
    metric = ActiveUnits(5)
    metric.update(_half_active()[PARTS[rank]])
    torch.save(metric.compute(), folder / f"{rank}.pt")


def _half_active() -> Tensor:
    """Means of which each process alone sees no variance: it is between their parts."""
    x = torch.zeros(500, 5)
    x[PARTS[1], :2] = 1.0
    return x


@pytest.mark.slow
def test_two_processes_count_over_all_images(tmp_path: Path) -> None:
    in_group(lambda rank: run_rank(rank, tmp_path))
    assert [float(torch.load(tmp_path / f"{rank}.pt")) for rank in (0, 1)] == [2.0, 2.0]
