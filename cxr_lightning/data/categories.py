"""Labels to categories: which of K categories each image of the clustering loss belongs to."""

import itertools
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cxr_lightning.data.policies import NO_FINDING, PATHOLOGIES
from cxr_lightning.errors import UserError
from cxr_lightning.types import FIELDS, NOT_ANNOTATED, OBSERVATIONS, Condition

Scheme = Literal["binary", "single", "multi", "view", "sex"]

CATEGORIES: dict[Scheme, tuple[str, ...]] = {
    "binary": ("normal", "abnormal"),
    "single": ("No Finding", *(OBSERVATIONS[i] for i in PATHOLOGIES)),
    "multi": OBSERVATIONS,
    "view": ("AP", "PA"),
    "sex": ("female", "male"),
}
"""Names of the categories of each scheme, in column order."""


def category_weights(condition: Condition, scheme: Scheme) -> Float[Tensor, "b k"]:
    """Share of each image in each category.

    - `binary`: No Finding is normal, any of the 12 pathologies abnormal; images that are said to
      be both, or of which neither is known, are in neither.
    - `single`: images with exactly one of No Finding and the 12 pathologies.
    - `multi`: all 14 observations; an image's weight is shared among those it shows. An uncertain
      one counts as the label policy says (`soft`: by its number; `multi_class`: not at all).
    - `view`, `sex`: AP or PA, female or male.

    Args:
        condition: What is known of the images; the label policies were applied before.
        scheme: How images are divided.

    Returns:
        Rows that sum to 1, or to 0 for an image in no category.
    """
    if scheme in ("view", "sex"):
        column = FIELDS.index("PA" if scheme == "view" else "Male")
        share = condition.value[:, column]
        rows = torch.stack([1.0 - share, share], dim=1)
        return rows * condition.known[:, column, None]
    shown = torch.where(condition.observations_known, condition.observations, 0.0)
    if scheme == "multi":
        return shown / shown.sum(dim=1, keepdim=True).clamp(min=torch.finfo(shown.dtype).tiny)
    normal, pathologies = shown[:, [NO_FINDING]] == 1.0, shown[:, PATHOLOGIES] == 1.0
    if scheme == "binary":
        return _exactly_one(torch.cat([normal, pathologies.any(dim=1, keepdim=True)], dim=1))
    return _exactly_one(torch.cat([normal, pathologies], dim=1))


BANDS = 5
"""Bands of equal numbers of images that a column of many numbers, such as Age, is divided into."""

MOST_VALUES = 50
"""Values that a column may have at most, numbers aside."""

UNKNOWN = ("", "nan", "unknown")
"""Values of a column, in lower case, that are no category."""


def column_weights(
    table: pd.DataFrame, column: str, rows: Int[np.ndarray, " n"], condition: Condition
) -> tuple[tuple[str, ...], Float[Tensor, "m k"]]:
    """Categories from any column of a prepared table, and the share of each image in each.

    Each value is a category; numbers of more than `BANDS` values are divided into bands that hold
    equally many of the images. Of an observation, the categories are absent (0) and present (1);
    an uncertain one counts as the label policy says (`soft`: by its number; `multi_class`: not at
    all). Blank and unknown values are in no category.

    Args:
        table: The prepared table, of m images.
        column: Its column.
        rows: The images that say which categories there are: the training split.
        condition: What is known of the m images; the label policies were applied before.

    Raises:
        UserError: If there is no such column, or it has fewer than 2 or too many values.
    """
    argument = "model.clustering.scheme"
    if column not in table.columns:
        raise UserError(
            f"{argument}: {column!r} is neither a scheme ({', '.join(CATEGORIES)}, kmeans) nor a "
            f"column of the prepared table; use one of these or of {', '.join(table.columns)}."
        )
    names: tuple[str, ...]
    if column in OBSERVATIONS:
        names, weights = ("0.0", "1.0"), _observation_weights(table, column, condition)
        count = int((weights[rows] > 0).any(dim=0).sum())
    else:
        names, weights = _value_weights(table, column, rows)
        count = len(names)
    if not 2 <= count <= MOST_VALUES:
        raise UserError(
            f"{argument}: the column {column!r} has {count} values in the training split; use "
            f"a column of 2 to {MOST_VALUES} values, or of numbers."
        )
    return names, weights


def _observation_weights(
    table: pd.DataFrame, observation: str, condition: Condition
) -> Float[Tensor, "m 2"]:
    """Share of each image in the absence and in the presence of an observation."""
    column = OBSERVATIONS.index(observation)
    stated = table[observation].notna() & (table[observation] != NOT_ANNOTATED)
    known = condition.observations_known[:, column] & torch.tensor(stated.to_numpy())
    share = condition.observations[:, column]
    return torch.stack([1.0 - share, share], dim=1) * known[:, None]


def _value_weights(
    table: pd.DataFrame, column: str, rows: Int[np.ndarray, " n"]
) -> tuple[tuple[str, ...], Float[Tensor, "m k"]]:
    """The values, or bands of numbers, of a column, and the share of each image in each."""
    number = pd.to_numeric(table[column], errors="coerce")
    value = table[column].astype(str).fillna("").str.strip()
    stated = ~value.str.lower().isin(UNKNOWN)
    if number[stated].notna().all() and number.iloc[rows].nunique() > BANDS:
        edges = np.unique(np.nanquantile(number.iloc[rows], np.linspace(0.0, 1.0, BANDS + 1)[1:-1]))
        band = np.searchsorted(edges, number, side="right")
        ends = [f"{edge:g}" for edge in edges]
        between = [f"{low} to {high}" for low, high in itertools.pairwise(ends)]
        spans = [f"below {ends[0]}", *between, f"from {ends[-1]}"]
        value = pd.Series([f"{column} {spans[b]}" for b in band], index=table.index)
        names = tuple(f"{column} {span}" for span in spans)
    else:
        names = tuple(sorted(value.iloc[rows][stated.iloc[rows]].unique()))
    code = pd.Index(names).get_indexer(pd.Index(value.where(stated)))  # -1 where it is none of them
    return names, torch.from_numpy(np.eye(len(names) + 1, dtype=np.float32)[code][:, :-1])


def _exactly_one(positive: Bool[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """Rows with one positive as one-hot rows, the others as zeros."""
    return (positive & (positive.sum(dim=1, keepdim=True) == 1)).float()
