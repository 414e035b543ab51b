"""Stage 1: the VAE learns a low-dimensional latent code."""

from typing import final

import torch
from jaxtyping import Float, UInt8
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from cxr_lightning.data.transforms import to_image
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.priors import LatentPrior
from cxr_lightning.losses.vae import active_units, kl_divergence, reconstruction_error
from cxr_lightning.networks.autoencoder import Autoencoder, sample_latent
from cxr_lightning.stages.base import Decay, Product, Stage, default_optimizer
from cxr_lightning.types import Batch


@final
class VAE(Stage):
    """L = reconstruction + beta KL (Kingma and Welling 2013, arXiv 1312.6114).

    Args:
        image_size: Height and width in pixels (from `data.image_size`).
        width: Channels of the autoencoder at full resolution.
        latent_dim: Dimension of the latent code.
        beta: Weight of the KL divergence.
        beta_warmup_steps: Steps over which beta rises linearly from 0.
        optimizer: Optimizer of the autoencoder.
        warmup_steps: Steps of linear learning-rate warm-up.
        decay: Learning rate after warm-up: `constant` or `cosine`.
    """

    def __init__(
        self,
        image_size: int = 64,
        width: int = 32,
        latent_dim: int = 128,
        beta: float = 1.0,
        beta_warmup_steps: int = 0,
        optimizer: OptimizerCallable = default_optimizer,
        warmup_steps: int = 0,
        decay: Decay = "constant",
    ) -> None:
        super().__init__(optimizer, warmup_steps, decay)
        self.autoencoder = Autoencoder(image_size=image_size, width=width, latent_dim=latent_dim)
        self.latent_dim = latent_dim
        self.beta = beta
        self.beta_warmup_steps = beta_warmup_steps
        self.means: list[Float[Tensor, "b d"]] = []

    @property
    def name(self) -> str:
        """Name of the stage."""
        return "vae"

    def product(self) -> Product:
        """The autoencoder."""
        return Product("autoencoder", {"autoencoder": self.autoencoder}, {})

    def generator(self) -> Generator:
        """The autoencoder with the standard normal prior."""
        prior = LatentPrior(latent_dim=self.latent_dim).to(self.device)
        return Generator(None, self.autoencoder, prior)

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """Negative ELBO of a batch, with beta on its way up."""
        noise = self.draw(
            lambda n: torch.randn(n, self.latent_dim, device=self.device), len(batch.image)
        )
        ramp = (self.global_step + 1) / (self.beta_warmup_steps + 1)
        beta = self.beta * min(ramp, 1.0)
        scalars, _ = self._objective(batch, noise, beta)
        self.log_scalars("train", scalars, len(batch.image))
        return scalars["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Negative ELBO at the posterior mean, and how close the reconstruction is."""
        noise = torch.zeros(len(batch.image), self.latent_dim, device=self.device)
        scalars, reconstruction = self._objective(batch, noise, self.beta)
        scalars["psnr"] = peak_signal_noise_ratio(
            reconstruction, batch.image, data_range=2.0, reduction="elementwise_mean", dim=(1, 2, 3)
        )
        ssim = structural_similarity_index_measure(reconstruction, batch.image, data_range=2.0)
        assert isinstance(ssim, Tensor)
        scalars["ssim"] = ssim
        self.means.append(self.autoencoder.encode(batch.image)[0])
        self.log_scalars(self.split, scalars, len(batch.image))

    def on_validation_epoch_end(self) -> None:
        """Logs how many latent dimensions are in use."""
        means = torch.cat(self.means)
        self.means.clear()
        if len(means) > 1:
            self.log_scalars(self.split, {"active_units": active_units(means)}, len(means))

    def predict_step(self, batch: Batch, batch_idx: int) -> UInt8[Tensor, "b 1 h w"]:
        """Reconstructions, raw."""
        return to_image(self.generator().autoencode(batch.image))

    def _objective(
        self, batch: Batch, noise: Float[Tensor, "b d"], beta: float
    ) -> tuple[dict[str, Float[Tensor, ""]], Float[Tensor, "b 1 h w"]]:
        mean, log_variance = self.autoencoder.encode(batch.image)
        reconstruction = self.autoencoder.decode(sample_latent(mean, log_variance, noise))
        error = reconstruction_error(batch.image, reconstruction)
        kl = kl_divergence(mean, log_variance)
        return {"loss": error + beta * kl, "reconstruction": error, "kl": kl}, reconstruction
