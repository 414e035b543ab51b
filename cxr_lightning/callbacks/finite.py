"""FiniteLoss: stops a training whose loss is NaN or infinite, and keeps what led there."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from cxr_lightning.errors import UserError
from cxr_lightning.stages.base import Stage
from cxr_lightning.types import Batch


class FiniteLoss(Callback):
    """Looks at the loss of each step, and stops before broken weights are kept.

    Reading a number from a GPU waits for it, so there the losses are looked at every
    `trainer.log_every_n_steps`, and before anything is saved: no checkpoint holds weights from
    behind such a loss. Rows and paths of the batch go to `nan_batch-rank<r>.json` in the run's
    folder.
    """

    def __init__(self) -> None:
        self.recent: list[tuple[int, Tensor, Tensor]] = []

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Notes the loss of the step; looks at those that are due."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor):
            return
        self.recent.append((trainer.global_step, loss.detach().mean(), batch.index))
        every = 1 if loss.device.type == "cpu" else trainer.log_every_n_steps  # type: ignore[attr-defined]
        if len(self.recent) >= every:
            self._look(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at all losses so far, before a product is written."""
        self._look(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same."""
        self._look(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Looks at all losses so far, before the checkpoint is written."""
        self._look(trainer, pl_module)

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops all processes at the first loss of any of them that is not finite."""
        recent, self.recent = self.recent, []
        if not recent:
            return
        losses = torch.stack([loss for _, loss, _ in recent]).tolist()
        broken = [place for place, loss in enumerate(losses) if not math.isfinite(loss)]
        if not trainer.strategy.reduce_boolean_decision(bool(broken), all=False):
            return
        folder = Path(trainer.default_root_dir)
        step, loss, index = recent[broken[0] if broken else -1]
        if broken:
            file = folder / f"nan_batch-rank{trainer.global_rank}.json"
            _write(file, pl_module, step=step, loss=str(float(loss)), index=index.cpu().tolist())
        raise UserError(
            f"trainer: the loss of step {step} is not finite; the rows of its images are in "
            f"{folder}/nan_batch-rank*.json, look at them, and continue from the last checkpoint "
            "with a lower learning rate, --trainer.gradient_clip_val 1.0 or --trainer.precision "
            "32-true."
        )


def _write(file: Path, stage: LightningModule, step: int, loss: str, index: list[int]) -> None:
    """Step, loss, rows and paths of a batch as JSON."""
    assert isinstance(stage, Stage)
    paths = stage.datamodule.prepared.table["Path"].iloc[index].tolist()
    content = {"step": step, "loss": loss, "index": index, "Path": paths}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n")
