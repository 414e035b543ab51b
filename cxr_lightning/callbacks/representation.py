"""RepresentationScores: the score with its calibration, and diversity, of a stage in training."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from lightning import Trainer
from torch import Tensor

from cxr_lightning.artifacts import check_product, load_network
from cxr_lightning.data.vocabulary import HealthCondition
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.metrics.diversity import PairwiseDiversity
from cxr_lightning.metrics.representation_score import (
    COMPARISONS,
    ReconstructedRepresentationScore,
    embed,
    floor_pairs,
    other_patients,
    score_ratios,
)
from cxr_lightning.networks.encoder import Encoder
from cxr_lightning.stages.base import Stage
from cxr_lightning.types import Batch

Rows = Int[np.ndarray, " _"]


def share(trainer: Trainer, rows: Rows, batch_size: int) -> list[Rows]:
    """This process's part of some rows, in batches."""
    mine = rows[trainer.global_rank :: trainer.world_size]
    return [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]


class RepresentationScores:
    """What one encoder says of a generator; every process adds its share, torchmetrics sums up.

    Args:
        folder: Encoder product.
        argument: The argument that named it.
        conditions: Health conditions that count by themselves too.

    Attributes:
        sha256: Of the product.

    Raises:
        UserError: If the product is missing or wrong.
    """

    def __init__(self, folder: Path, argument: str, conditions: list[HealthCondition]) -> None:
        self.sha256: str = check_product(folder, "encoder", argument)["sha256"]
        encoder = load_network(Encoder, folder)
        self.conditions = conditions
        names = [condition.name for condition in conditions]
        self.score = ReconstructedRepresentationScore(encoder, names)
        self.made = PairwiseDiversity(encoder.dim, names)
        self.real = PairwiseDiversity(encoder.dim, names)
        self.calibration: dict[str, Tensor] = {}
        self.calibrated_on = ""

    def to(self, device: torch.device) -> None:
        """Moves networks and sums."""
        for metric in (self.score, self.made, self.real):
            metric.to(device)

    def add_reconstructions(
        self, stage: Stage, batch: Batch, made: Float[Tensor, "b 1 h w"]
    ) -> None:
        """Adds images and their reconstructions, model form."""
        self.score.update(batch.image, made, "rrs", self._member(stage, batch))

    def add_samples(self, stage: Stage, batch: Batch, made: Float[Tensor, "b 1 h w"]) -> None:
        """Adds new images of the conditions of some training images, and these."""
        member = self._member(stage, batch)
        encoder = self.score.encoder.network
        self.made.update(embed(encoder, made), member)
        self.real.update(embed(encoder, batch.image), member)

    def calibrate(
        self, trainer: Trainer, stage: Stage, generator: Generator, rows: Rows, batch_size: int
    ) -> None:
        """Adds what does not change while the denoiser trains, unless it was measured before."""
        if self.calibrated_on != stage.held_out:
            self.calibrated_on, self.calibration = stage.held_out, {}
        if self.calibration or generator.denoiser is None:
            return
        for part in share(trainer, rows, batch_size):
            batch = stage.datamodule.batch_of(part, stage.device)
            for name, pair in floor_pairs(batch.image, batch.index).items():
                self.score.update(*pair, name)
            self.score.update(batch.image, generator.autoencode(batch.image), "rrs_vae")
        for name, group, mine, others in self._partners(stage, rows):
            for part, other in zip(
                share(trainer, mine, batch_size), share(trainer, others, batch_size), strict=True
            ):
                one, two = (stage.datamodule.batch_of(r, stage.device) for r in (part, other))
                member = group.expand(len(part), -1).to(stage.device)
                self.score.update(one.image, two.image, name, member)

    def compute_scores(self) -> dict[str, Tensor]:
        """The scores with their calibration, overall and by condition; begins anew."""
        found = self.calibration | self.score.compute()
        fixed = COMPARISONS[1:]
        self.calibration = {k: v for k, v in found.items() if k.startswith(fixed)}
        self.score.reset()
        return found | score_ratios(found, self.score.groups)

    def compute_diversity(self) -> dict[str, Tensor]:
        """`diversity_<condition>` and `diversity_real_<condition>`; begins anew."""
        found: dict[str, Tensor] = {}
        for name, metric in (("diversity", self.made), ("diversity_real", self.real)):
            found |= {f"{name}_{group}": value for group, value in metric.compute().items()}
            metric.reset()
        return found

    def _partners(
        self, stage: Stage, rows: Rows
    ) -> Iterator[tuple[str, Bool[Tensor, " g"], Rows, Rows]]:
        """Comparison, group, rows, and for each of them a row of another patient."""
        table, held_out = stage.datamodule.prepared.table, stage.datamodule.rows[stage.held_out]
        patients = table["patient"].astype(str).to_numpy(dtype=str)
        of_condition = torch.eye(len(self.conditions), dtype=torch.bool)
        pools = [("rrs_ceil_random", torch.zeros(len(self.conditions), dtype=torch.bool), held_out)]
        for group, condition in zip(of_condition, self.conditions, strict=True):
            shown = condition.matches(table.iloc[held_out])
            pools.append(("rrs_ceil_same", group, held_out[shown]))
        for name, group, pool in pools:
            mine = rows[np.isin(rows, pool)]
            other = other_patients(patients[mine], patients[pool], np.random.default_rng(0))
            if other is not None:
                yield name, group, mine, pool[other]

    def _member(self, stage: Stage, batch: Batch) -> Bool[Tensor, "b g"]:
        """Which conditions each image shows."""
        table = stage.datamodule.prepared.table.iloc[batch.index.cpu().numpy()]
        shown = [torch.from_numpy(c.matches(table)) for c in self.conditions]
        none = torch.zeros(len(batch.index), 0, dtype=torch.bool)
        member = torch.stack(shown, dim=1) if shown else none
        return member.to(batch.image.device)
