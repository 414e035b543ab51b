"""What stages 2, 4 and 5 share as stages: product, moving average, what they start from."""

from abc import ABC
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from cxr_lightning.artifacts import ancestors, training_sets
from cxr_lightning.data.datamodule import CheXpertDataModule
from cxr_lightning.data.sampler import resample
from cxr_lightning.data.text_encoder import check_text_encoder
from cxr_lightning.data.transforms import to_image
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.samplers import Sampling
from cxr_lightning.errors import UserError
from cxr_lightning.networks.autoencoder import sample_latent
from cxr_lightning.networks.unet import Schedule
from cxr_lightning.ranges import check_range
from cxr_lightning.stages.base import Decay, Product, Stage
from cxr_lightning.stages.draws import random_drop
from cxr_lightning.stages.generator_in_training import GeneratorInTraining
from cxr_lightning.types import Batch, Condition


class DenoisingStage(Stage, ABC):
    """A stage that trains the denoiser of a generator, and hands the generator over.

    Args:
        optimizer: See `Stage`, as the next two.
        warmup_steps: Likewise.
        decay: Likewise.
        drop_field: Probability, per image and field, that a field of the condition is unknown.
        drop_condition: Probability, per image, that the whole condition is unknown.
        drop_text: Probability, per image, that the text alone is unknown.

    Attributes:
        networks: The generator; set by the stage.
        parents: Role to sha256 of each product that it is made from; set by the stage.
        sampling: Sampler and steps that the generator is tuned to; None where it may be any.
    """

    networks: GeneratorInTraining
    parents: dict[str, str]
    sampling: Sampling | None = None

    def __init__(
        self,
        optimizer: OptimizerCallable,
        warmup_steps: int,
        decay: Decay,
        drop_field: float,
        drop_condition: float,
        drop_text: float,
    ) -> None:
        super().__init__(optimizer, warmup_steps, decay)
        check_range("model.drop_field", drop_field, 0, 1)
        check_range("model.drop_condition", drop_condition, 0, 1)
        check_range("model.drop_text", drop_text, 0, 1)
        self.drop_field = drop_field
        self.drop_condition = drop_condition
        self.drop_text = drop_text

    def start_from(
        self, folder: Path, image_size: int, text_encoder: Path | None, ema_decay: float
    ) -> Generator:
        """Begins with a generator product, whose denoiser is trained on.

        Args:
            folder: The product.
            image_size: Height and width in pixels that it must have.
            text_encoder: Folder of the text encoder that it looks at, if it does.
            ema_decay: Decay of the moving average of the weights.

        Raises:
            UserError: If it is missing, wrong, or of another image size, or the text encoder is
                not the generator's.
        """
        start = Generator.from_pretrained(folder, "model.generator")
        if start.image_size != image_size:
            raise UserError(
                f"model.generator: {folder} makes images of {start.image_size} pixels, but "
                f"data.image_size is {image_size}; use a generator of that size."
            )
        self.parents = {"generator": start.manifest["sha256"]}
        self.parents |= text_parent(start.manifest, text_encoder)
        self.earlier_data = training_sets(start.manifest)
        self.ancestors = ancestors(start.manifest)
        assert start.denoiser is not None
        denoiser = start.denoiser.train().requires_grad_(True)
        self.networks = GeneratorInTraining(denoiser, start.autoencoder, ema_decay, start.prior)
        return start

    def drop(self, condition: Condition) -> Condition:
        """A training batch's condition, with fields and texts made unknown at random."""
        return random_drop(self, condition, self.drop_field, self.drop_condition, self.drop_text)

    def product(self) -> Product:
        """The generator, with averaged weights."""
        return Product("generator", self.networks.networks(), self.parents, self.sampling)

    def generator(self) -> Generator:
        """The generator, with averaged weights."""
        return self.networks.generator()

    def compilable(self) -> list[nn.Module]:
        """The denoiser."""
        return [self.networks.denoiser]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps the optimizer, then the moving average; not called while accumulating."""
        super().optimizer_step(*args, **kwargs)
        self.networks.update_average(self.global_step)

    def predict_step(self, batch: Batch, batch_idx: int) -> UInt8[Tensor, "b 1 h w"]:
        """Reconstructions through VAE and denoiser, raw."""
        sampling = self.sampling or Sampling()
        made = self.generator().reconstruct(batch.image, batch.condition, batch.index, sampling)
        return to_image(made)


def text_parent(manifest: dict[str, Any], folder: Path | None) -> dict[str, str]:
    """The text encoder's hash among the parents of a stage that goes on from a generator.

    Args:
        manifest: The generator's.
        folder: The text encoder that was given.

    Raises:
        UserError: If it is not the generator's, or the generator's is missing.
    """
    wanted = manifest.get("parents", {}).get("text_encoder")
    if wanted is None and folder is None:
        return {}
    if folder is None:
        raise UserError(
            "data.text_encoder: none was given, but the generator looks at texts; give the text "
            "encoder that it was trained with."
        )
    encoder = check_text_encoder(folder, wanted, "data.text_encoder")
    assert encoder is not None
    return {"text_encoder": encoder.sha256}


def check_gamma(gamma: float | None, schedule: Schedule) -> float | None:
    """The cut of the Min-SNR weights.

    Raises:
        UserError: If it is not positive, or would leave the last step without weight.
    """
    if gamma is None:
        return None
    if not gamma > 0.0:
        raise UserError(f"model.min_snr_gamma: {gamma} is not possible; use 5, or null.")
    if schedule == "zero_snr":
        raise UserError(
            f"model.min_snr_gamma: {gamma} gives the last step of the schedule zero_snr no weight, "
            "so that it would not be learned; use null, or another model.schedule."
        )
    return gamma


@torch.no_grad()
def fit_prior(
    networks: GeneratorInTraining, datamodule: CheXpertDataModule, device: torch.device
) -> None:
    """Fits the latent prior to one sampled latent code of each training image, unless it is.

    With `data.balance_view` images count as often as they are trained on.
    """
    if networks.autoencoder is None or networks.prior is None or networks.prior.fitted:
        return
    noise = torch.Generator().manual_seed(0)
    latents, conditions = [], []
    train = datamodule.rows["train"]
    if datamodule.weights is not None:
        train = train[resample(datamodule.weights, 0.5)]
    for rows in torch.as_tensor(train).split(256):
        batch = datamodule.batch_of(rows.numpy(), device)
        mean, log_variance = networks.autoencoder.network.encode(batch.image)
        eps = torch.randn(mean.shape, generator=noise).to(device)
        latents.append(sample_latent(mean, log_variance, eps))
        conditions.append(batch.condition)
    networks.prior.fit(torch.cat(latents), Condition.cat(conditions))
