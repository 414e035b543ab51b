"""A training that dies at a given step, as by a power cut."""

import os
import signal
from typing import Any

from lightning import Callback, LightningModule, Trainer


class KillAt(Callback):
    """Kills its own process.

    Args:
        step: After this many optimizer steps.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Sends SIGKILL at the step."""
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
