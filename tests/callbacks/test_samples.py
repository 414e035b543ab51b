"""Picture grids."""

import numpy as np
import pytest
import torch
from PIL import Image

from cxr_lightning.callbacks.samples import SampleGrid
from cxr_lightning.diffusion.samplers import Sampling
from cxr_lightning.errors import UserError
from cxr_lightning.stages.ddpm import DDPM
from cxr_lightning.stages.vae import VAE


def side(tiles: int) -> int:
    return tiles * (32 + 2) + 2


def pictures(folder) -> dict[str, np.ndarray]:
    return {f.name: np.asarray(Image.open(f)) for f in sorted((folder / "samples").iterdir())}


def test_the_vae_draws_new_images_and_reconstructions(datamodule, quiet_trainer, tmp_path):
    torch.manual_seed(0)
    grid = SampleGrid(count=3, conditions=["healthy", "pneumonia+edema"])
    trainer = quiet_trainer(max_steps=2, val_check_interval=1, callbacks=[grid])
    trainer.fit(VAE(image_size=32, width=4, latent_dim=6), datamodule=datamodule)
    drawn = pictures(tmp_path)
    assert set(drawn) == {
        f"vae-{kind}-000000{step}.png" for kind in ("generated", "reconstructed") for step in (1, 2)
    }
    assert drawn["vae-generated-0000001.png"].shape == (side(2), side(3))
    first, second = np.split(drawn["vae-generated-0000001.png"][1:-1], 2)
    assert not np.array_equal(first, second)  # the prior knows no condition: further images
    # originals and the VAE's images
    assert drawn["vae-reconstructed-0000001.png"].shape == (side(2), side(3))
    original = datamodule.prepared.images[datamodule.rows["valid"][0]]
    assert np.array_equal(drawn["vae-reconstructed-0000001.png"][2:34, 2:34], original)


@pytest.mark.parametrize("form", ["form1", "uncond"])
def test_the_ddpm_adds_the_refined_images(products, datamodule, quiet_trainer, tmp_path, form):
    torch.manual_seed(0)
    shape = {"width": 8, "multipliers": [1], "blocks": 1, "attention": []}
    module = DDPM(products / "autoencoder", 32, form=form, prior="gaussian", **shape)
    grid = SampleGrid(
        count=2, conditions=["edema"], every=2, sampling=Sampling(steps=2, guidance=2.0)
    )
    trainer = quiet_trainer(max_steps=3, val_check_interval=1, callbacks=[grid])
    trainer.fit(module, datamodule=datamodule)
    drawn = pictures(tmp_path)
    kinds = ["generated"] if form == "uncond" else ["generated", "reconstructed"]
    # every second validation, the first included
    assert set(drawn) == {f"ddpm-{k}-000000{step}.png" for k in kinds for step in (1, 3)}
    assert drawn["ddpm-generated-0000001.png"].shape == (side(1), side(2))
    grid.validations = 1  # as from a checkpoint
    (tmp_path / "samples" / "ddpm-generated-0000003.png").unlink()
    trainer.validate(module, datamodule=datamodule, verbose=False)
    assert "ddpm-generated-0000003.png" in pictures(tmp_path)
    if form != "uncond":
        assert drawn["ddpm-reconstructed-0000001.png"].shape == (side(3), side(2))


def test_sanity_check_draws_nothing(datamodule, quiet_trainer, tmp_path):
    trainer = quiet_trainer(
        max_steps=1, num_sanity_val_steps=1, val_check_interval=1, callbacks=[SampleGrid(count=1)]
    )
    trainer.fit(VAE(image_size=32, width=4, latent_dim=6), datamodule=datamodule)
    assert all(name.endswith("0000001.png") for name in pictures(tmp_path))


def test_an_unknown_condition_is_refused_at_once():
    with pytest.raises(UserError, match="'flu'"):
        SampleGrid(conditions=["flu"])


@pytest.mark.parametrize("name", ["count", "every"])
def test_numbers_that_are_not_possible(name):
    with pytest.raises(UserError, match=rf"^samples\.{name}: 0 is not possible; use 1 or more"):
        SampleGrid(**{name: 0})
