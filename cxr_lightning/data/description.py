"""What is in a prepared data set: counts of its table, and a look at its pixels."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int, UInt8

from cxr_lightning.data.policies import LabelPolicy, Preset, UncertainPolicy
from cxr_lightning.data.prepared import PreparedDataset, hash_image
from cxr_lightning.data.vocabulary import CONDITIONS, HealthCondition, parse_condition
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS

DESCRIBED = [*CONDITIONS.values(), parse_condition("pneumonia+pleural_effusion")]
"""Every single health condition, and the usual example of several findings at once."""

POLICIES: tuple[UncertainPolicy | Preset, ...] = ("ignore", "zeros", "ones", "common")
"""Policies for uncertain labels whose effect is counted. `soft` and `self_trained` know as many
labels as `ones`, `multi_class` as many as `ignore`."""

NEAR_CONSTANT = 4.0
"""Standard deviation of the grey values below which an image shows nothing; radiographs have 30 to
90."""

BLOCK_BYTES = 2**25
"""Of images that are looked at at once."""


def count_observations(table: pd.DataFrame) -> pd.DataFrame:
    """One row an observation: how often each raw label stands in a table."""
    raw = table[list(OBSERVATIONS)]
    return pd.DataFrame(
        {
            "positive": (raw == 1.0).sum(),
            "negative": (raw == 0.0).sum(),
            "uncertain": (raw == -1.0).sum(),
            "not mentioned": raw.isna().sum(),
            "not annotated": (raw == NOT_ANNOTATED).sum(),
        }
    )


def count_policies(table: pd.DataFrame) -> pd.DataFrame:
    """One row an observation: positive / negative labels under each of `POLICIES`.

    Blank labels are unknown, but in the last column: `ignore` with `blank: negative`. What the
    definition of No Finding implies is counted too.
    """
    raw = table[list(OBSERVATIONS)].to_numpy(dtype=np.float32)
    policies = {str(name): LabelPolicy(name) for name in POLICIES}
    policies["blank negative"] = LabelPolicy("ignore", "negative")
    columns = {}
    for name, policy in policies.items():
        labels = policy.apply(raw)
        positive = (labels.known & (labels.value == 1.0)).sum(axis=0)
        negative = (labels.known & (labels.value == 0.0)).sum(axis=0)
        columns[name] = [f"{p}/{n}" for p, n in zip(positive, negative, strict=True)]
    return pd.DataFrame(columns, index=list(OBSERVATIONS))


def count_conditions(
    table: pd.DataFrame, conditions: Sequence[HealthCondition] = DESCRIBED
) -> pd.DataFrame:
    """One row a health condition: images by view, patients, and its definition.

    The share of PA is among the images whose view is AP or PA; NaN where none is. View is the
    strongest factor in chest radiographs: where the shares differ between conditions, a model can
    tell the view instead of the disease (`data.balance_view`).
    """
    view = table["AP/PA"].where(table["AP/PA"].isin(["AP", "PA"]), "other")
    rows = {}
    for condition in conditions:
        shown = condition.matches(table)
        counts = view[shown].value_counts()
        ap, pa = int(counts.get("AP", 0)), int(counts.get("PA", 0))
        rows[condition.name] = {
            "images": int(shown.sum()),
            "AP": ap,
            "PA": pa,
            "other": int(counts.get("other", 0)),
            "PA share": pa / (ap + pa) if ap + pa else float("nan"),
            "patients": int(table["patient"][shown].nunique()),
            "definition": condition.definition,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def count_splits(table: pd.DataFrame) -> pd.DataFrame:
    """One row a split: images and patients."""
    groups = table.groupby("split")["patient"]
    return pd.DataFrame({"images": groups.size(), "patients": groups.nunique()})


def summarise_ages(table: pd.DataFrame) -> dict[str, float | int]:
    """Quantiles of the known ages in years, and how many are unknown."""
    known = table["Age"].dropna()
    summary: dict[str, float | int] = {"unknown": len(table) - len(known)}
    if len(known):
        names = ("youngest", "lower quartile", "median", "upper quartile", "oldest")
        quantiles = np.quantile(known, [0.0, 0.25, 0.5, 0.75, 1.0])
        summary |= dict(zip(names, quantiles.tolist(), strict=True))
    return summary


def count_shown(table: pd.DataFrame) -> tuple[dict[str, int], dict[str, int]]:
    """Images that show each observation, and their patients."""
    rows = {observation: table[observation] == 1.0 for observation in OBSERVATIONS}
    images = {observation: int(shown.sum()) for observation, shown in rows.items()}
    patients = {o: int(table["patient"][shown].nunique()) for o, shown in rows.items()}
    return images, patients


def describe_training(prepared: PreparedDataset) -> dict[str, Any]:
    """What a model that is trained on a prepared data set has seen, without its paths.

    The ages are quartiles alone: the oldest patient of a set can be known by the age.
    """
    table = prepared.table[prepared.table["split"] == "train"]
    ages = summarise_ages(table)
    quartiles = ("lower quartile", "median", "upper quartile")
    return {
        "source": prepared.header["source"],
        "origins": prepared.header["origins"],
        "size": prepared.size,
        "resize": prepared.header["resize"],
        "images": len(table),
        "patients": int(table["patient"].nunique()),
        "views": _counts(table["AP/PA"]),
        "projections": _counts(table["Frontal/Lateral"]),
        "sexes": _counts(table["Sex"]),
        "ages": {name: float(ages[name]) for name in quartiles if name in ages},
    }


def _counts(column: pd.Series) -> dict[str, int]:
    counts = column.replace("", "unknown").value_counts()
    return {str(value): int(count) for value, count in counts.items()}


def find_duplicates(images: UInt8[np.ndarray, "n h w"]) -> list[list[int]]:
    """Rows with the same pixels, at the prepared size, in groups of two or more."""
    groups: dict[bytes, list[int]] = {}
    for start, block in _blocks(images):
        for offset, image in enumerate(block):
            groups.setdefault(hash_image(image), []).append(start + offset)
    return [rows for rows in groups.values() if len(rows) > 1]


def find_near_constant(images: UInt8[np.ndarray, "n h w"]) -> Int[np.ndarray, " m"]:
    """Rows of images that show nothing: standard deviation below `NEAR_CONSTANT`."""
    empty: list[Bool[np.ndarray, " b"]] = [
        block.std(axis=(1, 2), dtype=np.float32) < NEAR_CONSTANT for _, block in _blocks(images)
    ]
    return np.flatnonzero(np.concatenate(empty))


def describe_duplicates(table: pd.DataFrame, groups: list[list[int]]) -> dict[str, Any]:
    """How many duplicates there are, and how many groups cross patients or splits."""
    patients, splits = table["patient"].to_numpy(), table["split"].to_numpy()
    return {
        "groups": len(groups),
        "images": sum(len(rows) for rows in groups),
        "groups across patients": sum(len(set(patients[rows])) > 1 for rows in groups),
        "groups across splits": sum(len(set(splits[rows])) > 1 for rows in groups),
        "paths": [table["Path"].iloc[rows].tolist() for rows in groups],
    }


def _blocks(images: UInt8[np.ndarray, "n h w"]) -> Iterator[tuple[int, np.ndarray]]:
    """Consecutive images in memory, with the row of the first."""
    size = max(BLOCK_BYTES // max(images[:1].nbytes, 1), 1)
    for start in range(0, len(images), size):
        yield start, np.ascontiguousarray(images[start : start + size])
