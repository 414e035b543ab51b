"""Active units: how many dimensions of the latent code a VAE uses."""

from typing import Any

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor
from torchmetrics import Metric

ACTIVE = 0.01
"""Variance of the posterior mean over images above which a dimension is active."""


def variance_from_sums(
    total: Float64[Tensor, " d"], squares: Float64[Tensor, " d"], count: Int64[Tensor, ""]
) -> Float64[Tensor, " d"]:
    """Unbiased variance of each column from its sum and its sum of squares; 0 for one row."""
    deviation = squares - total.square() / count
    return deviation / (count - 1).clamp(min=1)


class ActiveUnits(Metric):
    """Number of latent dimensions u with Cov_x(E_q(u|x)[u]) > 0.01 over all images.

    Burda et al. 2015 (arXiv 1509.00519), section 5.2. A dimension that the posterior leaves at the
    prior carries nothing of the image: its mean hardly moves.

    Args:
        latent_dim: Dimension of the latent code, the largest value.
        kwargs: As in `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self, latent_dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zeros = torch.zeros(latent_dim, dtype=torch.float64)
        self.add_state("total", zeros, dist_reduce_fx="sum")
        self.add_state("squares", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, mean: Float[Tensor, "b d"]) -> None:
        """Adds the posterior means of some images."""
        mean = mean.double()
        self.total += mean.sum(0)
        self.squares += mean.square().sum(0)
        self.count += len(mean)

    def compute(self) -> Float32[Tensor, ""]:
        """How many dimensions are active, 0 to `latent_dim`."""
        return (variance_from_sums(self.total, self.squares, self.count) > ACTIVE).sum().float()
