"""Latent priors: where the latent codes of new images come from."""

from typing import Literal

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from cxr_lightning.diffusion.priors.flow import FlowPrior
from cxr_lightning.diffusion.priors.gaussian import GaussianPrior
from cxr_lightning.diffusion.priors.mixture import MixturePrior
from cxr_lightning.diffusion.priors.normal import NormalPrior
from cxr_lightning.types import Condition

PriorKind = Literal["normal", "gaussian", "mixture", "flow"]


class LatentPrior(nn.Module, PyTorchModelHubMixin):
    """p(z | condition): the aggregate posterior of the training images, by condition.

    The VAE's own prior, the standard normal, knows no condition, and real latent codes do not fill
    it. A code from a fitted prior decodes to an image that fits the condition before it is refined.

    Unfitted every kind is the standard normal.

    Args:
        latent_dim: Dimension of the latent code.
        kind: `normal`, the standard normal whatever the condition; `gaussian`, see `GaussianPrior`;
            `mixture`, see `MixturePrior`; `flow`, see `FlowPrior`.
        components: Of the mixture, at most.
        width: Of the flow's network.
        text_dim: Columns of the text embeddings of conditions, which the flow alone looks at; 0:
            they are not used.
    """

    fitted: Tensor

    def __init__(
        self,
        *,
        latent_dim: int,
        kind: PriorKind = "gaussian",
        components: int = 16,
        width: int = 256,
        text_dim: int = 0,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.kind: PriorKind = kind
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self.model: NormalPrior | GaussianPrior | MixturePrior | FlowPrior
        if kind == "normal":
            self.model = NormalPrior(latent_dim)
        elif kind == "gaussian":
            self.model = GaussianPrior(latent_dim)
        elif kind == "mixture":
            self.model = MixturePrior(latent_dim, components)
        else:
            self.model = FlowPrior(latent_dim, width, text_dim)

    @property
    def noise_dim(self) -> int:
        """Standard normal numbers that a latent code is made of."""
        return self.model.noise_dim

    def fit(self, z: Float[Tensor, "n d"], condition: Condition) -> None:
        """Fits the prior to latent codes of training images.

        Args:
            z: Sampled latent codes (not posterior means: they would lack the posterior's width).
            condition: What is known of each image.
        """
        self.model.fit(z, condition)
        self.fitted.fill_(True)

    def forward(
        self, noise: Float[Tensor, "b e"], condition: Condition, guidance: float = 1.0
    ) -> Float[Tensor, "b d"]:
        """Latent codes for a condition from standard normal noise of `noise_dim` numbers.

        Args:
            noise: Standard normal numbers.
            condition: What the images shall show.
            guidance: Weight g of classifier-free guidance, p(z | c)^g p(z)^(1 - g): 1 for none,
                larger for codes that are plainer for the condition, and vary less.
        """
        if not self.fitted:
            return noise[:, : self.latent_dim]
        z: Tensor = self.model(noise, condition, guidance)
        return z
