"""SampleGrid: pictures of what the stage makes, to the logger."""

from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from cxr_lightning.callbacks.logger import log_picture
from cxr_lightning.data.sheet import contact_sheet
from cxr_lightning.data.transforms import to_image
from cxr_lightning.data.vocabulary import parse_condition
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.samplers import Sampling
from cxr_lightning.ranges import check_range
from cxr_lightning.stages.base import Stage
from cxr_lightning.types import Batch


class SampleGrid(Callback):
    """After validation: a grid of new images, and one of reconstructions.

    New images: a row a health condition; stage 1 knows none, so its rows are all different images
    of the standard normal prior. Reconstructions: a column an image; originals, the VAE's
    image and the refined image below one another. The seeds are fixed, so grids of different steps
    show the same images growing.

    Args:
        count: Images in a row.
        conditions: Health conditions, a row each.
        every: Draw at every so many-th validation of a training.
        sampling: Sampler, steps and guidance; reconstructions are made without guidance.

    Raises:
        UserError: If a number is out of its range, or a condition is unknown.
    """

    def __init__(
        self,
        count: int = 8,
        conditions: list[str] | None = None,
        every: int = 1,
        sampling: Sampling = Sampling(steps=20),
    ) -> None:
        names = ["healthy", "pneumonia", "pleural_effusion"] if conditions is None else conditions
        check_range("samples.count", count, 1)
        check_range("samples.every", every, 1)
        self.conditions = [parse_condition(name) for name in names]
        self.count = count
        self.every = every
        self.sampling = sampling
        self.validations = 0

    def state_dict(self) -> dict[str, int]:
        """How many validations there were, so that a continued run keeps the cadence."""
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Goes on counting."""
        self.validations = state_dict["validations"]

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the grids on the first process."""
        assert isinstance(pl_module, Stage)
        generator = pl_module.generator()
        if trainer.sanity_checking or generator is None:
            return
        due = trainer.state.fn != "fit" or self.validations % self.every == 0
        self.validations += 1
        if not due or not trainer.is_global_zero:
            return
        rows = pl_module.datamodule.rows["valid"][: self.count]
        batch = pl_module.datamodule.batch_of(rows, pl_module.device)
        pictures = {"generated": self._generated(generator)}
        if generator.autoencoder is not None:
            pictures["reconstructed"] = self._reconstructed(generator, batch)
        folder = Path(trainer.default_root_dir) / "samples"
        for name, images in pictures.items():
            key = f"{pl_module.name}/{name}"
            columns = self.count if name == "generated" else len(rows)
            picture = contact_sheet(to_image(images), columns)
            log_picture(trainer.loggers, folder, key, picture, trainer.global_step)

    def _generated(self, generator: Generator) -> Float[Tensor, "n 1 h w"]:
        rows = []
        for row, condition in enumerate(self.conditions):
            request = condition.request(self.count).to(generator.device)
            first = row * self.count if generator.denoiser is None else 0
            index = torch.arange(first, first + self.count)
            rows.append(generator.sample(request, index, self.sampling))
        return torch.cat(rows)

    def _reconstructed(self, generator: Generator, batch: Batch) -> Float[Tensor, "n 1 h w"]:
        rows = [batch.image, generator.autoencode(batch.image)]
        if generator.denoiser is not None:
            plain = replace(self.sampling, guidance=1.0)
            rows.append(generator.reconstruct(batch.image, batch.condition, batch.index, plain))
        return torch.cat(rows)
