"""CheXpert v1.0, and any data set in its layout.

Read: the small and the full set; batches 2 to 4 of the full set as they unzip (patient folders
without a `train/` level); the CSV files beside or inside the image folder; the root given as the
image folder, as a batch or as the folder above; whatever prefix the `Path` column has.
Irvin et al. 2019, arXiv 1901.07031.
"""

import re
from pathlib import Path
from typing import ClassVar

import pandas as pd

from cxr_lightning.data.sources.base import (
    COLUMNS,
    Source,
    arrange,
    parse_numbers,
    read_csv,
    require_columns,
    require_unique_paths,
)
from cxr_lightning.data.sources.files import RELATIVE, LayoutReader
from cxr_lightning.errors import UserError
from cxr_lightning.types import OBSERVATIONS

SPLIT_FILES = (
    ("train", "train.csv"),
    ("valid", "valid.csv"),
    ("test", "test.csv"),
    ("test", "test_labels.csv"),
)
"""The labels of the test images, released later, may lack sex, age and view."""

BATCH = re.compile(r"\bbatch \d")


class ChexpertSource(Source):
    """Images and CSV files in CheXpert's layout.

    Args:
        root: The image folder, or the folder that holds it.

    Raises:
        UserError: If no CSV file is found, or several data sets.
    """

    name: ClassVar[str] = "chexpert"

    def __init__(self, root: Path) -> None:
        """Finds the CSV files."""
        top = root.parent if BATCH.search(root.name) else root
        self.home = _find_home(root, top)
        batches = sorted(f for f in _folders(top) if BATCH.search(f.name))
        self.reader = LayoutReader((self.home, root, *batches))

    def table(self) -> pd.DataFrame:
        """See the base class; `test` rows may have unknown sex, age and view."""
        files = {s: self.home / n for s, n in reversed(SPLIT_FILES) if (self.home / n).is_file()}
        tables = [self._read(split, file) for split, file in reversed(files.items())]
        table = pd.concat(tables, ignore_index=True)
        require_unique_paths(table, self.home)
        if "valid" not in files:
            table.loc[table["split"] == "train", "split"] = ""
        reports = self.home / "reports.csv"
        if reports.is_file():
            table["report"] = _relative(table["Path"]).map(_read_reports(reports)).fillna("")
        return arrange(table)

    def _read(self, split: str, file: Path) -> pd.DataFrame:
        """One CSV file as a table with all columns."""
        table = read_csv(file)
        require_columns(table, COLUMNS if split != "test" else ("Path", *OBSERVATIONS), file)
        view = table["Path"].str.extract(r"_(frontal|lateral)\.", expand=False).fillna("")
        defaults: dict[str, pd.Series | str] = {
            "Sex": "Unknown",
            "Age": "",
            "Frontal/Lateral": view.str.title(),
            "AP/PA": "",
        }
        for column in defaults.keys() - set(table.columns):
            table[column] = defaults[column]
        table = parse_numbers(table[list(COLUMNS)], file)
        table["patient"] = table["Path"].str.extract(r"(patient\d+)", expand=False)
        table["study"] = table["Path"].str.extract(r"(study\d+)", expand=False).fillna("study1")
        if table["patient"].isna().any():
            path = table["Path"][table["patient"].isna()].iloc[0]
            raise UserError(
                f"root: {file} names {path!r}, which has no patient number (patient00001/...); use "
                "--source folder, which takes a patient column."
            )
        return table.assign(split=split)


def _find_home(root: Path, top: Path) -> Path:
    """The folder of the CSV files: at the root, one level below it, or beside it."""
    if not root.is_dir():
        raise UserError(f"root: there is no folder {root}; give the folder of the data set.")
    if _has_csv(top):
        return top
    below = [folder for folder in _folders(top) if _has_csv(folder)]
    if len(below) > 1:
        raise UserError(
            f"root: {root} holds several data sets ({', '.join(f.name for f in below)}); give one "
            "of these folders."
        )
    if below:
        return below[0]
    if _has_csv(top.parent) and _names_folder(top.parent, top.name):
        return top.parent
    raise UserError(
        f"root: no train.csv, valid.csv or test.csv in {root}, one level below it or beside it; "
        "give the folder of a data set in CheXpert's layout."
    )


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir())


def _has_csv(folder: Path) -> bool:
    return any((folder / name).is_file() for _, name in SPLIT_FILES)


def _names_folder(folder: Path, name: str) -> bool:
    """Whether the paths in the CSV files of `folder` begin with `name`."""
    files = [folder / file for _, file in SPLIT_FILES if (folder / file).is_file()]
    return any(
        read_csv(file).get("Path", pd.Series([""])).str.startswith(f"{name}/").iloc[0]
        for file in files
    )


def _relative(paths: pd.Series) -> pd.Series:
    """Paths from `train/`, `valid/` or `test/` on."""
    return paths.str.extract(RELATIVE, expand=False).fillna(paths)


def _read_reports(file: Path) -> dict[str, str]:
    """Reports by relative path."""
    reports = read_csv(file)
    require_columns(reports, ("Path", "report"), file)
    require_unique_paths(reports, file)
    return dict(zip(_relative(reports["Path"]), reports["report"], strict=True))
