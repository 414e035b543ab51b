"""Images with a bright blob for each thing that is there, and evaluation inputs made of them.

Pneumonia: upper right. Pleural effusion: lower left. PA: upper left. Male: lower right. Age: the
brightness of the centre.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cxr_lightning.data.prepared import PreparedDataset
from cxr_lightning.data.vocabulary import parse_condition
from cxr_lightning.evaluation.features import FeatureCache
from cxr_lightning.evaluation.inputs import EvaluationInputs, Settings
from cxr_lightning.evaluation.synthetic import SyntheticSet
from cxr_lightning.types import OBSERVATIONS

SIZE = 16
PNEUMONIA, EFFUSION = OBSERVATIONS.index("Pneumonia"), OBSERVATIONS.index("Pleural Effusion")
CONDITIONS = ("healthy", "pneumonia", "pleural_effusion", "pneumonia+pleural_effusion")
PLACES = {"Pneumonia": (4, 11), "Pleural Effusion": (11, 4), "PA": (4, 4), "Male": (11, 11)}
CPU = torch.device("cpu")


def draw(table: pd.DataFrame, seed: int, strength: float = 90.0) -> np.ndarray:
    """An image of each row: what is 1, and noise that hides it a little."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE]

    def blob(row: float, column: float) -> np.ndarray:
        return np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 5.0)

    there = {
        "Pneumonia": table["Pneumonia"] == 1.0,
        "Pleural Effusion": table["Pleural Effusion"] == 1.0,
        "PA": table["AP/PA"] == "PA",
        "Male": table["Sex"] == "Male",
    }
    images = generator.normal(80.0, 15.0, (len(table), SIZE, SIZE))
    for name, place in PLACES.items():
        images += strength * there[name].to_numpy()[:, None, None] * blob(*place)
    age = table["Age"].fillna(50.0).to_numpy()
    images += 1.2 * age[:, None, None] * blob(7.5, 7.5)
    return images.clip(0, 255).round().astype(np.uint8)


def blank_table(count: int, split: str, name: str) -> pd.DataFrame:
    """Rows of a prepared table of which nothing is known; two images a patient."""
    patients = [f"{name}{i // 2:05d}" for i in range(count)]
    columns: dict[str, Any] = {
        "Path": [f"{name}/{i:05d}.png" for i in range(count)],
        "Sex": "Unknown",
        "Age": np.nan,
        "Frontal/Lateral": "Frontal",
        "AP/PA": "",
        **dict.fromkeys(OBSERVATIONS, np.nan),
        "patient": patients,
        "study": "study1",
        "split": split,
    }
    return pd.DataFrame(columns)


def real_table(count: int, split: str, seed: int) -> pd.DataFrame:
    """Findings, views, sexes and ages at random."""
    generator = np.random.default_rng(seed)
    table = blank_table(count, split, split)
    pneumonia, effusion = generator.random((2, count)) < 0.5
    table["Pneumonia"] = pneumonia.astype(float)
    table["Pleural Effusion"] = effusion.astype(float)
    table["No Finding"] = np.where(pneumonia | effusion, np.nan, 1.0)
    table["AP/PA"] = generator.choice(["AP", "PA"], count)
    table["Sex"] = generator.choice(["Female", "Male"], count)
    table["Age"] = generator.integers(20, 90, count).astype(float)
    return table


def requested_table(each: int, names: tuple[str, ...] = CONDITIONS) -> pd.DataFrame:
    """What `cxr generate` writes for so many images of each condition."""
    table = blank_table(each * len(names), "train", "synthetic")
    table["patient"] = [f"synthetic{i:05d}" for i in range(len(table))]
    for i, name in enumerate(names):
        condition = parse_condition(name)
        rows = range(i * each, (i + 1) * each)
        table.loc[rows, list(condition.present)] = 1.0
        table.loc[rows, list(condition.absent)] = 0.0
    return table


def requested_names(each: int, names: tuple[str, ...] = CONDITIONS) -> np.ndarray:
    """The condition of each of these images."""
    return np.repeat(names, each)


def make_inputs(
    work: Path,
    synthetic: SyntheticSet,
    *,
    train: int = 160,
    valid: int = 120,
    strength: float = 90.0,
    conditions: tuple[str, ...] = CONDITIONS,
    classifier: Path | None = None,
    **settings: Any,
) -> EvaluationInputs:
    """Evaluation inputs of blob images."""
    table = pd.concat(
        [real_table(train, "train", 1), real_table(valid, "valid", 2)], ignore_index=True
    )
    header = {"sha256": f"real-{train}-{valid}-{strength}", "size": SIZE}
    work = work / f"{train}-{strength}"  # an evaluation's folder keeps one classifier
    work.mkdir(parents=True, exist_ok=True)
    chosen = {"bootstrap": 60, "classifier_steps": 60, **settings}
    return EvaluationInputs(
        real=PreparedDataset(work, header, draw(table, 3, strength), table),
        synthetic=synthetic,
        conditions=[parse_condition(name) for name in conditions],
        extractors=[],
        encoders=[],
        generator=None,
        classifier=classifier,
        reidentification=None,
        cache=FeatureCache(work / "features", 64, CPU),
        work=work,
        settings=replace(Settings(), **chosen),
        device=CPU,
    )


def synthetic_set(
    each: int = 40, seed: int = 5, strength: float = 90.0, shown: pd.DataFrame | None = None
) -> SyntheticSet:
    """Synthetic images of each condition that show what was requested, or what `shown` says."""
    table = requested_table(each)
    images = draw(table if shown is None else shown, seed, strength)
    return SyntheticSet(images, f"synthetic-{each}-{seed}", table, requested_names(each))
