"""How much images of different patients differ: in pixels (MS-SSIM) and in features."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int, UInt8
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

PIXEL_BLOCK = 2**21
"""Pixels of one side that are compared at a time."""

PAIR_BLOCK = 4096
BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the scales, finest first (Wang et al. 2003, section 3.2)."""

SMALLEST = (11, 22, 44, 99, 176)
"""Least size in pixels for each number of scales: the window of 11 pixels fits into the image at
the coarsest scale (torchmetrics asks for 99 pixels for the fourth, where 88 would do)."""

MIN_SIZE = SMALLEST[0]


def different_pairs(
    groups: Int[np.ndarray, " n"], count: int, generator: np.random.Generator
) -> Int[np.ndarray, "2 p"]:
    """Random pairs of images of different groups, each pair at most once.

    Args:
        groups: Group of each image, such as its patient.
        count: Pairs to draw; fewer come back if there are not so many.
        generator: Source of the draw.

    Returns:
        Rows of the first and of the second images, in random order.
    """
    order = np.argsort(groups, kind="stable")
    ends = np.searchsorted(groups[order], groups[order], side="right")
    # In the order of groups image i pairs with all images after its group: pairs are numbered by i.
    numbered = np.cumsum(len(groups) - ends)
    total = int(numbered[-1]) if len(groups) else 0
    pair = generator.choice(total, min(count, total), replace=False) if total else np.arange(0)
    first = np.searchsorted(numbered, pair, side="right")
    second = len(groups) - (numbered[first] - pair)
    return np.stack([order[first], order[second]])


def pair_distances(
    features: Float32[Tensor, "n f"], pairs: Int[np.ndarray, "2 p"]
) -> Float64[Tensor, " p"]:
    """1 - cosine of the features of each pair, in [0, 2]; a zero vector is orthogonal to all.

    Args:
        features: Features of the images.
        pairs: Rows of the first and of the second images.
    """
    one, other = torch.from_numpy(pairs).to(features.device)
    blocks = zip(one.split(PAIR_BLOCK), other.split(PAIR_BLOCK), strict=True)
    return torch.cat(
        [1.0 - F.cosine_similarity(features[a].double(), features[b].double()) for a, b in blocks]
    )


def ms_ssim(
    one: UInt8[Tensor, "p 1 h w"], other: UInt8[Tensor, "p 1 h w"]
) -> Float32[Tensor, " p"]:
    """Multi-scale structural similarity of each pair of raw images, in [0, 1]; 1 = equal.

    Wang et al. 2003 (Asilomar), eq. 7, by torchmetrics: images in [0, 1], Gaussian window of 11
    pixels and sigma 1.5, negative contrast terms cut to 0. Unlike in the paper, the coarsest scale
    takes in windows that reach over the border, filled by reflection. With fewer than 5 scales the
    weights of those kept are divided by their sum.

    Raises:
        ValueError: If the images are smaller than 11 pixels.
    """
    # torchmetrics takes long to import.
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    kept = BETAS[: scales(min(one.shape[-2:]))]
    betas = tuple(beta / sum(kept) for beta in kept)
    block = max(PIXEL_BLOCK // one[0].numel(), 1) if len(one) else 1
    parts = [
        multiscale_structural_similarity_index_measure(
            a.float() / 255.0, b.float() / 255.0, data_range=1.0, betas=betas, reduction="none"
        )
        for a, b in zip(one.split(block), other.split(block), strict=True)
    ]
    return torch.cat(parts)


def scales(size: int) -> int:
    """Scales that MS-SSIM of images of this size has, at most 5.

    Raises:
        ValueError: If the size in pixels is below 11.
    """
    if size < MIN_SIZE:
        raise ValueError(f"`size` must be at least {MIN_SIZE} pixels, not {size}.")
    return sum(size >= smallest for smallest in SMALLEST)


class PairwiseDiversity(Metric):
    """Mean 1 - cos over all pairs of images of a group, in [0, 2]; 0 = all alike.

    For n unit vectors e_i with sum s the mean cosine over pairs is (|s|^2 - n) / (n (n - 1)), so no
    pair is formed, and sums over processes suffice.

    Args:
        dim: Dimension of the embeddings.
        groups: Names of the groups, such as health conditions.
        kwargs: As in `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, dim: int, groups: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.groups = tuple(groups)
        zeros = torch.zeros(len(self.groups), dim, dtype=torch.float64)
        self.add_state("total", zeros, dist_reduce_fx="sum")
        self.add_state("count", torch.zeros_like(zeros[:, 0]), dist_reduce_fx="sum")

    def update(self, embedding: Float32[Tensor, "b d"], member: Bool[Tensor, "b g"]) -> None:
        """Adds images.

        Args:
            embedding: Their embeddings, any length.
            member: Which groups each belongs to.
        """
        unit = F.normalize(embedding.double(), dim=1)
        counted = member.double()
        self.total += counted.T @ unit
        self.count += counted.sum(0)

    def compute(self) -> dict[str, Tensor]:
        """The diversity of each group of two images or more."""
        found = {}
        for group, total, n in zip(self.groups, self.total, self.count, strict=True):
            if n >= 2:
                cosine = (total.square().sum() - n) / (n * (n - 1))
                found[group] = (1.0 - cosine).float()
        return found
