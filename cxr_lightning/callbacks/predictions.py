"""WritePredictions: what `cxr predict` leaves behind."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from cxr_lightning.types import Batch


class WritePredictions(BasePredictionWriter):
    """Writes `predictions/rank<r>-batch<n>.npz` into the run folder, one file a batch.

    Each holds `index`, the rows of the prepared table, and `prediction`: reconstructions of stages
    1, 2 and 4 (uint8), embeddings of stage 3 (float).
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Writes one batch."""
        folder = Path(trainer.default_root_dir) / "predictions"
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(
            folder / f"rank{trainer.global_rank}-batch{batch_idx:05d}.npz",
            index=batch.index.cpu().numpy(),
            prediction=prediction.cpu().numpy(),
        )
