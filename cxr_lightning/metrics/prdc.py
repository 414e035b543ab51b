"""Precision and recall, density and coverage of synthetic images by nearest-neighbour balls.

Precision and recall: Kynkäänniemi et al. 2019 (arXiv 1904.06991), eq. 1 and 2. Density and
coverage: Naeem et al. 2020 (arXiv 2002.09797), eq. 3 and 4. B(x) is the open ball about x up to the
k-th nearest other image of its own side.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32, Float64
from torch import Tensor

from cxr_lightning.metrics.neighbours import (
    centred,
    mean,
    nearest,
    rounding_error,
    row_distances,
    squared_distances,
)

REAL_BLOCK = 2048
SYNTHETIC_BLOCK = 8192
BORDER = 1e-9
"""Distances that equal a radius up to this share lie on the border, and so outside."""


class Prdc(NamedTuple):
    """The metrics' values of each image; the metrics are their means.

    Attributes:
        precision: Whether the synthetic image lies in the ball of a real one.
        density: Real images whose balls the synthetic image lies in, over k; may exceed 1.
        recall: Whether the real image lies in the ball of a synthetic one.
        coverage: Whether a synthetic image lies in the ball of the real one.
    """

    precision: Bool[Tensor, " m"]
    density: Float64[Tensor, " m"]
    recall: Bool[Tensor, " n"]
    coverage: Bool[Tensor, " n"]


@torch.no_grad()
def prdc(real: Float32[Tensor, "n f"], synthetic: Float32[Tensor, "m f"], k: int = 5) -> Prdc:
    """Precision, density, recall and coverage of each image.

    Args:
        real: Features of the real images.
        synthetic: Features of the synthetic images, on the same device.
        k: The neighbour that sets the radius of a ball.

    Raises:
        ValueError: If k is below 1 or a side has no more than k images.
    """
    if min(len(real), len(synthetic)) <= k:
        raise ValueError(
            f"`k` must be below the images of a side, {len(real)} and {len(synthetic)}, not {k}."
        )
    centre = mean(real)
    real_radius, synthetic_radius = _radius(real, k), _radius(synthetic, k)
    counts = torch.zeros(len(synthetic), dtype=torch.int64, device=real.device)
    recall = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    coverage = torch.zeros_like(recall)
    for first in range(0, len(real), REAL_BLOCK):
        rows = slice(first, first + REAL_BLOCK)
        for second in range(0, len(synthetic), SYNTHETIC_BLOCK):
            columns = slice(second, second + SYNTHETIC_BLOCK)
            one, other = real[rows], synthetic[columns]
            squared = squared_distances(centred(one, centre), centred(other, centre))
            inside = _inside(squared, one, other, real_radius[rows], centre)
            counts[columns] += inside.sum(dim=0)
            coverage[rows] |= inside.any(dim=1)
            inside = _inside(squared.T, other, one, synthetic_radius[columns], centre)
            recall[rows] |= inside.any(dim=0)
    return Prdc(counts > 0, counts.double() / k, recall, coverage)


def _radius(points: Float32[Tensor, "n f"], k: int) -> Float64[Tensor, " n"]:
    """Distance of each image to its k-th nearest other image."""
    rows = torch.arange(len(points), device=points.device)
    return nearest(points, points, k, query_groups=rows, point_groups=rows).distance[:, -1]


def _inside(
    squared: Float32[Tensor, "b p"],
    balls: Float32[Tensor, "b f"],
    points: Float32[Tensor, "p f"],
    radius: Float64[Tensor, " b"],
    centre: Float64[Tensor, " f"],
) -> Bool[Tensor, "b p"]:
    """Whether points lie in balls, by distances in float64 where rounding could decide it.

    Args:
        squared: Squared distances by `squared_distances`.
        balls: Centres of the balls.
        points: The points.
        radius: Of each ball; in one of radius 0 lies nothing.
        centre: What `squared` was centred by.
    """
    limit = (1.0 - BORDER) * radius
    bound = limit.square().where(limit > 0, -torch.inf)
    error = rounding_error(centred(balls, centre), radius)
    inside = squared < (bound - error).to(squared.dtype)[:, None]
    unsure = (squared < (bound + error).to(squared.dtype)[:, None]) & ~inside
    ball, point = unsure.nonzero(as_tuple=True)
    inside[ball, point] = row_distances(balls, points, ball, point) < limit[ball]
    return inside
