"""The interface of a data source, and what its CSV files have in common."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from jaxtyping import UInt8

from cxr_lightning.data.resize import Resize
from cxr_lightning.data.sources.reading import ImageReader
from cxr_lightning.errors import UserError
from cxr_lightning.types import OBSERVATIONS

COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *OBSERVATIONS)
"""The columns of a CheXpert CSV."""

TEXT_COLUMNS = ("Path", "Sex", "Frontal/Lateral", "AP/PA", "patient", "study", "split")

TABLE_COLUMNS = (*COLUMNS, "patient", "study", "split")
"""The columns of a source's table, in order; `report` follows where there is text."""

LABELS = (1.0, 0.0, -1.0)
"""Positive, negative, uncertain; not mentioned is blank."""


class Source(ABC):
    """A data set as it lies on disk.

    Attributes:
        name: Its name on the command line.
        parallel: Whether several processes may read images, each with a copy of `reader`.
        reader: Gives the grey image of a row by its `Path`, resized where a resize is given; raises
            UnreadableImageError.
    """

    name: ClassVar[str]
    parallel: ClassVar[bool] = True
    reader: ImageReader

    @abstractmethod
    def table(self) -> pd.DataFrame:
        """One row an image, columns `TABLE_COLUMNS` and, where there is text, `report`.

        Observations and Age are float with NaN for blank, everything else is text with "" for
        blank. `Path` is unique. `split` is blank where the data set states none.

        Raises:
            UserError: If the data set is not as it should be.
        """

    def image(self, path: str, resize: Resize | None = None) -> UInt8[np.ndarray, "h w"]:
        """The image of one row; see `reader`."""
        return self.reader(path, resize)


def read_csv(file: Path) -> pd.DataFrame:
    """Reads a CSV file as text, blank as ""; spaces around column names are dropped.

    Raises:
        UserError: If it is missing, not a CSV, or has no rows.
    """
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except pd.errors.EmptyDataError:
        table = pd.DataFrame()
    except (OSError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise UserError(f"root: {file} cannot be read as a CSV file ({error}).") from error
    if table.empty:
        raise UserError(f"root: {file} has no rows; give a CSV file with one row an image.")
    table.columns = table.columns.str.strip()
    return table


def require_columns(table: pd.DataFrame, columns: Iterable[str], file: Path) -> None:
    """Raises a UserError that names the columns that are missing."""
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise UserError(
            f"root: {file} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; add "
            "them or leave them blank."
        )


def parse_numbers(table: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Observations and Age of a table of text as float, blank as NaN.

    Raises:
        UserError: Naming file, column, line and value, if a label is not 1, 0, -1 or blank, or an
            age is not a number.
    """
    table = table.copy()
    for column in ("Age", *OBSERVATIONS):
        text = table[column].str.strip()
        number = pd.to_numeric(text, errors="coerce").astype(float)
        wrong = number.isna() & (text.str.lower() != "nan") & (text != "")
        if column != "Age":
            wrong |= number.notna() & ~number.isin(LABELS)
        if wrong.any():
            row = int(wrong.to_numpy().argmax())
            expected = "a number" if column == "Age" else "1, 0, -1"
            raise UserError(
                f"root: {file}, column {column}, line {row + 2}: {text.iloc[row]!r} is not "
                f"{expected} or blank; correct it."
            )
        table[column] = number
    return table


def require_unique_paths(table: pd.DataFrame, file: Path) -> None:
    """Raises a UserError if two rows name the same image."""
    twice = table["Path"].duplicated()
    if twice.any():
        path = table["Path"][twice].iloc[0]
        raise UserError(f"root: {file} names {path} twice; keep one row an image.")


def arrange(table: pd.DataFrame) -> pd.DataFrame:
    """The columns in their order, the report last and only where there is text."""
    columns = list(TABLE_COLUMNS)
    if "report" in table.columns and (table["report"] != "").any():
        columns.append("report")
    return table[columns].reset_index(drop=True)
