"""Labels to categories: which of K categories each image of the clustering loss belongs to."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cxr_lightning.data.policies import NO_FINDING, PATHOLOGIES
from cxr_lightning.types import FIELDS, OBSERVATIONS, Condition

Scheme = Literal["binary", "single", "multi", "view", "sex"]

CATEGORIES: dict[Scheme, tuple[str, ...]] = {
    "binary": ("normal", "abnormal"),
    "single": ("No Finding", *(OBSERVATIONS[i] for i in PATHOLOGIES)),
    "multi": OBSERVATIONS,
    "view": ("AP", "PA"),
    "sex": ("female", "male"),
}
"""Names of the categories of each scheme, in column order."""


def category_weights(condition: Condition, scheme: Scheme) -> Float[Tensor, "b k"]:
    """Share of each image in each category.

    - `binary`: No Finding is normal, any of the 12 pathologies abnormal; images that are said to
      be both, or of which neither is known, are in neither.
    - `single`: images with exactly one of No Finding and the 12 pathologies.
    - `multi`: all 14 observations; an image's weight is shared among those it shows. An uncertain
      one counts as the label policy says (`soft`: by its number; `multi_class`: not at all).
    - `view`, `sex`: AP or PA, female or male.

    Args:
        condition: What is known of the images; the label policies were applied before.
        scheme: How images are divided.

    Returns:
        Rows that sum to 1, or to 0 for an image in no category.
    """
    if scheme in ("view", "sex"):
        column = FIELDS.index("PA" if scheme == "view" else "Male")
        share = condition.value[:, column]
        rows = torch.stack([1.0 - share, share], dim=1)
        return rows * condition.known[:, column, None]
    shown = torch.where(condition.observations_known, condition.observations, 0.0)
    if scheme == "multi":
        return shown / shown.sum(dim=1, keepdim=True).clamp(min=torch.finfo(shown.dtype).tiny)
    normal, pathologies = shown[:, [NO_FINDING]] == 1.0, shown[:, PATHOLOGIES] == 1.0
    if scheme == "binary":
        return _exactly_one(torch.cat([normal, pathologies.any(dim=1, keepdim=True)], dim=1))
    return _exactly_one(torch.cat([normal, pathologies], dim=1))


def _exactly_one(positive: Bool[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """Rows with one positive as one-hot rows, the others as zeros."""
    return (positive & (positive.sum(dim=1, keepdim=True) == 1)).float()
