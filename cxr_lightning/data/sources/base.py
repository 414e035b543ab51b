"""The interface of a data source."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import pandas as pd
from jaxtyping import UInt8

from cxr_lightning.data.resize import Resize
from cxr_lightning.data.sources.reading import ImageReader
from cxr_lightning.data.sources.tables import PROBLEM
from cxr_lightning.types import OBSERVATIONS

COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *OBSERVATIONS)
"""The columns of a CheXpert CSV."""

TABLE_COLUMNS = (*COLUMNS, "patient", "study", "split")
"""The columns of a prepared table, in order; `report` follows where there is text."""


class Source(ABC):
    """A data set as it lies on disk.

    Attributes:
        name: Its name on the command line.
        origins: Collections whose images it holds, as far as that is known: sets of the same origin
            may hold the same patients.
        inputs: Names and hashes that tell what it reads, where the table does not.
        parallel: Whether several processes may read images, each with a copy of `reader`.
        reader: Gives the grey image of a row by its `Path`, resized where a resize is given; raises
            UnreadableImageError.
    """

    name: ClassVar[str]
    origins: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    parallel: ClassVar[bool] = True
    reader: ImageReader

    @abstractmethod
    def table(self) -> pd.DataFrame:
        """One row an image: `TABLE_COLUMNS`, `PROBLEM` and, where there is text, `report`.

        Observations are float: 1, 0, -1 (uncertain), NaN (not mentioned) or `NOT_ANNOTATED`. Age is
        float with NaN for blank, everything else is text with "" for blank. `PROBLEM` says why a
        row cannot be used; the `Path` of the others is unique. `split` is blank where the data set
        states none.

        Raises:
            UserError: If the data set is not as it should be.
        """

    def image(self, path: str, resize: Resize | None = None) -> UInt8[np.ndarray, "h w"]:
        """The image of one row; see `reader`."""
        return self.reader(path, resize).image


def arrange(table: pd.DataFrame) -> pd.DataFrame:
    """The columns in their order, the report only where there is text."""
    columns = [*TABLE_COLUMNS, PROBLEM]
    if "report" in table.columns and (table["report"] != "").any():
        columns.append("report")
    return table[columns].reset_index(drop=True)
