"""A mixture of Gaussians whose weights depend on the condition."""

import numpy as np
import torch
from jaxtyping import Float, Float64
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from cxr_lightning.diffusion.priors.gaussian import FEATURES, SHRINKAGE, features, ridge, shrink
from cxr_lightning.types import Condition

IMAGES_PER_DIMENSION = 5
"""Images of a component for each dimension, at least, on average."""

HELD_OUT = 0.1
"""Share of the latent codes that decides about the number of components."""


class MixturePrior(nn.Module):
    """p(z | c) = sum_k p(k | c) N(W f(c) + m_k, S_k).

    DiffuseVAE's "ex-post density estimation" (Pandey et al. 2022, arXiv 2201.00308), made
    conditional: W is the regression of `GaussianPrior`, the mixture is fitted to its residuals by
    expectation maximisation, p(k | c) is a logistic regression of the component on the condition,
    and each S_k is shrunk towards its diagonal. There are no more components than the images
    support, and of these as many as give held-out codes the highest likelihood: with a covariance
    from fewer images than dimensions a component would repeat its training images.

    Args:
        latent_dim: Dimension of the latent code.
        components: At most.
    """

    weight: Tensor
    gate: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, latent_dim: int, components: int = 16) -> None:
        super().__init__()
        self.noise_dim = latent_dim + 1  # the last number chooses the component
        self.components = components
        self.register_buffer("weight", torch.zeros(FEATURES, latent_dim))
        gate = torch.full((FEATURES, components), 0.0)
        gate[0, 1:] = -torch.inf  # components that are not used
        self.register_buffer("gate", gate)
        self.register_buffer("means", torch.zeros(components, latent_dim))
        self.register_buffer("factors", torch.eye(latent_dim).repeat(components, 1, 1))

    def fit(self, z: Float[Tensor, "n d"], condition: Condition) -> None:
        """Fits the regression, the mixture of its residuals, and the choice of a component."""
        f, z = features(condition).double(), z.double()
        weight = ridge(f, z)
        residual = (z - f @ weight).cpu().numpy()
        mixture = _choose(residual, self._most(len(z)))
        share = torch.from_numpy(mixture.predict_proba(residual)).to(z)
        number = mixture.n_components
        self.weight.copy_(weight)
        self.means[:number] = torch.from_numpy(mixture.means_).to(self.means)
        for k in range(number):
            off = (z - f @ weight) - self.means[k].double()
            covariance = (share[:, k, None] * off).T @ off / share[:, k].sum()
            factor = torch.linalg.cholesky(shrink(covariance, SHRINKAGE))
            self.factors[k] = factor.to(self.factors)
        self.gate.copy_(self._gate(f.cpu().numpy(), share.argmax(dim=1).cpu().numpy(), number))

    def forward(
        self, noise: Float[Tensor, "b e"], condition: Condition, guidance: float = 1.0
    ) -> Float[Tensor, "b d"]:
        """Latent codes for a condition from standard normal noise.

        Guidance is that of each component, as in `GaussianPrior`, and of p(k | c), whose log odds
        are linear in f.
        """
        f = features(condition, guidance)
        # 0 times infinity: the gate's rows behind the first are finite.
        logits = f[:, 1:] @ self.gate[1:] + self.gate[0]
        below = torch.special.ndtr(noise[:, -1:])
        chosen = (below > logits.softmax(dim=1).cumsum(dim=1)).sum(dim=1)
        # Rounding may leave the sum of all shares below 1.
        chosen = chosen.clamp(max=int(self.gate[0].isfinite().nonzero().max()))
        spread = torch.einsum("bij,bj->bi", self.factors[chosen], noise[:, :-1])
        return f @ self.weight + self.means[chosen] + spread

    def _most(self, images: int) -> int:
        dimension = self.means.shape[1]
        return max(min(self.components, images // (IMAGES_PER_DIMENSION * dimension)), 1)

    def _gate(
        self, f: Float64[np.ndarray, "n f"], component: np.ndarray, number: int
    ) -> Float[Tensor, "f k"]:
        gate = torch.zeros_like(self.gate)
        gate[0] = -torch.inf
        present = np.unique(component)
        if len(present) == 1:
            gate[0, int(present[0])] = 0.0
            return gate
        model = LogisticRegression(max_iter=500).fit(f[:, 1:], component)
        weights, bias = model.coef_, model.intercept_
        if len(present) == 2:  # one row stands for the second class against the first
            weights, bias = np.stack([0 * weights[0], weights[0]]), np.array([0.0, bias[0]])
        for k, row, constant in zip(present.tolist(), weights, bias, strict=True):
            gate[0, k] = float(constant)
            gate[1:, k] = torch.from_numpy(row).to(gate)
        return gate


def _choose(residual: Float64[np.ndarray, "n d"], most: int) -> GaussianMixture:
    """The mixture of the number of components that suits held-out residuals best."""
    order = np.random.default_rng(0).permutation(len(residual))
    held_out = order[: int(HELD_OUT * len(order))]
    rest = order[len(held_out) :]
    numbers = [1]
    while 2 * numbers[-1] <= most:
        numbers.append(2 * numbers[-1])

    def fit(number: int, rows: np.ndarray) -> GaussianMixture:
        # Full covariances are made from the shares afterwards, with shrinkage.
        kind = GaussianMixture(number, covariance_type="diag", reg_covar=1e-4, random_state=0)
        return kind.fit(residual[rows])

    if len(numbers) == 1 or not len(held_out):
        return fit(1, order)
    scores = [fit(number, rest).score(residual[held_out]) for number in numbers]
    return fit(numbers[int(np.argmax(scores))], order)
