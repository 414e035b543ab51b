"""WritePredictions: what `cxr predict` leaves behind."""

from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer

from cxr_lightning.errors import UserError
from cxr_lightning.types import Batch


class WritePredictions(Callback):
    """Writes `predictions/rank<r>-batch<n>.npz` into the run folder, one file a batch.

    Each holds `index`, the rows of the prepared table, and `prediction`: reconstructions of stages
    1, 2 and 4 (uint8), embeddings of stage 3 (float). (Lightning's own prediction writer looks for
    row numbers in the loader's sampler; here the batch carries them.)
    """

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Removes the files of an earlier run.

        Raises:
            UserError: If the networks are untrained.
        """
        if not trainer.ckpt_path and not trainer.global_step:
            raise UserError(
                "ckpt_path: null was given, so the networks would be untrained; name a checkpoint "
                f"with --ckpt_path {trainer.default_root_dir}/checkpoints/last.ckpt."
            )
        if trainer.is_global_zero:
            for file in (Path(trainer.default_root_dir) / "predictions").glob("rank*-batch*.npz"):
                file.unlink()
        trainer.strategy.barrier()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes one batch."""
        folder = Path(trainer.default_root_dir) / "predictions"
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(
            folder / f"rank{trainer.global_rank}-batch{batch_idx:05d}.npz",
            index=batch.index.cpu().numpy(),
            prediction=outputs.cpu().numpy(),
        )
