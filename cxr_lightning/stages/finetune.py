"""Stage 4: the denoiser is fine-tuned with the representation loss through the frozen encoder."""

from pathlib import Path
from typing import Any, final

from jaxtyping import Float, UInt8
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from cxr_lightning.artifacts import check_product, load_network
from cxr_lightning.data.transforms import to_image
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.losses.representation import representation_loss
from cxr_lightning.networks.encoder import Encoder
from cxr_lightning.networks.frozen import Frozen
from cxr_lightning.stages.base import Decay, Product, Stage, default_optimizer
from cxr_lightning.stages.denoising import (
    GeneratorInTraining,
    check_gamma,
    fixed_draws,
    load_generator,
    random_draws,
    random_drop,
    text_parent,
)
from cxr_lightning.types import Batch


@final
class Finetune(Stage):
    """L = L_diffusion + lambda L_representation (the whitepaper's stage 4).

    Args:
        generator: Product of stage 2.
        encoder: Product of stage 3, frozen here.
        image_size: Height and width in pixels (from `data.image_size`).
        representation_weight: lambda.
        representation_warmup_steps: Steps over which lambda rises linearly from 0.
        min_snr_gamma: Cut of the Min-SNR weights of the training loss (Hang et al. 2023); null for
            the plain loss.
        text_encoder: Folder of the text encoder (from `data.text_encoder`); the generator's.
        snr_min: Images noised below this signal-to-noise ratio have no representation loss.
        drop_field: Probability, per image and field, that a field of the condition is unknown.
        drop_condition: Probability, per image, that the whole condition is unknown.
        drop_text: Probability, per image, that the text alone is unknown.
        ema_decay: Decay of the moving average of the weights.
        optimizer: Optimizer of the U-Net.
        warmup_steps: Steps of linear learning-rate warm-up.
        decay: Learning rate after warm-up: `constant` or `cosine`.

    Raises:
        UserError: If a product is missing, wrong, or of another image size.
    """

    def __init__(
        self,
        generator: Path,
        encoder: Path,
        image_size: int = 64,
        representation_weight: float = 0.1,
        representation_warmup_steps: int = 0,
        min_snr_gamma: float | None = None,
        text_encoder: Path | None = None,
        snr_min: float = 0.25,
        drop_field: float = 0.1,
        drop_condition: float = 0.1,
        drop_text: float = 0.2,
        ema_decay: float = 0.999,
        optimizer: OptimizerCallable = default_optimizer,
        warmup_steps: int = 0,
        decay: Decay = "constant",
    ) -> None:
        super().__init__(optimizer, warmup_steps, decay)
        start = load_generator(generator, image_size)
        self.parents = {
            "generator": start.manifest["sha256"],
            "encoder": check_product(encoder, "encoder", "model.encoder")["sha256"],
        }
        self.parents |= text_parent(start.manifest, text_encoder)
        assert start.denoiser is not None
        denoiser = start.denoiser.train().requires_grad_(True)
        self.networks = GeneratorInTraining(denoiser, start.autoencoder, ema_decay, start.prior)
        self.encoder = Frozen(load_network(Encoder, encoder))
        self.representation_weight = representation_weight
        self.representation_warmup_steps = representation_warmup_steps
        self.min_snr_gamma = check_gamma(min_snr_gamma, denoiser.schedule)
        self.snr_min = snr_min
        self.drop_field = drop_field
        self.drop_condition = drop_condition
        self.drop_text = drop_text

    @property
    def name(self) -> str:
        """Name of the stage."""
        return "finetune"

    def product(self) -> Product:
        """The generator, with averaged weights; the same format as stage 2's."""
        return Product("generator", self.networks.networks(), self.parents)

    def generator(self) -> Generator:
        """The generator, with averaged weights."""
        return self.networks.generator()

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """Diffusion loss plus weighted representation loss of a batch."""
        condition = random_drop(
            self, batch.condition, self.drop_field, self.drop_condition, self.drop_text
        )
        draws = random_draws(self, self.networks, len(batch.image))
        denoised = self.networks.denoise(batch.image, condition, draws)
        representation = representation_loss(
            self.encoder.network, batch.image, denoised.x0, denoised.a_t, self.snr_min
        )
        ramp = min((self.global_step + 1) / (self.representation_warmup_steps + 1), 1.0)
        diffusion = denoised.loss(self.min_snr_gamma)
        loss = diffusion + self.representation_weight * ramp * representation
        scalars = {"loss": loss, "diffusion": diffusion, "representation": representation}
        self.log_scalars("train", scalars, len(batch.image))
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps the optimizer, then the moving average; not called while accumulating."""
        super().optimizer_step(*args, **kwargs)
        self.networks.update_average(self.global_step)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Both losses with averaged weights, full conditions and fixed noise."""
        draws = fixed_draws(batch.index, self.networks, batch.image.shape[-1], self.device)
        denoised = self.networks.denoise(batch.image, batch.condition, draws, averaged=True)
        representation = representation_loss(
            self.encoder.network, batch.image, denoised.x0, denoised.a_t, self.snr_min
        )
        diffusion = denoised.loss()
        loss = diffusion + self.representation_weight * representation
        scalars = {"loss": loss, "diffusion": diffusion, "representation": representation}
        self.log_scalars(self.split, scalars, len(batch.image))

    def predict_step(self, batch: Batch, batch_idx: int) -> UInt8[Tensor, "b 1 h w"]:
        """Reconstructions through VAE and denoiser, raw."""
        made = self.generator().reconstruct(batch.image, batch.condition, batch.index)
        return to_image(made)
