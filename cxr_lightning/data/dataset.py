"""A split of a prepared data set as batches: gathered by rows, labels under a policy."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from cxr_lightning.data.policies import LabelPolicy, build_condition
from cxr_lightning.data.prepared import PreparedDataset
from cxr_lightning.errors import UserError
from cxr_lightning.types import OBSERVATIONS, Batch, Condition

BLOCK = 4096
"""Images that are copied to a device at once."""


class Rows(Dataset[Tensor]):
    """Row numbers of a prepared data set; an item is a whole batch of them.

    Args:
        rows: Rows of its table that belong to this view.
    """

    def __init__(self, rows: Int[np.ndarray, " n"]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: list[int]) -> Int[Tensor, " b"]:
        """The rows at these positions of the view."""
        return torch.from_numpy(self.rows[positions])


class ResidentRadiographs:
    """All images of a prepared data set, and what is known of them, on one device.

    Args:
        images: Raw images, as they lie in the memory map.
        condition: What is known of each.
        device: Where they are copied to, block by block.
    """

    def __init__(
        self, images: UInt8[np.ndarray, "n h w"], condition: Condition, device: torch.device
    ) -> None:
        self.images = torch.empty(images.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(images), BLOCK):
            block = np.array(images[start : start + BLOCK])  # the memory map is read-only
            self.images[start : start + BLOCK] = torch.from_numpy(block)
        self.condition = condition.to(device)

    def batch(self, rows: Int[Tensor, " b"]) -> Batch:
        """The images at these rows; raw uint8 (b, 1, h, w)."""
        image = self.images.index_select(0, rows).unsqueeze(1)
        return Batch(image, self.condition.rows(rows), rows)


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
    table: pd.DataFrame, policy: LabelPolicy, probabilities: Path | None = None
) -> Condition:
    """What is known of every row of a table with CheXpert columns, under a label policy.

    Args:
        table: The prepared table.
        policy: What -1 and blank mean.
        probabilities: CSV file for the policy `self_trained`; see `read_probabilities`.
    """
    raw = table[list(OBSERVATIONS)].to_numpy(dtype=np.float32)
    given = None if probabilities is None else read_probabilities(probabilities, table["Path"])
    return build_condition(policy.apply(raw, given), demographics(table))


def read_probabilities(file: Path, paths: pd.Series) -> Float[np.ndarray, "n 14"]:
    """Probabilities of observations, as a model gave them.

    Args:
        file: CSV file with the column Path and one column for each observation that it has.
        paths: The `Path` of each row that is wanted.

    Returns:
        One row a path, in [0, 1]; NaN where the file has none.

    Raises:
        UserError: If the file cannot be read, or a number is not in [0, 1].
    """
    try:
        given = pd.read_csv(file, dtype={"Path": str}).drop_duplicates("Path").set_index("Path")
        columns = given.reindex(index=paths, columns=list(OBSERVATIONS))
        values = columns.to_numpy(dtype=np.float32)
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"data.probabilities: {file} cannot be read ({error}); give a CSV file with a Path "
            "column and one column of numbers an observation."
        ) from error
    wrong = ~np.isnan(values) & ~((values >= 0.0) & (values <= 1.0))
    if wrong.any():
        raise UserError(
            f"data.probabilities: {file} holds {values[wrong][0]:g}, which is not in 0 to 1; give "
            "probabilities."
        )
    return values


def demographics(table: pd.DataFrame) -> Float[np.ndarray, "n 3"]:
    """Columns PA (0 AP, 1 PA), Male (0 female, 1 male), Age / 100; NaN where unknown."""
    view = table["AP/PA"].map({"AP": 0.0, "PA": 1.0})
    sex = table["Sex"].map({"Female": 0.0, "Male": 1.0})
    age = pd.to_numeric(table["Age"], errors="coerce").clip(0, 100) / 100.0
    return np.stack([view, sex, age], axis=1).astype(np.float32)
