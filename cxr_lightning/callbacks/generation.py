"""GenerationMetrics: FID and representation score during validation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer

from cxr_lightning.artifacts import check_product, load_network
from cxr_lightning.data.transforms import to_image
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.samplers import Sampling
from cxr_lightning.metrics.extractors import build_extractor
from cxr_lightning.metrics.fid import frechet_distance
from cxr_lightning.metrics.representation_score import ReconstructedRepresentationScore
from cxr_lightning.networks.encoder import Encoder
from cxr_lightning.stages.base import Stage


class GenerationMetrics(Callback):
    """Frechet distance of new images and representation score of reconstructions.

    `<stage>/valid/fid_<extractor>`: new images, asked for with the conditions of training images,
    against these training images. `<stage>/valid/rrs`: reconstructions of validation images. Every
    process makes its share; torchmetrics adds up. The metrics live here and not in the stage, so
    that no extractor's weights get into checkpoints.

    Args:
        extractor: `inception`, `encoder`, `fixed` (a smoke test), or null for no FID.
        weights: Weights of the extractor: a local file for `inception`, an encoder product for
            `encoder`.
        encoder: Encoder product for the representation score; null for none.
        count: New images, and at most as many reconstructions.
        batch_size: Images made at once on each process.
        every: Measure at every so many-th validation.
        sampling: Sampler, steps and guidance; reconstructions are made without guidance.

    Raises:
        UserError: If weights are missing; at the start, not after an epoch.
    """

    def __init__(
        self,
        extractor: str | None = None,
        weights: Path | None = None,
        encoder: Path | None = None,
        count: int = 256,
        batch_size: int = 64,
        every: int = 1,
        sampling: Sampling = Sampling(steps=20),
    ) -> None:
        self.extractor = None if extractor is None else build_extractor(extractor, weights)
        self.fid = None if self.extractor is None else frechet_distance(self.extractor)
        self.score = None
        if encoder is not None:
            check_product(encoder, "encoder", "generation.encoder")
            self.score = ReconstructedRepresentationScore(load_network(Encoder, encoder))
        self.count = count
        self.batch_size = batch_size
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
        """Measures and logs."""
        assert isinstance(pl_module, Stage)
        generator = pl_module.generator()
        if trainer.sanity_checking or generator is None:
            return
        self.validations += 1
        if (self.validations - 1) % self.every:
            return
        with torch.autocast(pl_module.device.type, enabled=False):
            self._measure_fid(trainer, pl_module, generator)
            self._measure_score(trainer, pl_module, generator)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same measurement, logged as `test`."""
        self.validations = 0
        self.on_validation_epoch_end(trainer, pl_module)

    def _measure_fid(self, trainer: Trainer, stage: Stage, generator: Generator) -> None:
        if self.fid is None or self.extractor is None:
            return
        fid = self.fid.to(stage.device)
        for rows in self._share(trainer, stage, "train"):
            batch = stage.datamodule.batch_of(rows, stage.device)
            made = generator.sample(batch.condition, batch.index, self.sampling)
            fid.update(to_image(batch.image), real=True)
            fid.update(to_image(made), real=False)
        stage.log(f"{stage.name}/{stage.split}/fid_{self.extractor.name}", fid.compute())
        fid.reset()

    def _measure_score(self, trainer: Trainer, stage: Stage, generator: Generator) -> None:
        if self.score is None or generator.autoencoder is None:
            return
        score = self.score.to(stage.device)
        plain = replace(self.sampling, guidance=1.0)
        for rows in self._share(trainer, stage, "valid"):
            batch = stage.datamodule.batch_of(rows, stage.device)
            made = generator.reconstruct(batch.image, batch.condition, batch.index, plain)
            score.update(batch.image, made)
        stage.log(f"{stage.name}/{stage.split}/rrs", score.compute())
        score.reset()

    def _share(self, trainer: Trainer, stage: Stage, split: str) -> list[np.ndarray]:
        """This process's rows of a fixed choice of images, in batches."""
        rows = stage.datamodule.rows[split]
        chosen = np.random.default_rng(0).permutation(rows)[: self.count]
        mine = chosen[trainer.global_rank :: trainer.world_size]
        return [mine[i : i + self.batch_size] for i in range(0, len(mine), self.batch_size)]
