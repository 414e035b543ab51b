"""Which images the clustering loss of stage 3 draws together, and how strongly."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from cxr_lightning.data.categories import CATEGORIES, Scheme, category_weights, column_weights
from cxr_lightning.data.datamodule import CheXpertDataModule
from cxr_lightning.errors import UserError
from cxr_lightning.losses.clustering import Form
from cxr_lightning.ranges import check_range


@dataclass(frozen=True)
class Clustering:
    """How images of a category are drawn together.

    Attributes:
        scheme: Which categories there are: `binary` (normal, abnormal), `single` (exactly one
            finding), `multi` (the 14 observations), `view`, `sex`; any column of the prepared table
            (each value a category, numbers such as `Age` in five bands); or `kmeans`, clusters of
            the embeddings, found anew each epoch after the warm-up, where there are no labels.
        clusters: Number of clusters of `kmeans`.
        weight: lambda, weight beside InfoNCE; 0 for plain MoCo. Above 0.5 (`prototype`) or 1
            (`pull`) expect collapse.
        form: `prototype` (softmax over the centroids) or `pull` (towards the own centroid alone).
        temperature: T of the `prototype` form.
        momentum: Share of the old centroid in an update.
        warmup_steps: First optimizer steps, with InfoNCE alone.
        ramp_steps: Optimizer steps after these in which the weight rises linearly.
        minority: Whether, of two categories, images of the rarer one alone are drawn together
            (Supervised Minority, Mildenberger et al. 2025, arXiv 2503.17024).
    """

    scheme: str = "multi"
    clusters: int = 32
    weight: float = 0.1
    form: Form = "prototype"
    temperature: float = 0.2
    momentum: float = 0.99
    warmup_steps: int = 2000
    ramp_steps: int = 2000
    minority: bool = False

    def __post_init__(self) -> None:
        check_range("model.clustering.weight", self.weight, 0)
        check_range("model.clustering.clusters", self.clusters, 2)
        check_range("model.clustering.warmup_steps", self.warmup_steps, 0)
        check_range("model.clustering.ramp_steps", self.ramp_steps, 0)
        check_range("model.clustering.momentum", self.momentum, 0, 1, below=True)
        check_range("model.clustering.temperature", self.temperature, 0, above=True)
        if self.scheme in CATEGORIES:
            self.check_minority(len(CATEGORIES[self.scheme]))

    def weight_at(self, step: int) -> float:
        """The weight after `step` optimizer steps."""
        ramp = (step - self.warmup_steps) / self.ramp_steps if self.ramp_steps else 1.0
        return self.weight * min(ramp, 1.0) if step >= self.warmup_steps else 0.0

    def check_minority(self, categories: int) -> None:
        """Raises UserError if the rarer one of two categories is asked for and there are others."""
        if self.minority and categories != 2:
            raise UserError(
                f"model.clustering.minority: it is for two categories, but scheme {self.scheme!r} "
                f"has {categories}; use scheme 'binary' or set it to false."
            )


def image_shares(
    clustering: Clustering, datamodule: CheXpertDataModule
) -> tuple[tuple[str, ...], Float[Tensor, "n k"]]:
    """The categories, and the share of every image of the prepared table in each.

    Those of `kmeans` are all 0, since its clusters are found in training.

    Raises:
        UserError: If the scheme is none, has not the two categories that `minority` needs, or has
            more clusters than there are images.
    """
    if clustering.scheme == "kmeans":
        images = len(datamodule.rows["train"])
        if images < clustering.clusters:
            raise UserError(
                f"model.clustering.clusters: {clustering.clusters} are more than the {images} "
                "training images; use fewer."
            )
        names = tuple(f"cluster {number}" for number in range(clustering.clusters))
        shares = torch.zeros(len(datamodule.prepared.table), len(names))
    elif clustering.scheme in CATEGORIES:
        scheme: Scheme = clustering.scheme
        names, shares = CATEGORIES[scheme], category_weights(datamodule.condition, scheme)
    else:
        table, rows = datamodule.prepared.table, datamodule.rows["train"]
        names, shares = column_weights(table, clustering.scheme, rows, datamodule.condition)
    clustering.check_minority(len(names))
    return names, shares


def check_categories(
    names: Sequence[str], shares: Float[Tensor, "n k"], patients: Int[Tensor, " n"]
) -> None:
    """Looks whether the training images can be clustered by their categories.

    Warns of categories that no image or one patient is in: the first are left out, the second draw
    a patient's images together and nothing else.

    Args:
        names: Of the categories.
        shares: Share of each training image in each.
        patients: Code of each training image's patient.

    Raises:
        UserError: If no image is in any category.
    """
    if not bool((shares > 0).any()):
        raise UserError(
            "model.clustering.scheme: no training image is in any category, since all labels are "
            "blank or uncertain; use scheme kmeans or view, another --data.uncertain or "
            "--data.blank, or --model.clustering.weight 0."
        )
    counts = [len(patients[shares[:, k] > 0].unique()) for k in range(len(names))]
    for count, what in ((0, "no image"), (1, "images of one patient alone")):
        found = [name for name, number in zip(names, counts, strict=True) if number == count]
        if found:
            rank_zero_warn(
                f"model.clustering.scheme: the training split holds {what} of "
                f"{', '.join(found)}; use another scheme or more data if that is not meant."
            )
