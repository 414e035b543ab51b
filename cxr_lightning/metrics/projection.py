"""Few coordinates in which no two points are farther apart than in truth.

With orthonormal columns V, a = V^T x and r = |x - V a|, two points are at least
sqrt(|a - a'|^2 + (r - r')^2) apart (Pythagoras, and the triangle inequality for the rest). On
principal components this is close to the truth, so that most points are ruled out as neighbours at
a small part of the cost: filter and refine, Seidl and Kriegel 1998, Optimal multi-step k-nearest
neighbor search, SIGMOD.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

SAMPLE = 4096
"""Points that the principal components are found from, at most."""

BLOCK = 8192


class Projection(NamedTuple):
    """Coordinates on an orthonormal basis, and the length of what lies outside it.

    Attributes:
        centre: Origin.
        basis: Orthonormal columns.
    """

    centre: Float64[Tensor, " f"]
    basis: Float64[Tensor, "f d"]

    def of(self, points: Float32[Tensor, "n f"]) -> Float32[Tensor, "n d1"]:
        """The d coordinates of each point and its distance from the basis, rounded from float64."""
        parts = [points.new_empty(0, self.basis.shape[1] + 1)]
        for block in points.split(BLOCK):
            moved = block.double() - self.centre
            inside = moved @ self.basis
            outside = (moved - inside @ self.basis.T).norm(dim=1, keepdim=True)
            parts.append(torch.cat([inside, outside], dim=1).float())
        return torch.cat(parts)


def principal_projection(
    points: Float32[Tensor, "m f"], centre: Float64[Tensor, " f"], dimensions: int
) -> Projection:
    """Projection on the leading principal components of evenly spaced points.

    They are found by a randomised method (Halko et al. 2011, arXiv 0909.4061), which leaves torch's
    random state as it was. How good they are decides about speed alone.

    Args:
        points: At least as many as dimensions.
        centre: Their mean.
        dimensions: Number of components, below f.
    """
    sample = points[:: -(-len(points) // SAMPLE)].double() - centre
    devices = [points.device] if points.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        _, _, components = torch.svd_lowrank(sample, min(2 * dimensions, *sample.shape))
    return Projection(centre, torch.linalg.qr(components[:, :dimensions]).Q)
