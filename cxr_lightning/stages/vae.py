"""Stage 1: the VAE learns a low-dimensional latent code."""

from typing import final

import torch
from jaxtyping import Float, UInt8
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio

from cxr_lightning.data.transforms import to_image
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.priors import LatentPrior
from cxr_lightning.losses.vae import structural_similarity, vae_loss
from cxr_lightning.metrics.active_units import ActiveUnits
from cxr_lightning.networks.autoencoder import Autoencoder, sample_latent
from cxr_lightning.ranges import check_range
from cxr_lightning.stages.base import Decay, Product, Stage, default_optimizer
from cxr_lightning.types import Batch


@final
class VAE(Stage):
    """L = reconstruction + beta KL + ssim_weight structure (Kingma and Welling 2013).

    arXiv 1312.6114; the terms are in `losses.vae`. A learned perceptual term is left out: its
    network's weights would have to be downloaded.

    Validation decodes the posterior mean, and weighs the KL divergence with the full beta from the
    first step on, so that epochs compare: the loss, PSNR (dB) and SSIM (means over the images), KL
    (nats an image), active units.

    Args:
        image_size: Height and width in pixels (from `data.image_size`).
        width: Channels of the autoencoder at full resolution.
        latent_dim: Dimension of the latent code.
        beta: Weight of the KL divergence.
        beta_warmup_steps: Steps over which beta rises linearly from 0.
        ssim_weight: Weight of 1 - SSIM, summed over pixels as the squared error is: at 1.0 a pixel
            without any structural similarity costs as much as one that is wrong by half the range.
        optimizer: Optimizer of the autoencoder.
        warmup_steps: Steps of linear learning-rate warm-up.
        decay: Learning rate after warm-up: `constant` or `cosine`.

    Raises:
        UserError: If a number is out of its range.
    """

    def __init__(
        self,
        image_size: int = 64,
        width: int = 32,
        latent_dim: int = 128,
        beta: float = 1.0,
        beta_warmup_steps: int = 0,
        ssim_weight: float = 0.0,
        optimizer: OptimizerCallable = default_optimizer,
        warmup_steps: int = 0,
        decay: Decay = "constant",
    ) -> None:
        super().__init__(optimizer, warmup_steps, decay)
        check_range("model.beta", beta, 0)
        check_range("model.beta_warmup_steps", beta_warmup_steps, 0)
        check_range("model.ssim_weight", ssim_weight, 0)
        self.autoencoder = Autoencoder(image_size=image_size, width=width, latent_dim=latent_dim)
        self.latent_dim = latent_dim
        self.beta = beta
        self.beta_warmup_steps = beta_warmup_steps
        self.ssim_weight = ssim_weight
        self.measures = MetricCollection(
            {
                "psnr": PeakSignalNoiseRatio(data_range=2.0, dim=(1, 2, 3)),
                "active_units": ActiveUnits(latent_dim),
                **{name: image_mean() for name in ("loss", "reconstruction", "kl", "ssim")},
                **({"structure": image_mean()} if ssim_weight else {}),
            },
            compute_groups=False,
        )

    @property
    def name(self) -> str:
        """Name of the stage."""
        return "vae"

    def product(self) -> Product:
        """The autoencoder."""
        return Product("autoencoder", {"autoencoder": self.autoencoder}, {})

    def generator(self) -> Generator:
        """The autoencoder with the standard normal prior."""
        prior = LatentPrior(latent_dim=self.latent_dim, kind="normal").to(self.device)
        return Generator(None, self.autoencoder, prior)

    def compilable(self) -> list[nn.Module]:
        """The autoencoder."""
        return [self.autoencoder]

    def beta_at(self, step: int) -> float:
        """The weight of the KL divergence after `step` optimizer steps."""
        return self.beta * min((step + 1) / (self.beta_warmup_steps + 1), 1.0)

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """Loss of a batch at a sampled code, with beta on its way up."""
        noise = self.draw(
            lambda n: torch.randn(n, self.latent_dim, device=self.device), len(batch.image)
        )
        posterior = self.autoencoder.encode(batch.image)
        made = self.autoencoder.decode(sample_latent(*posterior, noise))
        beta = self.beta_at(self.global_step)
        terms = vae_loss(batch.image, made, *posterior, beta=beta, ssim_weight=self.ssim_weight)
        self.log_scalars("train", {**terms, "beta": beta}, len(batch.image))
        return terms["loss"]

    def on_validation_epoch_start(self) -> None:
        """Empties the measurements: after `validate` they are of torch's inference mode."""
        self.measures.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss at the posterior mean with the full beta, and what the reconstruction is like."""
        posterior = self.autoencoder.encode(batch.image)
        made = self.autoencoder.decode(posterior[0])
        terms = vae_loss(
            batch.image, made, *posterior, beta=self.beta, ssim_weight=self.ssim_weight
        )
        for name, value in terms.items():
            self.measures[name].update(value.expand(len(made)))
        self.measures["ssim"].update(structural_similarity(batch.image, made))
        self.measures["psnr"].update(made, batch.image)
        self.measures["active_units"].update(posterior[0])
        for name, measure in self.measures.items():
            self.log(f"{self.name}/{self.split}/{name}", measure, prog_bar=name == "loss")

    def predict_step(self, batch: Batch, batch_idx: int) -> UInt8[Tensor, "b 1 h w"]:
        """Reconstructions, raw."""
        return to_image(self.generator().autoencode(batch.image))


def image_mean() -> MeanMetric:
    """A mean over the images of all batches and processes; a NaN stays one.

    Lightning's own mean of logged numbers is too large where the images do not divide among the
    processes (github.com/Lightning-AI/pytorch-lightning/issues/21859).
    """
    return MeanMetric(nan_strategy="disable")
