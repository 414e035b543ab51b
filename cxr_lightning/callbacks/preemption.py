"""Preemption: a training that is asked to end saves its step first."""

import signal
import threading
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from cxr_lightning.callbacks.checkpoint import Checkpoint, validation_follows

EXIT_CODE = 128 + signal.SIGTERM


class Preemption(Callback):
    """Ends a training at SIGTERM, as schedulers send it before they take a machine back.

    The step is finished, `last.ckpt` written, and the process ends with exit code 143; the same
    command goes on. One process looks after each step, several at those that are logged, where they
    agree: a signal to any of them counts. Where a validation follows, the step behind it is the
    one. A second SIGTERM ends the process at once. Takes the place of Lightning's handler, which
    talks to other processes from within the signal, and saves nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self.late = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listens; Lightning puts the earlier handler back when the training has ended."""
        self.asked = self.late = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Saves and ends, where it was asked for and no validation is due first.

        Raises:
            SystemExit: With exit code 143.
        """
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        alone = trainer.world_size == 1
        due = alone or self.late or trainer.global_step % max(every, 1) == 0
        if not due or trainer.fit_loop._should_accumulate():
            return
        self.late = validation_follows(trainer)
        if self.late or (alone and not self.asked):
            return
        if not trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, Checkpoint):
                callback.save_now(trainer)
        rank_zero_info(
            f"SIGTERM: saved step {trainer.global_step} and ended; give the same command again."
        )
        raise SystemExit(EXIT_CODE)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.asked:
            raise SystemExit(EXIT_CODE)
        self.asked = True
