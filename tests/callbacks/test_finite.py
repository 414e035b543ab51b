"""A loss that is not finite stops the training, names its images and spoils no checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from cxr_lightning.callbacks.finite import FiniteLoss
from cxr_lightning.data.datamodule import CheXpertDataModule
from cxr_lightning.errors import UserError
from cxr_lightning.stages.vae import VAE
from cxr_lightning.types import Batch


class Breaking(VAE):  # type: ignore[misc]  # VAE is final; only its loss differs
    """Its loss is NaN in the third step."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.rows = batch.index.tolist()
        return loss * torch.nan if self.global_step == 2 else loss


@pytest.mark.filterwarnings("ignore:.*")
def test_stops_with_the_rows_of_the_batch_and_keeps_whole_checkpoints(
    prepared: Path, tmp_path: Path
) -> None:
    stage = Breaking(image_size=32, width=4, latent_dim=4)
    saving = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=0)
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_steps": 5,
    }
    trainer = Trainer(callbacks=[FiniteLoss(), saving], default_root_dir=tmp_path, **quiet)
    data = CheXpertDataModule(prepared, batch_size=4, image_size=32)
    with pytest.raises(UserError, match="loss of step 3 is not finite.*learning rate"):
        trainer.fit(stage, datamodule=data)
    content = json.loads((tmp_path / "nan_batch-rank0.json").read_text())
    assert content["index"] == stage.rows
    assert content["step"] == 3
    assert content["loss"] == "nan"
    assert content["Path"] == data.prepared.table["Path"].iloc[stage.rows].tolist()
    kept = torch.load(tmp_path / "last.ckpt")
    assert kept["global_step"] == 2
    assert all(
        torch.isfinite(t).all() for t in kept["state_dict"].values() if t.is_floating_point()
    )
