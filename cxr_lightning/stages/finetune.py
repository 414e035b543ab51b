"""Stage 4: the denoiser is fine-tuned with the representation loss through the frozen encoder."""

from pathlib import Path
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MeanMetric

from cxr_lightning.artifacts import check_product, load_network
from cxr_lightning.errors import UserError
from cxr_lightning.losses.representation import (
    Embed,
    alignment_loss,
    recomputing,
    representation_loss,
    weight_inside,
)
from cxr_lightning.networks.encoder import Encoder
from cxr_lightning.networks.frozen import Frozen, eval_mode
from cxr_lightning.networks.gather import all_ranks
from cxr_lightning.ranges import check_range
from cxr_lightning.stages.base import Decay, default_optimizer
from cxr_lightning.stages.denoising import DenoisingStage, check_gamma
from cxr_lightning.stages.draws import fixed_draws, random_draws
from cxr_lightning.stages.generator_in_training import Denoised, Draws
from cxr_lightning.types import Batch, Condition

Mode = Literal["x0", "reverse", "hidden", "posterior"]

PROBE = 256
"""Validation images, at most, on which the diffusion loss is watched; each process sees all."""

PROBE_BATCH = 32

MOST_RATIO = 0.5
"""Gradient ratio above which the representation loss steers as much as the diffusion loss."""


@final
class Finetune(DenoisingStage):
    """L = L_diffusion + lambda L_representation (the whitepaper's stage 4).

    What L_representation compares with the embedding of the original (`mode`):

    - `x0`: the embedding of the clean image as estimated in one step, gradient through the encoder,
      weighted by alpha_bar and cut at a low signal-to-noise ratio (`representation_loss`). The
      default, with a small weight, since no mode was better than the control (README).
    - `reverse`: the embedding of the image at the end of the reverse process, `reverse_steps` steps
      of DDIM from the noised original, as in sampling. The gradient passes the encoder and the last
      step (as in ReFL, Xu et al. 2023, arXiv 2304.05977, and DRaFT-1, Clark et al. 2023, arXiv
      2309.17400), weighted and cut by that step's alpha_bar.
    - `posterior`: the same as `x0` with a sample of the reverse step, x_{t-1}, in the place of the
      estimate: the literal reading of "reconstructed by the reverse step". The estimate's share of
      x_{t-1} falls quickly with t, so this acts on the last steps, and against what is left of the
      noise there.
    - `hidden`: the pooled feature map in the U-Net's middle, by a small network that is no part of
      the product (`alignment_loss`). No gradient passes the encoder, and all steps count. In pixel
      space such alignment was reported to cost diversity in groups that the encoder draws close
      together (PixelREPA, arXiv 2603.14366), as the clustering of stage 3 does.

    With a weight of 0 the encoder is not used in training: the control of an ablation. Validation
    measures the distance of mode `x0` in every mode, so that modes compare, and the diffusion loss
    on fixed images, noise and steps relative to that of the generator it started from
    (`diffusion_ratio`): well above 1, the fine-tuning takes from the model what it learned.

    Args:
        generator: Product of stage 2.
        encoder: Product of stage 3, frozen here.
        image_size: Height and width in pixels (from `data.image_size`).
        mode: `x0`, `reverse`, `hidden` or `posterior`.
        representation_weight: lambda; 0 for continued training without the loss.
        representation_warmup_steps: Steps over which lambda rises linearly from 0.
        reverse_steps: Steps of the mode `reverse`, 2 or more; a training step takes that many
            evaluations of the denoiser, two of them with a gradient.
        min_snr_gamma: Cut of the Min-SNR weights of the training loss (Hang et al. 2023); null for
            the plain loss.
        text_encoder: Folder of the text encoder (from `data.text_encoder`); the generator's.
        snr_min: Images noised below this signal-to-noise ratio have no representation loss; without
            effect on `hidden`.
        gradient_checkpointing: Whether activations of the U-Net's blocks, and of the encoder, are
            computed again in the backward pass instead of kept: less memory, longer steps.
        drop_field: Probability, per image and field, that a field of the condition is unknown.
        drop_condition: Probability, per image, that the whole condition is unknown.
        drop_text: Probability, per image, that the text alone is unknown.
        ema_decay: Decay of the moving average of the weights.
        optimizer: Optimizer of the U-Net.
        warmup_steps: Steps of linear learning-rate warm-up.
        decay: Learning rate after warm-up: `constant` or `cosine`.

    Raises:
        UserError: If a product is missing, wrong, or of another image size, or a value is out of
            its range.
    """

    def __init__(
        self,
        generator: Path,
        encoder: Path,
        image_size: int = 64,
        mode: Mode = "x0",
        representation_weight: float = 0.003,
        representation_warmup_steps: int = 0,
        reverse_steps: int = 5,
        min_snr_gamma: float | None = None,
        text_encoder: Path | None = None,
        snr_min: float = 0.25,
        gradient_checkpointing: bool = False,
        drop_field: float = 0.1,
        drop_condition: float = 0.1,
        drop_text: float = 0.2,
        ema_decay: float = 0.999,
        optimizer: OptimizerCallable = default_optimizer,
        warmup_steps: int = 0,
        decay: Decay = "constant",
    ) -> None:
        super().__init__(optimizer, warmup_steps, decay, drop_field, drop_condition, drop_text)
        check_range("model.representation_weight", representation_weight, 0)
        check_range("model.representation_warmup_steps", representation_warmup_steps, 0)
        check_range("model.reverse_steps", reverse_steps, 2)
        check_range("model.snr_min", snr_min, 0)
        self.start_from(generator, image_size, text_encoder, ema_decay)
        self.parents["encoder"] = check_product(encoder, "encoder", "model.encoder")["sha256"]
        denoiser = self.networks.denoiser
        denoiser.recompute = gradient_checkpointing  # the average has no backward pass
        self.encoder = Frozen(_load_encoder(encoder, image_size))
        self.gradient_checkpointing = gradient_checkpointing
        self.mode = mode
        self.projector = None
        if mode == "hidden" and representation_weight > 0.0:
            self.projector = projector(denoiser.middle_channels, self.encoder.network.dim)
        self.representation_weight = representation_weight
        self.representation_warmup_steps = representation_warmup_steps
        self.reverse_steps = reverse_steps
        self.min_snr_gamma = check_gamma(min_snr_gamma, denoiser.schedule)
        self.snr_min = snr_min
        self.ratios: list[Tensor] = []
        self.mean_diffusion, self.mean_representation = MeanMetric(), MeanMetric()
        self.warned = False
        self.register_buffer("diffusion_at_start", torch.tensor(float("nan")))
        self.diffusion_at_start: Float[Tensor, ""]

    @property
    def name(self) -> str:
        """Name of the stage."""
        return "finetune"

    @property
    def loss_encoder(self) -> str:
        """sha256 of the encoder product."""
        return self.parents["encoder"]

    def on_fit_start(self) -> None:
        """Measures the diffusion loss on the probe images before the first step."""
        if self.diffusion_at_start.isnan():
            self.diffusion_at_start.copy_(self._probe_diffusion())

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """Diffusion loss plus weighted representation loss of a batch."""
        condition = self.drop(batch.condition)
        draws = random_draws(self, self.networks, len(batch.image))
        denoised = self.networks.denoise(batch.image, condition, draws)
        diffusion = denoised.loss(self.min_snr_gamma)
        scalars = {"loss": diffusion, "diffusion": diffusion}
        if self.representation_weight > 0.0:
            ramp = min((self.global_step + 1) / (self.representation_warmup_steps + 1), 1.0)
            representation = self._representation(batch.image, condition, draws, denoised)
            weighted = self.representation_weight * ramp * representation
            scalars |= {"loss": diffusion + weighted, "representation": representation}
            if self._is_logged_step():
                scalars["gradient_ratio"] = self._gradient_ratio(weighted, diffusion)
                if ramp == 1.0:
                    self.ratios.append(scalars["gradient_ratio"])
        self.log_scalars("train", scalars, len(batch.image))
        return scalars["loss"]

    def on_validation_epoch_start(self) -> None:
        """Begins new means: sums made in inference mode could not be added to in training."""
        self.mean_diffusion = MeanMetric().to(self.device)
        self.mean_representation = MeanMetric().to(self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Both losses with averaged weights, full conditions and fixed noise."""
        denoised = self._denoise_fixed(batch)
        representation = representation_loss(
            self.encoder.network, batch.image, denoised.x0, denoised.a_t, self.snr_min
        )
        weight = weight_inside(denoised.a_t, self.snr_min)
        self.mean_representation.update(representation, weight)
        self.mean_diffusion.update(denoised.loss(), len(batch.image))

    def on_validation_epoch_end(self) -> None:
        """Logs both losses, however images were batched, and the ratio of the probe's.

        That is the diffusion loss on the probe images over that before the first step; a set for
        tests alone has no such images. Warns, once, of a lambda that is too large.
        """
        diffusion: Tensor = self.mean_diffusion.compute()
        representation: Tensor = self.mean_representation.compute().nan_to_num()  # none in the cut
        loss = diffusion + self.representation_weight * representation
        scalars = {"loss": loss, "diffusion": diffusion, "representation": representation}
        self.log_scalars(self.split, scalars, 1)
        can_probe = len(self.datamodule.rows["valid"]) > 0
        if can_probe and not self.diffusion_at_start.isnan():  # NaN without a training
            ratio = self._probe_diffusion() / self.diffusion_at_start
            self.log_scalars(self.split, {"diffusion_ratio": ratio}, 1)
        self._warn_of_weight()

    def _representation(
        self,
        image: Float[Tensor, "b 1 h w"],
        condition: Condition,
        draws: Draws,
        denoised: Denoised,
    ) -> Float[Tensor, ""]:
        """The representation loss of a training batch in the chosen mode."""
        encoder: Embed = self.encoder.network
        if self.projector is not None:
            return alignment_loss(encoder, image, self.projector(denoised.middle))
        if self.gradient_checkpointing:
            encoder = recomputing(encoder)
        reconstruction, a_t = denoised.x0, denoised.a_t
        if self.mode == "reverse":
            reconstruction, a_t = self.networks.reverse(
                denoised, condition, draws, self.reverse_steps
            )
        elif self.mode == "posterior":
            shape = image.shape[1:]
            noise = self.draw(lambda n: torch.randn(n, *shape, device=self.device), len(image))
            reconstruction = denoised.reverse_sample(noise)
        total = all_ranks(weight_inside(a_t, self.snr_min)[None]).mean()
        return representation_loss(encoder, image, reconstruction, a_t, self.snr_min, total)

    def _warn_of_weight(self) -> None:
        """Says which lambda would do, where the gradient ratio was too large; once.

        Not for the mode `hidden`: where that acts, the diffusion loss hardly does.
        """
        known = self.ratios and self.mode != "hidden"
        ratio = float(torch.stack(self.ratios).mean()) if known else 0.0
        if ratio > MOST_RATIO and not self.warned:
            self.warned = True
            rank_zero_warn(
                f"model.representation_weight: at {self.representation_weight:g} the gradient of "
                f"the representation loss is {ratio:.2f} times that of the diffusion loss; lower "
                f"it to about {self.representation_weight * 0.1 / ratio:.1g}, for a ratio of 0.1."
            )
        self.ratios = []

    def _is_logged_step(self) -> bool:
        """Whether Lightning logs at the end of this step."""
        if self._trainer is None:
            return False
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (self.global_step + 1) % every == 0

    def _gradient_ratio(
        self, representation: Float[Tensor, ""], diffusion: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """|grad of the weighted representation loss| / |grad of the diffusion loss|.

        On the weights of the last layer, or of the last convolution in the middle for the mode
        `hidden`, which reaches no later one. Of this process's images: gradients are not averaged
        over processes. Aim at 0.05 to 0.2, but for `hidden`: the diffusion loss has next to no
        gradient in the middle.
        """
        denoiser = self.networks.denoiser
        last = denoiser.head if self.projector is None else denoiser.last_middle_conv
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()  # or float16 would lose small ones
        norms = [
            torch.autograd.grad(scale * loss, last.weight, retain_graph=True)[0].float().norm()
            for loss in (representation, diffusion)
        ]
        return norms[0] / norms[1].clamp(min=torch.finfo(torch.float32).tiny)

    def _denoise_fixed(self, batch: Batch) -> Denoised:
        """One evaluation with averaged weights, full conditions, noise and steps by image."""
        draws = fixed_draws(batch.index, self.networks, batch.image.shape[-1], self.device)
        return self.networks.denoise(batch.image, batch.condition, draws, averaged=True)

    @torch.no_grad()
    def _probe_diffusion(self) -> Float[Tensor, ""]:
        """Diffusion loss on a fixed choice of held-out images; the same on every process.

        They are validation images in a test too, since the loss at the start is that of these.
        """
        rows = self.datamodule.rows["valid"]
        chosen = np.random.default_rng(0).permutation(rows)[:PROBE]
        parts = np.array_split(chosen, range(PROBE_BATCH, len(chosen), PROBE_BATCH))
        with eval_mode(self):
            batches = (self.datamodule.batch_of(part, self.device) for part in parts)
            return torch.cat([self._denoise_fixed(batch).error for batch in batches]).mean()


def projector(channels: int, dim: int) -> nn.Sequential:
    """Maps a feature map to the dimension of the embedding: mean over pixels, three-layer MLP.

    With SiLU between the layers, as in REPA.

    Args:
        channels: Of the feature map (b, channels, h, w).
        dim: Of the result (b, dim).
    """
    hidden = 2 * channels
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, dim),
    )


def _load_encoder(folder: Path, image_size: int) -> Encoder:
    encoder = load_network(Encoder, folder)
    if encoder.image_size != image_size:
        raise UserError(
            f"model.encoder: {folder} was trained on images of {encoder.image_size} pixels, but "
            f"data.image_size is {image_size}; train one with 'cxr fit --config configs/moco.yaml' "
            f"on images of {image_size} pixels."
        )
    return encoder
