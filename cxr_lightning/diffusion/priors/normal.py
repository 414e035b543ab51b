"""The VAE's own prior."""

from jaxtyping import Float
from torch import Tensor, nn

from cxr_lightning.types import Condition


class NormalPrior(nn.Module):
    """The standard normal, whatever the condition (Kingma and Welling 2013, arXiv 1312.6114).

    Args:
        latent_dim: Dimension of the latent code.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.noise_dim = latent_dim

    def fit(self, z: Float[Tensor, "n d"], condition: Condition) -> None:
        """Nothing is fitted."""

    def forward(
        self, noise: Float[Tensor, "b d"], condition: Condition, guidance: float = 1.0
    ) -> Float[Tensor, "b d"]:
        """The noise itself."""
        return noise
