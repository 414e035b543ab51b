"""Reconstructed representation score (RRS): do original and reconstruction mean the same?

RRS = mean over pairs of 1 - cos(e(x), e(x_rec)), e the L2-normalised embedding by the MoCo encoder,
in fp32, after 8-bit rounding of both images.

Why 1 - cos: the source of the score gives no formula, only values of 0.03 to 0.045. 1 - cos is
bounded, independent of the embedding's dimension and scale, half the squared distance of the unit
vectors, and needs no reference set; it reaches such values at angles of 14 to 17 degrees for any
dimension, where the squared error a dimension of 128 could not (two opposite vectors have 0.031).

Why the number alone means nothing: it depends on the encoder. One that maps all radiographs to
nearly the same point gives 0.03 to any two of them. So it is read on a scale, by the same encoder
from the same originals (`MEANINGS`): from handling of the pixels to another patient. The
ratio to another patient of the same condition (`nrrs`) is what compares between encoders.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Shaped
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from cxr_lightning.data.augment import DRAWS, PRESETS, two_views
from cxr_lightning.data.transforms import to_image, to_model
from cxr_lightning.diffusion.random import image_uniform
from cxr_lightning.losses.representation import embedding_distance
from cxr_lightning.networks.encoder import Encoder
from cxr_lightning.networks.frozen import Frozen

MEANINGS = {
    "rrs": "original against its reconstruction by autoencoder and denoiser",
    "rrs_floor_pixel": "original against its own resize round trip in 8 bit",
    "rrs_floor_augment": "two augmented views of the original, as stage 3 makes them by default",
    "rrs_vae": "original against its reconstruction by the autoencoder alone",
    "rrs_ceil_same": "original against another patient of the same condition",
    "rrs_ceil_random": "original against any other patient",
    "nrrs": "rrs / rrs_ceil_same: 1 = no closer than another patient of the condition",
}
"""The score, its calibration from the floors to the ceilings, and the ratio."""

COMPARISONS = tuple(name for name in MEANINGS if name != "nrrs")

ImagePair = tuple[Float[Tensor, "b 1 h w"], Float[Tensor, "b 1 h w"]]


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


def floor_pairs(
    original: Float[Tensor, "b 1 h w"], index: Int[Tensor, " b"], seed: int = 0
) -> dict[str, ImagePair]:
    """The pairs of the two floors of the score.

    Args:
        original: Model form.
        index: Number of each image: its two views depend on (seed, number) alone.
        seed: Of the views.
    """
    uniform = image_uniform(seed, index, 2, DRAWS)
    return {
        "rrs_floor_pixel": (original, resize_round_trip(original)),
        "rrs_floor_augment": two_views(original, uniform, PRESETS["cxr"]),
    }


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
    kinds: Shaped[np.ndarray, " n"] | None = None,
    pool_kinds: Shaped[np.ndarray, " m"] | None = None,
) -> Int[np.ndarray, " n"] | None:
    """A random row of the pool with another patient, for each patient; None where there is none.

    Args:
        patients: Patient of each image that wants another.
        pool: Patient of each image to choose from.
        generator: Source of the choice.
        kinds: What the other image must share with each image, such as its view; default: nothing.
        pool_kinds: The same of the pool.
    """
    choices = []
    for i, patient in enumerate(patients):
        fits = pool != patient
        if kinds is not None:
            fits &= pool_kinds == kinds[i]
        choices.append(np.flatnonzero(fits))
    if any(len(choice) == 0 for choice in choices):
        return None
    return np.array([generator.choice(choice) for choice in choices], dtype=np.int64)


def score_ratios(scores: Mapping[str, Tensor], groups: Sequence[str]) -> dict[str, Tensor]:
    """`nrrs_<group>` = rrs / rrs_ceil_same of each group that has both, the ceiling above 0."""
    found = {}
    for group in groups:
        rrs, same = scores.get(f"rrs_{group}"), scores.get(f"rrs_ceil_same_{group}")
        if rrs is not None and same is not None and bool(same > 0):
            found[f"nrrs_{group}"] = rrs / same
    return found


class ReconstructedRepresentationScore(Metric):
    """RRS over pairs of model-form images, with its calibration, overall and by health condition.

    0 = same embedding, 1 = unrelated, 2 = opposite. States are sums in float64, so any number of
    processes gives the same value.

    Args:
        encoder: A frozen copy of it is kept.
        groups: Names of the groups, such as health conditions, that count by themselves too.
        kwargs: As in `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, encoder: Encoder, groups: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.encoder = Frozen(deepcopy(encoder))
        self.groups = tuple(groups)
        size = (len(COMPARISONS), 1 + len(self.groups))
        self.add_state("total", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        original: Float[Tensor, "b 1 h w"],
        other: Float[Tensor, "b 1 h w"],
        comparison: str = "rrs",
        member: Bool[Tensor, "b g"] | None = None,
    ) -> None:
        """Adds pairs of an original and what it is compared with.

        Args:
            original: Model form.
            other: Its reconstruction, or what `comparison` says.
            comparison: One of `COMPARISONS`.
            member: Which groups each original belongs to; none by default.
        """
        row = COMPARISONS.index(comparison)
        distances = pair_distances(self.encoder.network, original, other).double()
        counted = torch.zeros(len(original), 1 + len(self.groups), dtype=torch.bool)
        counted = counted.to(distances.device)
        counted[:, 0] = True
        if member is not None:
            counted[:, 1:] = member
        self.total[row] += distances @ counted.double()
        self.count[row] += counted.sum(0)

    def compute(self) -> dict[str, Tensor]:
        """Mean of 1 - cos by comparison: `rrs`, and `rrs_<group>`; and the ratio `nrrs_<group>`.

        Of what was added only. The ceiling of the same condition exists by group alone.
        """
        found = {}
        for row, name in enumerate(COMPARISONS):
            for column, group in enumerate(("", *self.groups)):
                whole_of_same = name == "rrs_ceil_same" and not group
                if self.count[row, column] > 0 and not whole_of_same:
                    mean = self.total[row, column] / self.count[row, column]
                    found[f"{name}_{group}" if group else name] = mean.float()
        return found | score_ratios(found, self.groups)
