"""Stage 2: the DDPM refines the VAE's reconstruction (DiffuseVAE)."""

from pathlib import Path
from typing import final

from jaxtyping import Float
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from cxr_lightning.artifacts import ancestors, check_product, load_network, training_sets
from cxr_lightning.data.text_encoder import TextEncoder
from cxr_lightning.diffusion.priors import LatentPrior, PriorKind
from cxr_lightning.errors import UserError
from cxr_lightning.networks.autoencoder import Autoencoder
from cxr_lightning.networks.gather import first_rank
from cxr_lightning.networks.unet import Denoiser, Form, Prediction, Schedule
from cxr_lightning.ranges import check_range
from cxr_lightning.stages.base import Decay, default_optimizer
from cxr_lightning.stages.denoising import DenoisingStage, check_gamma, fit_prior
from cxr_lightning.stages.draws import fixed_draws, random_draws
from cxr_lightning.stages.generator_in_training import GeneratorInTraining
from cxr_lightning.types import Batch


@final
class DDPM(DenoisingStage):
    """Noise prediction given the VAE image and the health condition.

    DiffuseVAE (Pandey et al. 2022, arXiv 2201.00308): the VAE is frozen, x_hat is the decoding of
    a sampled latent code. The weights that are validated and handed over are their moving average.

    Args:
        autoencoder: Product of stage 1; null only for `form: uncond`.
        image_size: Height and width in pixels (from `data.image_size`).
        width: Channels of the U-Net at full resolution.
        multipliers: Channels of each level, as multiples of `width`.
        blocks: Residual blocks a level.
        attention: Feature-map heights in pixels that get self-attention.
        form: `form1` (x_hat shown beside x_t), `form2` (chain shifted by x_hat), `uncond`.
        prior: Where latent codes of new images come from: `normal`, `gaussian`, `mixture`, `flow`,
            see `LatentPrior`; without effect for `uncond`.
        show_latent: Whether the U-Net is shown the latent code of x_hat too, with the time.
        text_encoder: Folder of the text encoder of reports and prompts (from `data.text_encoder`).
        prediction: `epsilon` or `v`.
        schedule: `linear`, `cosine` or `zero_snr`.
        timesteps: Number of diffusion steps.
        dropout: Dropout probability in the residual blocks.
        min_snr_gamma: Cut of the Min-SNR weights of the training loss (Hang et al. 2023); null for
            the plain loss.
        drop_field: Probability, per image and field, that a field of the condition is unknown.
        drop_condition: Probability, per image, that the whole condition is unknown.
        drop_text: Probability, per image, that the text alone is unknown.
        drop_reconstruction: Probability, per image, that x_hat is unknown.
        ema_decay: Decay of the moving average of the weights.
        optimizer: Optimizer of the U-Net.
        warmup_steps: Steps of linear learning-rate warm-up.
        decay: Learning rate after warm-up: `constant` or `cosine`.

    Raises:
        UserError: If the autoencoder's product is missing, wrong, or of another image size, the
            latent prior cannot look at texts, or a value is out of its range or has no effect.
    """

    def __init__(
        self,
        autoencoder: Path | None,
        image_size: int = 64,
        width: int = 128,
        multipliers: list[int] = [1, 2, 2, 2],  # noqa: B006
        blocks: int = 2,
        attention: list[int] = [16],  # noqa: B006
        form: Form = "form1",
        prior: PriorKind = "flow",
        show_latent: bool = False,
        text_encoder: Path | None = None,
        prediction: Prediction = "v",
        schedule: Schedule = "linear",
        timesteps: int = 1000,
        dropout: float = 0.0,
        min_snr_gamma: float | None = None,
        drop_field: float = 0.1,
        drop_condition: float = 0.1,
        drop_text: float = 0.2,
        drop_reconstruction: float = 0.0,
        ema_decay: float = 0.9995,
        optimizer: OptimizerCallable = default_optimizer,
        warmup_steps: int = 0,
        decay: Decay = "constant",
    ) -> None:
        super().__init__(optimizer, warmup_steps, decay, drop_field, drop_condition, drop_text)
        if form == "uncond" and (show_latent or drop_reconstruction):
            raise UserError(
                "model.form: uncond has no latent code and no x_hat, which model.show_latent and "
                "model.drop_reconstruction are about; leave these out, or use form1 or form2."
            )
        self.parents: dict[str, str] = {}
        network = self._load_autoencoder(autoencoder, form, image_size)
        text_dim = self._load_text_encoder(text_encoder, form, prior)
        denoiser = Denoiser(
            image_size=image_size,
            width=width,
            multipliers=multipliers,
            blocks=blocks,
            attention=attention,
            form=form,
            prediction=prediction,
            schedule=schedule,
            timesteps=timesteps,
            dropout=dropout,
            latent_dim=network.latent_dim if network is not None and show_latent else 0,
            text_dim=text_dim,
        )
        latent = None
        if network is not None:
            latent = LatentPrior(latent_dim=network.latent_dim, kind=prior, text_dim=text_dim)
        self.networks = GeneratorInTraining(denoiser, network, ema_decay, latent)
        self.min_snr_gamma = check_gamma(min_snr_gamma, schedule)
        check_range("model.drop_reconstruction", drop_reconstruction, 0, 1)
        self.drop_reconstruction = drop_reconstruction

    @property
    def name(self) -> str:
        """Name of the stage."""
        return "ddpm"

    def on_fit_start(self) -> None:
        """Fits the latent prior to the training images; the same on every rank."""
        fit_prior(self.networks, self.datamodule, self.device)
        if self.networks.prior is not None:  # kernels of one device may round differently
            for value in self.networks.prior.state_dict().values():
                first_rank(value)

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """Mean squared error of the predicted noise, conditions dropped image by image."""
        count = len(batch.image)
        condition = self.drop(batch.condition)
        draws = random_draws(self, self.networks, count, self.drop_reconstruction)
        loss = self.networks.denoise(batch.image, condition, draws).loss(self.min_snr_gamma)
        self.log_scalars("train", {"loss": loss}, count)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The same loss with averaged weights, full conditions and fixed noise."""
        size = batch.image.shape[-1]
        draws = fixed_draws(batch.index, self.networks, size, self.device)
        loss = self.networks.denoise(batch.image, batch.condition, draws, averaged=True).loss()
        self.log_scalars(self.split, {"loss": loss}, len(batch.image))

    def _load_text_encoder(self, folder: Path | None, form: Form, prior: PriorKind) -> int:
        """Columns of the text embeddings; 0 without a text encoder."""
        if folder is None:
            return 0
        if form != "uncond" and prior != "flow":
            raise UserError(
                f"model.prior: {prior} does not look at texts, so that x_hat would contradict "
                "them; use flow, or leave data.text_encoder out."
            )
        encoder = TextEncoder(folder, "data.text_encoder", device="cpu")  # for its width alone
        self.parents["text_encoder"] = encoder.sha256
        return encoder.dimension

    def _load_autoencoder(
        self, folder: Path | None, form: Form, image_size: int
    ) -> Autoencoder | None:
        if form == "uncond":
            return None
        if folder is None:
            raise UserError(
                f"model.autoencoder: none was given, but model.form {form!r} needs the product of "
                "stage 1; give its folder, or use model.form uncond."
            )
        manifest = check_product(folder, "autoencoder", "model.autoencoder")
        self.parents["autoencoder"] = manifest["sha256"]
        self.earlier_data = training_sets(manifest)
        self.ancestors = ancestors(manifest)
        network = load_network(Autoencoder, folder)
        if network.image_size != image_size:
            raise UserError(
                f"model.autoencoder: {folder} makes images of {network.image_size} pixels, but "
                f"data.image_size is {image_size}; use an autoencoder of that size."
            )
        return network
