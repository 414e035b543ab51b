"""Latent priors: where the latent codes of new images come from."""

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from cxr_lightning.types import FIELDS, Condition

RIDGE = 1e-2
"""Ridge penalty of the regression, as a share of the number of images."""


class LatentPrior(nn.Module, PyTorchModelHubMixin):
    """Gaussian prior whose mean depends linearly on the health condition.

    p(z | c) = N(W f(c), S), f(c) = (1, `Condition.features`): a latent code
    drawn from it already fits the condition, while the standard normal of the VAE does not know
    it. W is fitted by ridge regression on the latent codes of the training images, S is the
    covariance of the residuals, shrunk towards its diagonal (Ledoit and Wolf's idea with a fixed
    share), so that few images do not make it singular.

    Unfitted it is the standard normal.

    Args:
        latent_dim: Dimension of the latent code.
        shrinkage: Share of the diagonal in S, 0 to 1.
    """

    weight: Tensor
    factor: Tensor

    def __init__(self, *, latent_dim: int, shrinkage: float = 0.1) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.shrinkage = shrinkage
        self.register_buffer("weight", torch.zeros(1 + 3 * len(FIELDS), latent_dim))
        self.register_buffer("factor", torch.eye(latent_dim))

    def fit(self, z: Float[Tensor, "n d"], condition: Condition) -> None:
        """Fits W and S to latent codes of training images.

        Args:
            z: Sampled latent codes (not posterior means: they would lack the posterior's width).
            condition: What is known of each image.
        """
        f = _features(condition).double()
        z = z.double()
        penalty = RIDGE * len(f) * torch.eye(f.shape[1], dtype=f.dtype, device=f.device)
        penalty[0, 0] = 0.0  # the mean is not shrunk
        weight = torch.linalg.solve(f.T @ f + penalty, f.T @ z)
        residual = z - f @ weight
        covariance = residual.T @ residual / len(z)
        diagonal = torch.diag(torch.diagonal(covariance))
        covariance = (1.0 - self.shrinkage) * covariance + self.shrinkage * diagonal
        self.weight.copy_(weight)
        self.factor.copy_(torch.linalg.cholesky(covariance))

    def forward(self, noise: Float[Tensor, "b d"], condition: Condition) -> Float[Tensor, "b d"]:
        """Latent codes for a condition from standard normal noise."""
        return _features(condition) @ self.weight + noise @ self.factor.T


def _features(condition: Condition) -> Float[Tensor, "b f"]:
    features = condition.features()
    return torch.cat([features.new_ones(len(features), 1), features], dim=1)
