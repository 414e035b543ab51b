"""Radiographs of patients, drawn from one population, for the privacy axis."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter

from cxr_lightning.data.prepared import PreparedDataset
from cxr_lightning.evaluation.features import FeatureCache
from cxr_lightning.evaluation.inputs import EvaluationInputs, Settings
from cxr_lightning.evaluation.records import AxisResult, Record
from cxr_lightning.evaluation.synthetic import SyntheticSet
from cxr_lightning.metrics.extractors import build_extractor
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS

SIZE, TRAIN, HELD_OUT, NEW = 24, 400, 400, 400
SPACES = ("pixels", "fixed")
JUDGED = {
    "nearer_than_any",
    "closer_to_train",
    "authenticity",
    "data_copying",
    "copy_rate",
    "copy_rate_relative",
    "copied_images",
    "copied_patients",
}
Images = np.ndarray


def smooth_fields(patients: np.ndarray, seed: int) -> Images:
    """Smooth fields; 0.8 of the variance is the patient's, and exposure is the image's."""
    generator = np.random.default_rng(seed)
    _, patient = np.unique(patients, return_inverse=True)

    def fields(count: int) -> np.ndarray:
        raw = gaussian_filter(generator.normal(size=(count, SIZE, SIZE)), (0, 2.5, 2.5))
        return raw / raw.std()

    own = 0.8**0.5 * fields(patient.max() + 1)[patient] + 0.2**0.5 * fields(len(patients))
    exposure = generator.normal(0, 8, (len(patients), 1, 1))
    return np.clip(125 + 30 * own + exposure, 0, 255).round().astype(np.uint8)


def make_table(patients: np.ndarray, split: str) -> pd.DataFrame:
    n = len(patients)
    table = pd.DataFrame({"Path": [f"{split}/{i}.png" for i in range(n)], "split": split})
    table["patient"] = [f"{split}{p}" for p in patients]
    table["Sex"] = np.where(patients % 2 == 0, "Female", "Male")
    table["Age"] = np.where(patients % 3 == 0, 30.0, 70.0)
    labels = dict.fromkeys(OBSERVATIONS, NOT_ANNOTATED)
    return table.assign(**{"Frontal/Lateral": "Frontal", "AP/PA": "PA", "study": "s"}, **labels)


TRAIN_PATIENTS = np.arange(TRAIN) * 4 // 5  # every fifth patient or so has two images
HELD_OUT_PATIENTS = np.arange(HELD_OUT)
EVERYBODY = np.concatenate([TRAIN_PATIENTS, 10_000 + HELD_OUT_PATIENTS, 20_000 + np.arange(NEW)])
IMAGES = smooth_fields(EVERYBODY, seed=0)
"""Training, held-out and new patients' images: one draw from one population."""

COPIES = np.random.default_rng(1).permutation(TRAIN)[:120]


def inputs_maker(folder: Path) -> Callable[..., EvaluationInputs]:
    """Makes the inputs for some synthetic images, with the first images of the held-out split."""
    sets = {"train": TRAIN_PATIENTS, "valid": HELD_OUT_PATIENTS}
    table = pd.concat([make_table(p, s) for s, p in sets.items()], ignore_index=True)

    def inputs(
        synthetic: Images,
        *,
        held_out: int = HELD_OUT,
        train: int = TRAIN,
        patients: list[str] | None = None,
        requested: np.ndarray | None = None,
        **changes: Any,
    ) -> EvaluationInputs:
        rows = np.r_[:train, TRAIN : TRAIN + held_out]
        header = {"size": SIZE, "sha256": f"{train}-{held_out}"}
        real = PreparedDataset(
            folder, header, IMAGES[rows], table.iloc[rows].reset_index(drop=True)
        )
        drawn = make_table(np.arange(len(synthetic)), "train")
        if patients is not None:
            drawn["patient"] = patients
        sha256 = hashlib.sha256(synthetic.tobytes()).hexdigest()
        settings: dict[str, Any] = {
            "real": real,
            "synthetic": SyntheticSet(synthetic, sha256, drawn, requested),
            "conditions": [],
            "extractors": [build_extractor("fixed")],
            "encoders": [],
            "generator": None,
            "classifier": None,
            "reidentification": None,
            "cache": FeatureCache(folder / "cache", 64, torch.device("cpu")),
            "work": folder,
            "settings": Settings(bootstrap=40),
            "device": torch.device("cpu"),
        }
        return EvaluationInputs(**(settings | changes))

    return inputs


def records_of(result: AxisResult, space: str) -> dict[str, Record]:
    """Records over all images of one space by metric."""
    return {
        record.metric: record
        for record in result.records
        if record.source.name == space and (record.condition, record.subgroup) == ("all", "all")
    }
