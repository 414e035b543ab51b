"""Checkpoint: the state that an interrupted run goes on from."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class Checkpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which saves after the validation of a step and not before it.

    A run that goes on from a checkpoint made between a step and its validation leaves that
    validation out: a best product or a stop that it would have brought is lost. So where a
    validation follows a step, saving waits for it.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves, unless a validation follows."""
        if not validation_follows(trainer):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what waited for this validation."""
        super().on_train_batch_end(trainer, pl_module, None, None, 0)
        super().on_validation_end(trainer, pl_module)

    def save_now(self, trainer: Trainer) -> None:
        """Writes `last.ckpt` as the run is now, on every process."""
        if self._last_global_step_saved != trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))


def validation_follows(trainer: Trainer) -> bool:
    """Whether Lightning validates after the training batch that has just ended."""
    loop, every = trainer.fit_loop.epoch_loop, trainer.val_check_batch
    if not trainer.enable_validation or every is None:
        return False
    if trainer.check_val_every_n_epoch is None:
        return (loop.total_batch_idx + 1) % every == 0
    if (trainer.current_epoch + 1) % trainer.check_val_every_n_epoch:
        return False
    return loop.batch_progress.is_last_batch or (loop.batch_idx + 1) % every == 0
