"""Contrastive loss of MoCo: InfoNCE over a queue of keys."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cxr_lightning.networks.gather import all_ranks

NOBODY = -1
"""Patient code of a place of the queue that holds no key of an image."""


def info_nce_logits(
    query: Float[Tensor, "b d"],
    key: Float[Tensor, "b d"],
    queue: Float[Tensor, "n d"],
    temperature: float,
    excluded: Bool[Tensor, "b n"] | None = None,
) -> Float[Tensor, "b m"]:
    """[q k / T, q k_1 / T, ..., q k_n / T], the positive first, in float32.

    Keys and queue take no gradient.

    Args:
        query: Unit-norm embeddings of one view.
        key: Unit-norm embeddings of the other view of the same images.
        queue: Unit-norm keys of other images. They are copied, so that the queue may move on
            before the backward pass.
        temperature: T; 0.2 in MoCo v2 (Chen et al. 2020, arXiv 2003.04297).
        excluded: Which keys of the queue are no negatives of a query, as those of its own patient
            where positives are images of one patient; their logit is minus infinity.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key, negatives = query.float(), key.detach().float(), queue.detach().float().clone()
        positive = (query * key).sum(dim=1, keepdim=True)
        negative = query @ negatives.T
        if excluded is not None:
            negative = negative.masked_fill(excluded, -torch.inf)
        return torch.cat([positive, negative], dim=1) / temperature


def info_nce(logits: Float[Tensor, "b m"]) -> Float[Tensor, ""]:
    """Mean InfoNCE loss, eq. 1 of He et al. 2020 (MoCo, arXiv 1911.05722).

    -log(exp(q k / T) / (exp(q k / T) + sum over the queue of exp(q k_j / T))): the cross-entropy of
    logits whose first column is the right one.

    Args:
        logits: From `info_nce_logits`.
    """
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))


def instance_accuracy(logits: Float[Tensor, "b m"]) -> Float[Tensor, ""]:
    """Share of queries to which their own key is nearer than any of the queue."""
    return (logits.detach().argmax(dim=1) == 0).float().mean()


def in_batch_info_nce(
    query: Float[Tensor, "b d"], key: Float[Tensor, "b d"], temperature: float
) -> Float[Tensor, ""]:
    """InfoNCE with the keys of the other images as negatives, which needs no queue."""
    logits = query.float() @ key.detach().float().T / temperature
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


class Queue(nn.Module):
    """First-in-first-out queue of the newest keys, with what is known of their images.

    It starts with random unit vectors in no category, as in MoCo. All of it is in the state dict.
    Every rank enqueues the keys of all ranks, so that all ranks hold the same queue.

    Args:
        size: Number of keys held.
        dim: Dimension of a key.
        categories: Number of categories.

    Attributes:
        keys: Float32 (size, dim), unit norm.
        weights: Float32 (size, categories), share of each key's image in each category.
        patients: Int64 (size,), code of each key's patient; -1 where there is no image yet.
        steps: Int64 (size,), optimizer steps that had been made when the key was.
        pointer: Where the next key goes.
        filled: Number of places that hold a key of an image.
    """

    keys: Tensor
    weights: Tensor
    patients: Tensor
    steps: Tensor
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
        self.register_buffer("patients", torch.full((size,), NOBODY))
        self.register_buffer("steps", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.keys)

    @torch.no_grad()
    def enqueue(
        self,
        keys: Float[Tensor, "b d"],
        weights: Float[Tensor, "b k"],
        patients: Int[Tensor, " b"],
        step: int,
    ) -> None:
        """Replaces the oldest keys by those of all ranks' batches, the newest last.

        A global batch larger than the queue leaves its last keys.

        Args:
            keys: Unit-norm keys of this rank; as many on every rank.
            weights: Share of each image in each category.
            patients: Code of each image's patient, not negative.
            step: Optimizer steps made so far.
        """
        keys, weights, patients = (
            all_ranks(rows)[-len(self) :]
            for rows in (keys.detach().float(), weights.float(), patients)
        )
        places = (self.pointer + torch.arange(len(keys), device=keys.device)) % len(self)
        self.keys[places] = keys
        self.weights[places] = weights
        self.patients[places] = patients
        self.steps[places] = step
        self.pointer.copy_((self.pointer + len(keys)) % len(self))
        self.filled.copy_((self.filled + len(keys)).clamp(max=len(self)))

    def age(self, step: int) -> Float[Tensor, ""]:
        """Mean age of the keys of images, in optimizer steps; 0 while there is none.

        Old keys are from an encoder that the key encoder no longer is.

        Args:
            step: Optimizer steps made so far.
        """
        there = self.patients != NOBODY
        ages = (step - self.steps) * there
        return ages.sum() / there.sum().clamp(min=1)
