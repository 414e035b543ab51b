"""Pace: how fast a training goes, and its learning rate, to the logger."""

import time
from collections import deque
from typing import Any

from lightning import Callback, LightningModule, Trainer

from cxr_lightning.stages.base import Stage
from cxr_lightning.types import Batch


class Pace(Callback):
    """Logs `<stage>/train/images_per_second` of all processes, and `<stage>/train/learning_rate`.

    The mean over the steps since the logger was last written to, without validations. A GPU is not
    waited for, so that nothing is slowed down: writing to the logger does that already.
    """

    def __init__(self) -> None:
        self.ends: deque[float] = deque(maxlen=2)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        self.ends = deque([time.perf_counter()], maxlen=max(every, 1) + 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts it anew."""
        self.ends.clear()
        self.ends.append(time.perf_counter())

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Logs; Lightning passes it on to the logger at some of the steps."""
        assert isinstance(pl_module, Stage)
        self.ends.append(time.perf_counter())
        images = len(batch.image) * trainer.world_size * (len(self.ends) - 1)
        rate = images / max(self.ends[-1] - self.ends[0], 1e-9)
        learning_rate = trainer.optimizers[0].param_groups[0]["lr"]
        scalars = {"images_per_second": rate, "learning_rate": learning_rate}
        pl_module.log_scalars("train", scalars, len(batch.image))
