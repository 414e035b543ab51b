"""What the axes of an evaluation share: both sets, the networks, the settings."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32, Int, Shaped
from torch import Tensor

from cxr_lightning.data.prepared import PreparedDataset
from cxr_lightning.data.vocabulary import HealthCondition
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.evaluation.features import FeatureCache
from cxr_lightning.evaluation.records import OVERALL, Source
from cxr_lightning.evaluation.synthetic import SyntheticSet
from cxr_lightning.metrics.extractors import Extractor
from cxr_lightning.networks.encoder import Encoder

RealSplit = Literal["all", "train", "valid", "test", "held_out"]
"""Splits of the prepared set; `held_out` is valid and test together."""

AGE_BANDS = (0, 20, 40, 60, 80, 200)
"""Edges of the age bands of the subgroups, in years."""


@dataclass(frozen=True)
class Settings:
    """What the user chose.

    Attributes:
        split: Split of the real images that fidelity is measured against.
        reconstructions: Held-out images a condition to reconstruct, at most.
        bootstrap: Draws of each interval; 0 = no intervals.
        batch_size: Images that a network sees at once.
        seed: Of every random choice.
        classifier_steps: Training steps of the built-in classifier.
        utility_seeds: Classifiers trained for each setting of the utility axis.
        utility_fractions: Shares of the real training patients that the utility axis trains on.
        false_positives: Share of real images of other patients that the copy test may flag.
    """

    split: RealSplit = "all"
    reconstructions: int = 64
    bootstrap: int = 200
    batch_size: int = 64
    seed: int = 0
    classifier_steps: int = 600
    utility_seeds: int = 3
    utility_fractions: tuple[float, ...] = (0.1, 1.0)
    false_positives: float = 0.01


SAME_MIX = 0.05
"""Total variation of the shares of conditions up to which sets are compared as a whole."""


@dataclass(frozen=True)
class Group:
    """Images that belong together on both sides.

    Attributes:
        condition: Name of the health condition, or `all`.
        subgroup: `all`, `view=PA`, ...
        real: Rows of the prepared table.
        synthetic: Rows of the synthetic set.
    """

    condition: str
    subgroup: str
    real: Int[np.ndarray, " n"]
    synthetic: Int[np.ndarray, " m"]

    @property
    def is_measured_whole(self) -> bool:
        """Whether every metric is made: of all patients and of each view, the strongest factor."""
        return self.subgroup == OVERALL or self.subgroup.startswith("view=")


@dataclass(frozen=True)
class ScoreEncoder:
    """An encoder of the representation score.

    Attributes:
        network: The encoder, in eval mode.
        source: What a record says of it.
        in_loss: Whether the generator was fine-tuned with it.
    """

    network: Encoder
    source: Source
    in_loss: bool = False


@dataclass(frozen=True)
class EvaluationInputs:
    """All that an axis of the evaluation may use; every part is checked before.

    Attributes:
        real: The prepared data set.
        synthetic: The synthetic data set, of the same image size.
        conditions: What to evaluate; empty where the synthetic set has no labels.
        extractors: For fidelity and privacy, one or more.
        encoders: For the representation score: none, one, or one and another that is held out.
        generator: For the representation score, or None.
        classifier: A classifier that was given for condition fidelity, or None.
        reidentification: A model that compares two images, or None.
        cache: Features on disk.
        work: Folder for what an axis wants to keep between interrupted runs.
        settings: What the user chose.
        device: Where the networks run.
    """

    real: PreparedDataset
    synthetic: SyntheticSet
    conditions: list[HealthCondition]
    extractors: list[Extractor]
    encoders: list[ScoreEncoder]
    generator: Generator | None
    classifier: Path | None
    reidentification: Path | None
    cache: FeatureCache
    work: Path
    settings: Settings
    device: torch.device

    @property
    def made_by_generator(self) -> bool:
        """Whether the synthetic images are known to be of this very generator."""
        if self.generator is None:
            return False
        return self.generator.manifest["sha256"] == self.synthetic.product_sha256

    @cached_property
    def real_patients(self) -> Shaped[np.ndarray, " n"]:
        """Patient of each row of the prepared table."""
        return self.real.table["patient"].astype(str).to_numpy(dtype=str)

    def split_rows(self, split: RealSplit) -> Int[np.ndarray, " n"]:
        """Rows of the prepared table in a split."""
        if split == "all":
            return np.arange(len(self.real.table))
        wanted = ("valid", "test") if split == "held_out" else (split,)
        return np.flatnonzero(self.real.table["split"].isin(wanted))

    def real_rows(
        self, condition: HealthCondition, split: RealSplit | None = None
    ) -> Int[np.ndarray, " n"]:
        """Rows of the prepared table that show a condition, in a split (default: the setting)."""
        rows = np.flatnonzero(condition.matches(self.real.table))
        return np.intersect1d(rows, self.split_rows(split or self.settings.split))

    def groups(self) -> list[Group]:
        """All images, those of each condition, and those of each view, sex and age band.

        The real side of `all` is the union of the conditions, or the whole split where the
        synthetic set has no labels. A subgroup is there where both sides state it.
        """
        parts = [
            Group(c.name, OVERALL, self.real_rows(c), np.flatnonzero(self.synthetic.matches(c)))
            for c in self.conditions
        ]
        if parts:
            real = np.unique(np.concatenate([part.real for part in parts]))
            synthetic = np.unique(np.concatenate([part.synthetic for part in parts]))
        else:
            real = self.split_rows(self.settings.split)
            synthetic = np.arange(len(self.synthetic.images))
        whole = Group(OVERALL, OVERALL, real, synthetic)
        conditions = parts if len(parts) > 1 or not parts else []
        if len(parts) == 1:  # its numbers would be those of the whole
            whole = Group(parts[0].condition, OVERALL, real, synthetic)
        return [*conditions, whole, *self._subgroups(whole)]

    @cached_property
    def other_mix(self) -> str:
        """What to say where real and synthetic images mix the conditions otherwise; or nothing.

        Their shares are compared by the total variation distance.
        """
        if len(self.conditions) < 2:
            return ""
        counts = [
            np.array([len(self.real_rows(c)), int(self.synthetic.matches(c).sum())], dtype=float)
            for c in self.conditions
        ]
        real, synthetic = (np.stack(counts) / np.maximum(np.sum(counts, axis=0), 1.0)).T
        if 0.5 * np.abs(real - synthetic).sum() <= SAME_MIX:
            return ""
        parts = [
            f"{c.name} {of_synthetic:.0%} for {of_real:.0%}"
            for c, of_real, of_synthetic in zip(self.conditions, real, synthetic, strict=True)
        ]
        return (
            f"conditions are mixed otherwise than in the real images ({', '.join(parts)}), which "
            "alone sets them apart: not compared, see each condition"
        )

    def _subgroups(self, whole: Group) -> Iterator[Group]:
        """The parts of a group by view, sex and age band that both sides have.

        A subgroup that is the whole group on both sides is left out.
        """
        real = subgroups(self.real.table)
        synthetic = subgroups(self.synthetic.table)
        for name in real:
            rows = np.intersect1d(whole.real, real[name])
            drawn = np.intersect1d(whole.synthetic, synthetic[name])
            part = len(rows) < len(whole.real) or len(drawn) < len(whole.synthetic)
            if part and len(rows) and len(drawn):
                yield Group(whole.condition, name, rows, drawn)

    def real_features(
        self, extractor: Extractor, rows: Int[np.ndarray, " k"]
    ) -> Float32[Tensor, "k f"]:
        """Features of real images, on the device."""
        title = f"{extractor.name}: real images"
        real = self.real
        found = self.cache.features(extractor, real.images, real.sha256, rows, title)
        return found.to(self.device)

    def synthetic_features(
        self, extractor: Extractor, rows: Int[np.ndarray, " k"]
    ) -> Float32[Tensor, "k f"]:
        """Features of synthetic images, on the device."""
        title = f"{extractor.name}: synthetic images"
        drawn = self.synthetic
        found = self.cache.features(extractor, drawn.images, drawn.sha256, rows, title)
        return found.to(self.device)


def source_of(extractor: Extractor) -> Source:
    """What a record says of an extractor."""
    return Source(extractor.name, extractor.sha256, extractor.preprocessing)


def subgroups(table: pd.DataFrame) -> dict[str, Int[np.ndarray, " n"]]:
    """Rows of a prepared table by view, sex and age band; what is not stated is in none."""
    age = table["Age"].to_numpy(dtype=float)
    parts = {
        "view=AP": table["AP/PA"] == "AP",
        "view=PA": table["AP/PA"] == "PA",
        "view=Lateral": table["Frontal/Lateral"] == "Lateral",
        "sex=Female": table["Sex"] == "Female",
        "sex=Male": table["Sex"] == "Male",
    }
    rows = {name: np.flatnonzero(part) for name, part in parts.items()}
    for low, high in pairwise(AGE_BANDS):
        name = f"age={low}-{high - 1}" if high != AGE_BANDS[-1] else f"age={low}+"
        rows[name] = np.flatnonzero((age >= low) & (age < high))
    return rows
