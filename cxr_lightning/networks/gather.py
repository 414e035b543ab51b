"""Rows of all processes of a distributed run."""

from collections.abc import Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor


def is_distributed() -> bool:
    """Whether this is one of several processes that talk to each other."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def all_ranks(rows: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "g ..."]:
    """The rows of all ranks in rank order, without gradient; on one process the rows themselves.

    Args:
        rows: As many on every rank.
    """
    if not is_distributed():
        return rows
    parts = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def all_rows(parts: Sequence[Shaped[Tensor, "_ ..."]]) -> Shaped[Tensor, "g ..."]:
    """The rows of all parts and ranks, in rank order.

    Args:
        parts: At least one on every rank; any numbers of rows.
    """
    rows = torch.cat(list(parts))
    if not is_distributed():
        return rows
    from torchmetrics.utilities.distributed import gather_all_tensors  # loads torchvision

    return torch.cat(gather_all_tensors(rows))


def first_rank(value: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The first rank's value on every rank, in place.

    Args:
        value: Of one shape on all ranks.
    """
    if is_distributed():
        torch.distributed.broadcast(value, 0)
    return value
