"""A split of a prepared data set as batches: gathered by rows, labels under a policy."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch.utils.data import Dataset

from cxr_lightning.data.policies import (
    BlankPolicy,
    UncertainPolicy,
    apply_policy,
    build_condition,
)
from cxr_lightning.data.prepared import PreparedDataset
from cxr_lightning.types import OBSERVATIONS, Batch, Condition


class Radiographs(Dataset[Batch]):
    """Rows of a prepared data set; an item is a whole batch, gathered at once.

    Args:
        prepared: The prepared data set.
        rows: Rows of its table that belong to this view.
        condition: What is known of every row of the table.
    """

    def __init__(
        self, prepared: PreparedDataset, rows: Int[np.ndarray, " n"], condition: Condition
    ) -> None:
        self.prepared = prepared
        self.rows = rows
        self.condition = condition

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: list[int]) -> Batch:
        """The images at these positions of the view; raw uint8 (b, 1, h, w)."""
        rows = self.rows[positions]
        image = torch.from_numpy(self.prepared.images[rows]).unsqueeze(1)
        index = torch.from_numpy(rows)
        return Batch(image, self.condition.rows(index), index)


def table_condition(
    table: pd.DataFrame,
    uncertain: UncertainPolicy | Mapping[str, UncertainPolicy],
    blank: BlankPolicy,
) -> Condition:
    """What is known of every row of a table with CheXpert columns, under the label policies."""
    raw = table[list(OBSERVATIONS)].to_numpy(dtype=np.float32)
    observations, known = apply_policy(raw, uncertain, blank)
    return build_condition(observations, known, demographics(table))


def demographics(table: pd.DataFrame) -> Float[np.ndarray, "n 3"]:
    """Columns PA (0 AP, 1 PA), Male (0 female, 1 male), Age / 100; NaN where unknown."""
    view = table["AP/PA"].map({"AP": 0.0, "PA": 1.0})
    sex = table["Sex"].map({"Female": 0.0, "Male": 1.0})
    age = pd.to_numeric(table["Age"], errors="coerce").clip(0, 100) / 100.0
    return np.stack([view, sex, age], axis=1).astype(np.float32)
