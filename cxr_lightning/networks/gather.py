"""Rows of all processes of a distributed run."""

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
