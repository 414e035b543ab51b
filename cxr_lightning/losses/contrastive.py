"""Contrastive loss of MoCo: InfoNCE over a queue of keys."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def info_nce(
    query: Float[Tensor, "b d"],
    key: Float[Tensor, "b d"],
    queue: Float[Tensor, "n d"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Mean InfoNCE loss, eq. 1 of He et al. 2020 (MoCo, arXiv 1911.05722).

    -log(exp(q k / T) / (exp(q k / T) + sum over the queue of exp(q k_j / T))), in float32. Keys and
    queue take no gradient.

    Args:
        query: Unit-norm embeddings of one view.
        key: Unit-norm embeddings of the other view of the same images.
        queue: Unit-norm keys of other images. They are copied, so that the queue may move on
            before the backward pass.
        temperature: T; 0.2 in MoCo v2 (Chen et al. 2020, arXiv 2003.04297).
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key, negatives = query.float(), key.detach().float(), queue.detach().float().clone()
        positive = (query * key).sum(dim=1, keepdim=True)
        logits = torch.cat([positive, query @ negatives.T], dim=1) / temperature
        return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))


def in_batch_info_nce(
    query: Float[Tensor, "b d"], key: Float[Tensor, "b d"], temperature: float
) -> Float[Tensor, ""]:
    """InfoNCE with the keys of the other images as negatives, which needs no queue."""
    logits = query.float() @ key.detach().float().T / temperature
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


class Queue(nn.Module):
    """First-in-first-out queue of the newest keys, with the categories of their images.

    It starts with random unit vectors in no category, as in MoCo. All of it is in the state dict.
    Every rank enqueues the keys of all ranks, so that all ranks hold the same queue.

    Args:
        size: Number of keys held.
        dim: Dimension of a key.
        categories: Number of categories.

    Attributes:
        keys: Float32 (size, dim), unit norm.
        weights: Float32 (size, categories), share of each key's image in each category.
        pointer: Where the next key goes.
        filled: Number of places that hold a key of an image.
    """

    keys: Tensor
    weights: Tensor
    pointer: Tensor
    filled: Tensor

    def __init__(self, size: int, dim: int, categories: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"`size` must be at least 1, got {size}")
        generator = torch.Generator().manual_seed(0)  # the same on all ranks
        keys = F.normalize(torch.randn(size, dim, generator=generator), dim=1)
        self.register_buffer("keys", keys)
        self.register_buffer("weights", torch.zeros(size, categories))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.keys)

    @torch.no_grad()
    def enqueue(self, keys: Float[Tensor, "b d"], weights: Float[Tensor, "b k"]) -> None:
        """Replaces the oldest keys by those of all ranks' batches, the newest last.

        A global batch larger than the queue leaves its last keys.

        Args:
            keys: Unit-norm keys of this rank; as many on every rank.
            weights: Share of each image in each category.
        """
        keys = all_ranks(keys.detach().float())[-len(self) :]
        weights = all_ranks(weights.float())[-len(self) :]
        places = (self.pointer + torch.arange(len(keys), device=keys.device)) % len(self)
        self.keys[places] = keys
        self.weights[places] = weights
        self.pointer.copy_((self.pointer + len(keys)) % len(self))
        self.filled.copy_((self.filled + len(keys)).clamp(max=len(self)))


def all_ranks(rows: Float[Tensor, "b n"]) -> Float[Tensor, "g n"]:
    """The rows of all ranks in rank order, without gradient; on one process the rows themselves."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows
    parts = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
