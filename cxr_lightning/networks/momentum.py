"""Momentum networks: slow copies of a network that follow it by an exponential average."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cxr_lightning.networks.gather import all_ranks, first_rank, is_distributed

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Pairs = Sequence[tuple[nn.Module, nn.Module]]
"""(online, average) pairs."""


def momentum_copy(module: ModuleT) -> ModuleT:
    """An equal copy in eval mode whose parameters take no gradient."""
    return deepcopy(module).requires_grad_(False).eval()


@torch.no_grad()
def momentum_update(pairs: Pairs, momentum: float) -> None:
    """Moves the parameters of each average towards its online network.

    average <- momentum * average + (1 - momentum) * online, eq. 2 of He et al. 2020 (MoCo, arXiv
    1911.05722). Buffers stay as they are: see `momentum_update_buffers`.

    Args:
        pairs: (online, average) networks of the same architecture.
        momentum: From 0 (copy) to 1 (no change).

    Raises:
        ValueError: If the parameters of a pair differ in number, name or shape.
    """
    for online, average in pairs:
        source, target = dict(online.named_parameters()), dict(average.named_parameters())
        _check_alike(source, target)
        if target:
            torch._foreach_lerp_(
                [p.data for p in target.values()],
                [p.data for p in source.values()],
                1.0 - momentum,
            )


@torch.no_grad()
def momentum_update_buffers(pairs: Pairs, momentum: float) -> None:
    """Moves the batch-norm statistics of each average towards its online network.

    For averages that run in eval mode (EMAN, Cai et al. 2021, arXiv 2101.08482). Floating-point
    buffers are averaged, the others (counters) copied.

    Args:
        pairs: (online, average) networks of the same architecture.
        momentum: From 0 (copy) to 1 (no change).

    Raises:
        ValueError: If the buffers of a pair differ in number, name or shape.
    """
    for online, average in pairs:
        source, target = dict(online.named_buffers()), dict(average.named_buffers())
        _check_alike(source, target)
        for name, buffer in target.items():
            if buffer.is_floating_point():
                buffer.lerp_(source[name], 1.0 - momentum)
            else:
                buffer.copy_(source[name])


@torch.no_grad()
def grouped_forward(
    network: nn.Module, image: Float[Tensor, "b 1 h w"], group_size: int
) -> Float[Tensor, "b d"]:
    """Runs a network on images permuted over all ranks, group by group, and undoes the permutation.

    In train mode each group has batch statistics of its own, and the images behind them are not
    those of the queries' batch, so they do not tell a query which key is its own: MoCo's shuffled
    batch norm (He et al. 2020, section 3.3). On one process the groups alone do it: there the
    permutation would change nothing.

    Args:
        network: Embeds the images; no gradient is taken.
        image: The batch of this rank, as large on every rank.
        group_size: Least number of images in a group; a batch below twice that is one group.
    """
    everything = all_ranks(image)
    order = first_rank(torch.randperm(len(everything)).to(image.device))
    rank = torch.distributed.get_rank() if is_distributed() else 0
    here = slice(rank * len(image), (rank + 1) * len(image))
    groups = everything[order[here]].tensor_split(max(len(image) // group_size, 1))
    embedded = all_ranks(torch.cat([network(group) for group in groups]))
    return embedded[order.argsort()[here]]


def _check_alike(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless both hold the same names and shapes in the same order."""
    described = [[(name, tuple(t.shape)) for name, t in d.items()] for d in (source, target)]
    if described[0] != described[1]:
        odd = sorted(set(described[0]) ^ set(described[1]))[:3]
        raise ValueError(f"an online network and its average differ: {odd or 'order'}")
