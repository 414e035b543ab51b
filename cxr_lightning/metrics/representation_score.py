"""Reconstructed representation score (RRS): do original and reconstruction mean the same?

RRS = mean over pairs of 1 - cos(e(x), e(x_rec)), e the L2-normalised embedding by the MoCo encoder,
in fp32, after 8-bit rounding of both images. The source of the score gives no formula; 1 - cos is
bounded, independent of the embedding's dimension and scale, and needs no reference set.
"""

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Shaped
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from cxr_lightning.data.transforms import to_image, to_model
from cxr_lightning.networks.encoder import Encoder
from cxr_lightning.networks.frozen import Frozen


def embedding_distance(a: Float[Tensor, "b d"], b: Float[Tensor, "b d"]) -> Float32[Tensor, " b"]:
    """1 - cos of two embeddings, in [0, 2], as half the squared distance of the unit vectors.

    fp32 outside autocast: near 1 a cosine in bf16 moves in steps of .0039.
    """
    with torch.autocast(a.device.type, enabled=False):
        one, other = F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)
        return 0.5 * (one - other).square().sum(1)


def embedding_l1(a: Float[Tensor, "b d"], b: Float[Tensor, "b d"]) -> Float32[Tensor, " b"]:
    """Mean absolute difference a dimension of the unit vectors, a second reading of the score."""
    with torch.autocast(a.device.type, enabled=False):
        one, other = F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)
        return (one - other).abs().mean(1)


@torch.no_grad()
def embed(encoder: Encoder, image: Float[Tensor, "b 1 h w"]) -> Float32[Tensor, "b d"]:
    """Embedding of model-form images after 8-bit rounding, in fp32 also under autocast."""
    with torch.autocast(image.device.type, enabled=False):
        embedding: Tensor = encoder(to_model(to_image(image)))
    return embedding.float()


def pair_distances(
    encoder: Encoder,
    original: Float[Tensor, "b 1 h w"],
    reconstruction: Float[Tensor, "b 1 h w"],
) -> Float32[Tensor, " b"]:
    """1 - cos of the embeddings of each pair of model-form images; the encoder in eval mode."""
    return embedding_distance(embed(encoder, original), embed(encoder, reconstruction))


def resize_round_trip(image: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    """The image enlarged to twice its size and reduced again, rounded to 8 bit each time.

    What handling of the pixels alone does to an image: the floor of the score.
    """
    height, width = image.shape[-2:]
    for size in ((2 * height, 2 * width), (height, width)):
        image = F.interpolate(
            image, size=size, mode="bilinear", antialias=True, align_corners=False
        )
        image = to_model(to_image(image))
    return image


def other_patients(
    patients: Shaped[np.ndarray, " n"],
    pool: Shaped[np.ndarray, " m"],
    generator: np.random.Generator,
) -> Int[np.ndarray, " n"] | None:
    """A random row of the pool with another patient, for each patient; None where there is none."""
    choices = [np.flatnonzero(pool != patient) for patient in patients]
    if any(len(choice) == 0 for choice in choices):
        return None
    return np.array([generator.choice(choice) for choice in choices], dtype=np.int64)


class ReconstructedRepresentationScore(Metric):
    """RRS over pairs of model-form images; 0 = same embedding, 1 = unrelated, 2 = opposite."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, encoder: Encoder, **kwargs: Any) -> None:
        """Keeps a frozen copy of the encoder; `kwargs` as in `torchmetrics.Metric`."""
        super().__init__(**kwargs)
        self.encoder = Frozen(deepcopy(encoder))
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self, original: Float[Tensor, "b 1 h w"], reconstruction: Float[Tensor, "b 1 h w"]
    ) -> None:
        """Adds pairs of an original and its reconstruction."""
        distances = pair_distances(self.encoder.network, original, reconstruction)
        self.total += distances.double().sum()
        self.count += len(distances)

    def compute(self) -> Float32[Tensor, ""]:
        """Mean of 1 - cos over all pairs."""
        return (self.total / self.count).float()
