"""A folder of images with a CSV file of one's own."""

from pathlib import Path
from typing import ClassVar

import pandas as pd

from cxr_lightning.data.sources.base import (
    COLUMNS,
    TABLE_COLUMNS,
    Source,
    arrange,
    parse_numbers,
    read_csv,
    require_columns,
    require_unique_paths,
)
from cxr_lightning.data.sources.files import FolderReader
from cxr_lightning.data.split import SPLITS
from cxr_lightning.errors import UserError

DEFAULTS = {"Sex": "Unknown", "Frontal/Lateral": "Frontal"}
"""What a column that is absent means; all others are blank."""


class FolderSource(Source):
    """Images and a CSV file with at least a path column.

    The other columns are those of `TABLE_COLUMNS` and `report`, in any order and case; what is
    absent is blank, and a view that is not stated is frontal. Without a column `patient`, a
    `patient<digits>` in the path counts, and else each image is a patient of its own.

    Args:
        root: Folder that the paths start from.
        csv: The CSV file; default: the only one in `root`.

    Raises:
        UserError: If the folder or the CSV file is not there.
    """

    name: ClassVar[str] = "folder"

    def __init__(self, root: Path, csv: Path | None = None) -> None:
        """Finds the CSV file."""
        if not root.is_dir():
            raise UserError(f"root: there is no folder {root}; give the folder of the images.")
        self.reader = FolderReader(root)
        self.csv = csv or _only_csv(root)
        if not self.csv.is_file():
            raise UserError(f"csv: there is no file {self.csv}; give one with a path column.")

    def table(self) -> pd.DataFrame:
        """See the base class."""
        table = read_csv(self.csv)
        canonical = {column.lower(): column for column in (*TABLE_COLUMNS, "report")}
        table.columns = pd.Index([canonical.get(c.lower(), c) for c in table.columns])
        require_columns(table, ("Path",), self.csv)
        twice = table.columns[table.columns.duplicated()]
        if len(twice):
            raise UserError(f"csv: {self.csv} names the column {twice[0]} twice; keep one of them.")
        for column in (*COLUMNS, "split"):
            if column not in table.columns:
                table[column] = DEFAULTS.get(column, "")
        table = parse_numbers(table, self.csv)
        require_unique_paths(table, self.csv)
        table["split"] = _splits(table["split"], self.csv)
        if "patient" not in table.columns:
            table["patient"] = table["Path"].str.extract(r"(patient\d+)", expand=False).fillna("")
        if "study" not in table.columns:
            table["study"] = table["Path"].str.extract(r"(study\d+)", expand=False).fillna("study1")
        # No patient is known: the path stands for one.
        table["patient"] = table["patient"].where(table["patient"] != "", table["Path"])
        return arrange(table)


def _only_csv(root: Path) -> Path:
    found = sorted(root.glob("*.csv"))
    if len(found) != 1:
        raise UserError(
            f"csv: {root} holds {len(found)} CSV files; name the one to use with --csv FILE."
        )
    return found[0]


def _splits(split: pd.Series, file: Path) -> pd.Series:
    """Split names in lower case; `val` and `validate` mean `valid`."""
    names = split.str.strip().str.lower().replace({"val": "valid", "validate": "valid"})
    wrong = ~names.isin((*SPLITS, ""))
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise UserError(
            f"csv: {file}, column split, line {row + 2}: {split.iloc[row]!r} is not "
            f"{', '.join(SPLITS)} or blank; correct it."
        )
    return names
