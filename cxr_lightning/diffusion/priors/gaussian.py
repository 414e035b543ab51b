"""A Gaussian whose mean depends linearly on the condition."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cxr_lightning.types import FIELDS, Condition

FEATURES = 1 + 3 * len(FIELDS)
RIDGE = 1e-2
"""Ridge penalty of the regression, as a share of the number of images."""

SHRINKAGE = 0.1
"""Share of the diagonal in covariances."""


class GaussianPrior(nn.Module):
    """p(z | c) = N(W f(c), S), f(c) = (1, `Condition.features`).

    W is fitted by ridge regression on the latent codes of the training images, S is the covariance
    of the residuals, shrunk towards its diagonal (Ledoit and Wolf's idea with a fixed share), so
    that few images do not make it singular.

    The regression knows conditions as the training images have them. A field that they all state
    and a request does not enters as 0, halfway between its values, and S is not widened for it:
    unlike `FlowPrior`, which is trained with fields left out.

    Args:
        latent_dim: Dimension of the latent code.
        shrinkage: Share of the diagonal in S, 0 to 1.
    """

    weight: Tensor
    factor: Tensor

    def __init__(self, latent_dim: int, shrinkage: float = SHRINKAGE) -> None:
        super().__init__()
        self.noise_dim = latent_dim
        self.shrinkage = shrinkage
        self.register_buffer("weight", torch.zeros(FEATURES, latent_dim))
        self.register_buffer("factor", torch.eye(latent_dim))

    def fit(self, z: Float[Tensor, "n d"], condition: Condition) -> None:
        """Fits W and S."""
        f, z = features(condition).double(), z.double()
        weight = ridge(f, z)
        residual = z - f @ weight
        covariance = residual.T @ residual / len(z)
        self.weight.copy_(weight)
        self.factor.copy_(torch.linalg.cholesky(shrink(covariance, self.shrinkage)))

    def forward(
        self, noise: Float[Tensor, "b d"], condition: Condition, guidance: float = 1.0
    ) -> Float[Tensor, "b d"]:
        """Latent codes for a condition from standard normal noise.

        Of two Gaussians of one covariance, N(m_c, S)^g N(m_0, S)^(1 - g) is N(m_0 + g (m_c - m_0),
        S); m_0 = W f(nothing known).
        """
        return features(condition, guidance) @ self.weight + noise @ self.factor.T


def features(condition: Condition, guidance: float = 1.0) -> Float[Tensor, "b 52"]:
    """A one, and what is known of each field, g times as far from "nothing known", which is 0."""
    stated = guidance * condition.features()
    return torch.cat([stated.new_ones(len(stated), 1), stated], dim=1)


def ridge(f: Float[Tensor, "n f"], z: Float[Tensor, "n d"]) -> Float[Tensor, "f d"]:
    """Coefficients of the ridge regression of z on features whose first is 1."""
    penalty = RIDGE * len(f) * torch.eye(f.shape[1], dtype=f.dtype, device=f.device)
    penalty[0, 0] = 0.0  # the mean is not shrunk
    weight: Tensor = torch.linalg.solve(f.T @ f + penalty, f.T @ z)
    return weight


def shrink(covariance: Float[Tensor, "*k d d"], share: float) -> Float[Tensor, "*k d d"]:
    """The covariance with a share of its diagonal alone, which makes it regular."""
    diagonal = torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))
    return (1.0 - share) * covariance + share * diagonal
