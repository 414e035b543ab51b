"""Which rows make up which batch: stateless, sharded, resumable."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from cxr_lightning.types import Batch


class BatchSampler(DistributedSampler[list[int]]):
    """Lists of row numbers, one list a batch, for this rank.

    The order of an epoch is a permutation that depends on (seed, epoch) alone; with weights, a
    systematic resampling of as many rows. Each global batch is cut into equal consecutive parts,
    one a rank, so the global batches are the same whatever the number of ranks. (Lightning leaves a
    `DistributedSampler` as it is.)

    Args:
        rows: Number of rows.
        batch_size: Global batch size.
        shuffle: Whether to permute; without it all rows come in order, the last batch shorter, or
            longer where it would leave a process without a row.
        seed: Seed of the permutations.
        weights: How often each row should be seen in an epoch, relative to the others; each is seen
            the whole number of times below or above its share.
        rank: This process.
        world_size: Number of processes.

    Attributes:
        epoch: The epoch that is or will be iterated.
        position: Batches of that epoch that were handed out.
        start: Where the next iteration begins: 0 except after a resume within an epoch.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        weights: Float[np.ndarray, " n"] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        dataset: Any = range(rows)
        super().__init__(dataset, world_size, rank, shuffle=shuffle, seed=seed, drop_last=shuffle)
        self.rows = rows
        self.batch_size = batch_size
        self.weights = weights
        self.position = 0
        self.start = 0

    def __len__(self) -> int:
        whole, rest = divmod(self.rows, self.batch_size)
        return whole if self.shuffle or (rest < self.num_replicas and whole) else whole + 1

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()
        first, self.start = self.start, 0
        for number in range(first if first < len(self) else 0, len(self)):
            self.position = number + 1
            last = number + 1 == len(self) and not self.shuffle
            end = self.rows if last else (number + 1) * self.batch_size
            batch = order[number * self.batch_size : end]
            yield np.array_split(batch, self.num_replicas)[self.rank].tolist()

    def _order(self) -> Int[np.ndarray, " n"]:
        """The rows of the epoch."""
        order = np.arange(self.rows)
        if self.shuffle:
            random = np.random.default_rng((self.seed, self.epoch))
            if self.weights is not None:
                order = resample(self.weights, random.uniform())
            random.shuffle(order)
        return order

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch, or stays where it is within it."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.position = 0
            self.start = 0


def resample(weights: Float[np.ndarray, " n"], offset: float) -> Int[np.ndarray, " n"]:
    """Systematic resampling (Kitagawa 1996): n rows of n, row i about n w_i / sum(w) times.

    Args:
        weights: w, not negative, not all 0.
        offset: A uniform random number in [0, 1).
    """
    count = len(weights)
    edges = np.cumsum(weights / weights.sum()) * count
    edges[-1] = count  # rounding must not lose the last point
    return np.searchsorted(edges, np.arange(count) + offset, side="right")


class Batches:
    """A loader's batches as a plain iterable.

    For predict: Lightning would build a data loader anew there, with a sampler of its own.
    """

    def __init__(self, loader: "ResumableLoader") -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Batch | Tensor]:
        return iter(self.loader)

    def __len__(self) -> int:
        return len(self.loader)


class ResumableLoader(DataLoader[Batch | Tensor]):
    """A loader whose place in the epoch goes into the checkpoint.

    It reads in the main process (`num_workers` 0), so the sampler's position is exact. The
    position counts global batches: the number of processes may change between runs.
    """

    def __init__(self, dataset: Dataset[Any], sampler: BatchSampler, pin_memory: bool) -> None:
        super().__init__(dataset, batch_size=None, sampler=sampler, pin_memory=pin_memory)
        self.batches = sampler

    def state_dict(self) -> dict[str, int]:
        """Epoch and batches handed out."""
        return {"epoch": self.batches.epoch, "position": self.batches.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on behind the batches that were handed out."""
        self.batches.epoch = state["epoch"]
        self.batches.position = self.batches.start = state["position"]
