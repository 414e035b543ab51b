"""Stage: what the stages share."""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Shaped
from lightning import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from cxr_lightning.data.datamodule import CheXpertDataModule, Split
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.samplers import Sampling
from cxr_lightning.errors import UserError
from cxr_lightning.ranges import check_range
from cxr_lightning.types import Batch

Decay = Literal["constant", "cosine"]


@dataclass(frozen=True)
class Product:
    """What a stage hands over.

    Attributes:
        kind: `autoencoder`, `generator` or `encoder`.
        networks: Name to network, as `artifacts.save_product` takes them.
        parents: Role to sha256 of each product that this one was made from.
        sampling: Sampler and steps of a generator that was tuned to them.
    """

    kind: str
    networks: Mapping[str, nn.Module]
    parents: Mapping[str, str]
    sampling: Sampling | None = None


class Stage(LightningModule, ABC):
    """A training stage: a loss over networks that end as a product.

    Log keys are `<stage>/<split>/<name>`. Randomness of a training step depends on (seed, step)
    alone, so that a resumed run repeats it; `draw` gives every rank its rows of the global batch's
    draw, so that two processes see the noise that one would. Dropout, which draws within a network,
    has the same masks on every rank.

    Args:
        optimizer: Called with the trainable parameters.
        warmup_steps: Steps of linear learning-rate warm-up.
        decay: Learning rate after warm-up: `constant`, or `cosine` to zero at the last step.

    Attributes:
        earlier_data: sha256 of each set of images that the networks it begins with were trained on.
        ancestors: sha256 of each product that these networks were made from.

    Raises:
        UserError: If there are fewer than 0 steps.
    """

    def __init__(self, optimizer: OptimizerCallable, warmup_steps: int, decay: Decay) -> None:
        super().__init__()
        check_range("model.warmup_steps", warmup_steps, 0)
        self.earlier_data: list[str] = []
        self.ancestors: list[str] = []
        self.optimizer = optimizer
        self.warmup_steps = warmup_steps
        self.decay = decay

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the stage, first part of its log keys."""

    @abstractmethod
    def product(self) -> Product:
        """The networks to hand over, as they are now."""

    def generator(self) -> Generator | None:
        """What makes images from the networks as they are now; None if the stage makes none."""
        return None

    def compilable(self) -> list[nn.Module]:
        """The networks that are trained, and gain from `torch.compile`; none if it would harm."""
        return []

    @property
    def loss_encoder(self) -> str | None:
        """sha256 of the encoder product whose embeddings the loss compares; None without one."""
        return None

    @property
    def datamodule(self) -> CheXpertDataModule:
        """The data module that the trainer runs this stage on."""
        datamodule: CheXpertDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        return datamodule

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds this step's randomness, the same on all ranks."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        entropy = np.random.SeedSequence((seed, self.global_step, batch_idx))
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))

    def draw(
        self, sample: Callable[[int], Shaped[Tensor, "n ..."]], count: int
    ) -> Shaped[Tensor, "count ..."]:
        """Draws for the global batch and returns this rank's `count` rows.

        Args:
            sample: Draws n rows from torch's global random state.
            count: Images on this rank; the same on every rank.
        """
        world = self.trainer.world_size if self._trainer is not None else 1
        rank = self.global_rank if self._trainer is not None else 0
        return sample(world * count)[rank * count : (rank + 1) * count]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes which products the stage was made from, since their weights are not saved."""
        checkpoint["parents"] = dict(self.product().parents)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint that was trained with other products.

        Raises:
            UserError: If one differs.
        """
        now = dict(self.product().parents)
        before = checkpoint.get("parents", now)
        for role in sorted({*before, *now}):
            if before.get(role) != now.get(role):
                raise UserError(
                    f"model.{role}: the checkpoint was trained with another {role} than the one "
                    "given now; give that one, or another --trainer.default_root_dir for a new run."
                )

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """The validation step on the test split; logged as `test`."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_start(self) -> None:
        """What the stage does at the start of a validation."""
        self.on_validation_epoch_start()

    def on_test_epoch_end(self) -> None:
        """What the stage does at the end of a validation."""
        self.on_validation_epoch_end()

    @property
    def split(self) -> str:
        """Which split is being evaluated: `valid` or `test`."""
        return "test" if self.trainer.testing else "valid"

    @property
    def held_out(self) -> Split:
        """Images that are judged: in a test those of the test split, if there are any."""
        has_test = len(self.datamodule.rows["test"]) > 0
        return "test" if self.split == "test" and has_test else "valid"

    def log_scalars(self, split: str, scalars: Mapping[str, Tensor | float], count: int) -> None:
        """Logs `<stage>/<split>/<name>`; validation values are means over all images and ranks."""
        for name, value in scalars.items():
            self.log(
                f"{self.name}/{split}/{name}",
                value,
                # as a float: Lightning rounds a whole number down when it averages over processes
                batch_size=float(count),  # type: ignore[arg-type]
                on_step=split == "train",
                on_epoch=split != "train",
                sync_dist=split != "train",
                prog_bar=name == "loss",
            )

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the gradients by norm or value, also for a fused optimizer under `bf16-mixed`.

        Lightning refuses a fused optimizer there, since it would divide by the scale of the loss
        itself; but in bfloat16 the loss has no scale.
        """
        if not gradient_clip_val or self.trainer.precision != "bf16-mixed":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        plugin = self.trainer.precision_plugin
        by_value = gradient_clip_algorithm == "value"
        clip = plugin.clip_grad_by_value if by_value else plugin.clip_grad_by_norm
        clip(optimizer, gradient_clip_val)

    def configure_optimizers(self) -> Any:
        """The optimizer over the trainable parameters, with warm-up and decay.

        Raises:
            UserError: If a cosine has no last step, or a fused optimizer would have to clip scaled
                gradients.
        """
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        scaled = self.trainer.precision == "16-mixed" and self.trainer.gradient_clip_val
        if scaled and optimizer.defaults.get("fused"):
            raise UserError(
                "trainer.precision: with 16-mixed a fused optimizer takes the scale out of the "
                "gradients itself, too late for trainer.gradient_clip_val; use bf16-mixed, or "
                "--model.init_args.optimizer.init_args.fused false."
            )
        total = max(float(self.trainer.estimated_stepping_batches), 1.0)
        if self.decay == "cosine" and math.isinf(total):
            raise UserError(
                "trainer.max_steps: the learning rate falls along a cosine to the last step, and "
                "there is none; give a number of steps, or --model.init_args.decay constant."
            )

        def factor(step: int) -> float:
            warmup = min((step + 1) / (self.warmup_steps + 1), 1.0)
            cosine = 0.5 * (1.0 + np.cos(np.pi * min(step / total, 1.0)))
            return float(warmup * (cosine if self.decay == "cosine" else 1.0))

        scheduler = LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def default_optimizer(parameters: Any) -> torch.optim.Optimizer:
    """AdamW with learning rate 1e-4, for stages built without a configuration."""
    return torch.optim.AdamW(parameters, lr=1e-4, fused=True)
