"""GenerationMetrics: FID and representation scores during validation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from cxr_lightning.callbacks.representation import RepresentationScores, Rows, share
from cxr_lightning.data.transforms import to_image
from cxr_lightning.data.vocabulary import parse_condition
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.samplers import Sampling
from cxr_lightning.errors import UserError
from cxr_lightning.metrics.extractors import build_extractor
from cxr_lightning.metrics.fid import frechet_distance
from cxr_lightning.networks.frozen import eval_mode
from cxr_lightning.ranges import check_range
from cxr_lightning.stages.base import Stage

HELD_OUT = "held_out_"
"""What the names of numbers by the held-out encoder begin with."""


class GenerationMetrics(Callback):
    """Frechet distance of new images, representation scores of reconstructions, and diversity.

    `<stage>/valid/fid_<extractor>`: new images, asked for with the conditions of training images,
    against these training images. `<stage>/valid/rrs`: reconstructions of validation images, with
    the calibration (`metrics.representation_score.MEANINGS`), and `rrs_<condition>`,
    `nrrs_<condition>`. `held_out_...`: the same by an encoder that no loss has seen, and
    `held_out_diversity_<condition>`, the mean 1 - cos between new images of a condition, with that
    of the training images beside it (`held_out_diversity_real_<condition>`).

    With a held-out encoder, a stage with an encoder in its loss is measured before its first step
    too: those numbers are logged at step 0.

    Every process makes its share; torchmetrics adds up. The metrics live here and not in the stage,
    so that no extractor's weights get into checkpoints.

    Args:
        extractor: `inception`, `encoder`, `xrv`, `rad_dino`, `module`, `fixed` (a smoke test:
            random features, whose distances mean nothing), or null for no FID.
        weights: Weights of the extractor: an encoder product for `encoder`, else a local file.
        encoder: Encoder product for the representation score; null for none.
        encoder_held_out: Another encoder product, such as one of another seed; null for none.
        conditions: Health conditions that are scored by themselves too.
        count: New images, and at most as many reconstructions.
        batch_size: Images made at once on each process.
        every: Measure at every so many-th validation of a training.
        sampling: Sampler, steps and guidance; reconstructions are made without guidance.

    Attributes:
        measured: Whether the last validation measured.
        start: What was measured before the first step, without the stage's name.

    Raises:
        UserError: If weights are missing, the encoder is not held out, or a number is out of its
            range; at the start, not after an epoch.
    """

    def __init__(
        self,
        extractor: str | None = None,
        weights: Path | None = None,
        encoder: Path | None = None,
        encoder_held_out: Path | None = None,
        conditions: list[str] | None = None,
        count: int = 256,
        batch_size: int = 64,
        every: int = 1,
        sampling: Sampling = Sampling(steps=20),
    ) -> None:
        for name, value in (("count", count), ("batch_size", batch_size), ("every", every)):
            check_range(f"generation.{name}", value, 1)
        self.extractor = None if extractor is None else build_extractor(extractor, weights)
        self.fid = None if self.extractor is None else frechet_distance(self.extractor)
        names = ["healthy", "pneumonia", "pleural_effusion"] if conditions is None else conditions
        parsed = [parse_condition(name) for name in names]
        self.scores: dict[str, RepresentationScores] = {}
        if encoder is not None:
            self.scores[""] = RepresentationScores(encoder, "generation.encoder", parsed)
        if encoder_held_out is not None:
            held_out = RepresentationScores(encoder_held_out, "generation.encoder_held_out", parsed)
            self.scores[HELD_OUT] = held_out
            if encoder is not None:
                _check_held_out(encoder_held_out, held_out.sha256, self.scores[""].sha256)
        self.encoder_held_out = encoder_held_out
        self.count = count
        self.batch_size = batch_size
        self.every = every
        self.sampling = sampling
        self.validations = 0
        self.measured = False
        self.start: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Number of validations, so that a continued run keeps the cadence, and the start."""
        return {"validations": self.validations, "start": self.start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        self.validations = state_dict["validations"]
        self.start = state_dict.get("start", {})  # checkpoints before there was a start

    def watches_held_out(self, stage: Stage) -> bool:
        """Whether the score of the encoder in the stage's loss and of another are measured."""
        generator = stage.generator()
        if generator is None or generator.autoencoder is None or HELD_OUT not in self.scores:
            return False
        return "" in self.scores and self.scores[""].sha256 == stage.loss_encoder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses the encoder of the stage's loss as held out."""
        assert isinstance(pl_module, Stage)
        if self.encoder_held_out is not None:
            sha256 = self.scores[HELD_OUT].sha256
            _check_held_out(self.encoder_held_out, sha256, pl_module.loss_encoder)
            if sha256 in pl_module.ancestors:
                raise UserError(
                    f"generation.encoder_held_out: {self.encoder_held_out} is the encoder of an "
                    "earlier fine-tuning of this generator; give one that was trained with another "
                    "--seed_everything, or null."
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures what a fine-tuning starts from."""
        assert isinstance(pl_module, Stage)
        generator = pl_module.generator()
        if trainer.global_step or generator is None or not self.watches_held_out(pl_module):
            return
        with eval_mode(pl_module):
            found = self._measure(trainer, pl_module, generator)
        self.start = {name: float(value) for name, value in found.items()}
        named = {f"{pl_module.name}/valid/{name}": value for name, value in self.start.items()}
        for logger in trainer.loggers:
            logger.log_metrics(named, step=0)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures and logs."""
        assert isinstance(pl_module, Stage)
        generator = pl_module.generator()
        if trainer.sanity_checking or generator is None:
            return
        self.measured = trainer.state.fn != "fit" or self.validations % self.every == 0
        self.validations += 1
        if not self.measured:
            return
        pl_module.log_scalars(pl_module.split, self._measure(trainer, pl_module, generator), 1)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same measurement, logged as `test`."""
        self.on_validation_epoch_end(trainer, pl_module)

    @torch.no_grad()
    def _measure(self, trainer: Trainer, stage: Stage, generator: Generator) -> dict[str, Tensor]:
        """All numbers by name."""
        with torch.autocast(stage.device.type, enabled=False):
            for scores in self.scores.values():
                scores.to(stage.device)
            found = self._measure_samples(trainer, stage, generator)
            return found | self._measure_reconstructions(trainer, stage, generator)

    def _measure_samples(
        self, trainer: Trainer, stage: Stage, generator: Generator
    ) -> dict[str, Tensor]:
        held_out = self.scores.get(HELD_OUT)
        if self.fid is None and held_out is None:
            return {}
        fid = None if self.fid is None else self.fid.to(stage.device)
        for rows in self._share(trainer, stage, "train"):
            batch = stage.datamodule.batch_of(rows, stage.device)
            made = generator.sample(batch.condition, batch.index, self.sampling)
            if fid is not None:
                fid.update(to_image(batch.image), real=True)
                fid.update(to_image(made), real=False)
            if held_out is not None:
                held_out.add_samples(stage, batch, made)
        found: dict[str, Tensor] = {}
        if fid is not None and self.extractor is not None:
            found[f"fid_{self.extractor.name}"] = fid.compute()
            fid.reset()
        if held_out is not None:
            diversity = held_out.compute_diversity()
            found |= {f"{HELD_OUT}{name}": value for name, value in diversity.items()}
        return found

    def _measure_reconstructions(
        self, trainer: Trainer, stage: Stage, generator: Generator
    ) -> dict[str, Tensor]:
        if not self.scores or generator.autoencoder is None:
            return {}
        plain = replace(self.sampling, guidance=1.0)
        for rows in self._share(trainer, stage, stage.held_out):
            batch = stage.datamodule.batch_of(rows, stage.device)
            made = generator.reconstruct(batch.image, batch.condition, batch.index, plain)
            for scores in self.scores.values():
                scores.add_reconstructions(stage, batch, made)
        found: dict[str, Tensor] = {}
        for prefix, scores in self.scores.items():
            chosen = self._chosen(stage, stage.held_out)
            scores.calibrate(trainer, stage, generator, chosen, self.batch_size)
            found |= {f"{prefix}{name}": v for name, v in scores.compute_scores().items()}
        return found

    def _chosen(self, stage: Stage, split: str) -> Rows:
        """A fixed choice of images."""
        rows = stage.datamodule.rows[split]
        return np.random.default_rng(0).permutation(rows)[: self.count]

    def _share(self, trainer: Trainer, stage: Stage, split: str) -> list[Rows]:
        """This process's part of it, in batches."""
        return share(trainer, self._chosen(stage, split), self.batch_size)


def _check_held_out(folder: Path, sha256: str, used: str | None) -> None:
    if sha256 == used:
        raise UserError(
            f"generation.encoder_held_out: {folder} is the very encoder that it shall be held "
            "against; give one that was trained with another --seed_everything, or null."
        )
