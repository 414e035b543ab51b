"""A training that dies at a given step, as by a power cut or a scheduler."""

import os
import signal
from typing import Any

from lightning import Callback, LightningModule, Trainer


class KillAt(Callback):
    """Kills its own process.

    Args:
        step: After this many optimizer steps.
        signum: By this signal.
        rank: Of the process, among several.
    """

    def __init__(
        self, step: int, signum: int = int(signal.SIGKILL), rank: int | None = None
    ) -> None:
        self.step = step
        self.signum = signum
        self.rank = rank

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Sends the signal at the step."""
        if trainer.global_step == self.step and self.rank in (None, trainer.global_rank):
            os.kill(os.getpid(), self.signum)
