"""Another image of the same patient or study, as the second view of an image."""

from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

Positives = Literal["image", "study", "patient"]
"""What a query and its key have in common."""


class Partners:
    """Draws for each image another one of its group.

    Positives of the same patient or study are those of MedAug (Vu et al. 2021, arXiv 2102.10663).

    Args:
        groups: Group of every row of a table.
        rows: Rows that may be drawn: a split, so that no image of another one is seen.
    """

    def __init__(self, groups: Int[np.ndarray, " n"], rows: Int[np.ndarray, " m"]) -> None:
        self.order = rows[np.argsort(groups[rows], kind="stable")]
        _, first, size = np.unique(groups[self.order], return_index=True, return_counts=True)
        self.start, self.size, self.place = (np.zeros(len(groups), np.int64) for _ in range(3))
        self.start[self.order] = np.repeat(first, size)
        self.size[self.order] = np.repeat(size, size)
        self.place[self.order] = np.arange(len(self.order))

    def __call__(
        self, rows: Int[np.ndarray, " b"], draw: Float[np.ndarray, " b"]
    ) -> Int[np.ndarray, " b"]:
        """Another row of the same group, each as likely; the row itself where it has no other.

        Args:
            rows: Of the split.
            draw: Uniform random numbers in [0, 1).
        """
        others = self.size[rows] - 1
        step = 1 + np.minimum((draw * others).astype(np.int64), np.maximum(others - 1, 0))
        place = self.place[rows] - self.start[rows] + np.where(others > 0, step, 0)
        return self.order[self.start[rows] + place % np.maximum(others + 1, 1)]

    @property
    def share(self) -> float:
        """Share of the images that have another one in their group."""
        return float((self.size[self.order] > 1).mean())


def group_codes(table: pd.DataFrame, positives: Positives) -> Int[np.ndarray, " n"]:
    """Group of each row of a prepared table: itself, its study, or its patient."""
    if positives == "image":
        return np.arange(len(table))
    columns = ["patient", "study"] if positives == "study" else ["patient"]
    return table.groupby(columns, sort=False).ngroup().to_numpy().astype(np.int64)
