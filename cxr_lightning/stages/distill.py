"""Stage 5, optional: the denoiser is tuned to make images in one to four steps."""

from pathlib import Path
from typing import final

from jaxtyping import Float
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from cxr_lightning.diffusion.consistency import earlier_time, gap_at
from cxr_lightning.diffusion.samplers import Sampling
from cxr_lightning.errors import UserError
from cxr_lightning.losses.consistency import consistency_loss
from cxr_lightning.ranges import check_range
from cxr_lightning.stages.base import Decay, default_optimizer
from cxr_lightning.stages.denoising import DenoisingStage
from cxr_lightning.stages.draws import fixed_draws, random_draws
from cxr_lightning.stages.generator_in_training import Draws
from cxr_lightning.types import Batch, Condition

SAMPLING = Sampling("consistency", steps=2)
"""How the product makes images: a solver of the ODE takes the estimate for a posterior mean."""


@final
class ConsistencyTuning(DenoisingStage):
    """Easy consistency tuning of a generator (Geng et al. 2024, ECT, arXiv 2406.14548).

    The estimate of the clean image at a time t is trained to be that at an earlier time r of the
    same noised image, which has no gradient. The gap between the two halves every `halve_every`
    steps. Without guidance; the VAE and the latent prior stay as they are.

    Args:
        generator: Product of stage 2 or 4 that predicts v.
        image_size: Height and width in pixels (from `data.image_size`).
        halve_every: Steps after which the gap (t - r) / t, 1/2 at first, is halved.
        smallest_gap: Where the halving ends.
        huber: Constant of the Pseudo-Huber distance; 0 for the squared distance.
        text_encoder: Folder of the text encoder (from `data.text_encoder`); the generator's.
        drop_field: Probability, per image and field, that a field of the condition is unknown.
        drop_condition: Probability, per image, that the whole condition is unknown.
        drop_text: Probability, per image, that the text alone is unknown.
        ema_decay: Decay of the moving average of the weights.
        optimizer: Optimizer of the U-Net.
        warmup_steps: Steps of linear learning-rate warm-up.
        decay: Learning rate after warm-up: `constant` or `cosine`.

    Raises:
        UserError: If the product is missing, wrong, of another image size or predicts epsilon, or
            a value is out of its range.
    """

    def __init__(
        self,
        generator: Path,
        image_size: int = 64,
        halve_every: int = 1000,
        smallest_gap: float = 1 / 64,
        huber: float = 0.0,
        text_encoder: Path | None = None,
        drop_field: float = 0.1,
        drop_condition: float = 0.1,
        drop_text: float = 0.2,
        ema_decay: float = 0.999,
        optimizer: OptimizerCallable = default_optimizer,
        warmup_steps: int = 0,
        decay: Decay = "constant",
    ) -> None:
        super().__init__(optimizer, warmup_steps, decay, drop_field, drop_condition, drop_text)
        check_range("model.halve_every", halve_every, 1)
        check_range("model.smallest_gap", smallest_gap, 0, 0.5, above=True)
        check_range("model.huber", huber, 0)
        self.start_from(generator, image_size, text_encoder, ema_decay)
        if self.networks.denoiser.prediction == "epsilon":
            raise UserError(
                f"model.generator: {generator} predicts epsilon, whose errors are divided by "
                "nearly 0 where one step begins; use a generator of "
                "--model.init_args.prediction v."
            )
        self.sampling = SAMPLING
        self.halve_every = halve_every
        self.smallest_gap = smallest_gap
        self.huber = huber

    @property
    def name(self) -> str:
        """Name of the stage."""
        return "distill"

    def compilable(self) -> list[nn.Module]:
        """None: compiled, the two evaluations of a step would draw dropout masks of their own."""
        return []

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """The consistency loss of a batch at the gap of this step."""
        condition = self.drop(batch.condition)
        draws = random_draws(self, self.networks, len(batch.image))
        gap = gap_at(self.global_step, self.halve_every, self.smallest_gap)
        loss = self._loss(batch.image, condition, draws, gap)
        self.log_scalars("train", {"loss": loss, "gap": gap}, len(batch.image))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The loss at the smallest gap with averaged weights, full conditions and fixed noise.

        At one gap, so that epochs compare.
        """
        draws = fixed_draws(batch.index, self.networks, batch.image.shape[-1], self.device)
        loss = self._loss(batch.image, batch.condition, draws, self.smallest_gap, averaged=True)
        self.log_scalars(self.split, {"loss": loss}, len(batch.image))

    def _loss(
        self,
        image: Float[Tensor, "b 1 h w"],
        condition: Condition,
        draws: Draws,
        gap: float,
        *,
        averaged: bool = False,
    ) -> Float[Tensor, ""]:
        earlier = earlier_time(draws.t, gap)
        pair = self.networks.estimates(image, condition, draws, earlier, averaged=averaged)
        a_t = self.networks.alpha_bar[draws.t]
        return consistency_loss(*pair, a_t, draws.t, earlier, self.huber)
