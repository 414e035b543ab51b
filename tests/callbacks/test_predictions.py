import numpy as np
import pytest

from cxr_lightning.callbacks.predictions import WritePredictions
from cxr_lightning.errors import UserError
from cxr_lightning.stages.finetune import Finetune


def test_predictions_need_a_checkpoint_and_replace_earlier_ones(
    products, datamodule, quiet_trainer, tmp_path
):
    module = Finetune(products / "generator", products / "encoder", image_size=32)
    run = quiet_trainer(callbacks=[WritePredictions()])
    with pytest.raises(UserError, match="--ckpt_path"):
        run.predict(module, datamodule=datamodule)
    run.strategy.connect(module)
    run.save_checkpoint(tmp_path / "c.ckpt", weights_only=True)
    folder = tmp_path / "predictions"
    folder.mkdir()
    for name in ("rank3-batch00099.npz", "notes.npz"):
        np.savez(folder / name)
    run.predict(module, datamodule=datamodule, ckpt_path=tmp_path / "c.ckpt", weights_only=False)
    names = {file.name for file in folder.iterdir()}
    assert {"rank0-batch00000.npz", "notes.npz"} <= names
    assert "rank3-batch00099.npz" not in names
