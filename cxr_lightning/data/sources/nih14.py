"""NIH ChestX-ray14 (Wang et al. 2017, arXiv 1705.02315).

Read: `Data_Entry_2017_v2020.csv` or the older `Data_Entry_2017.csv`; the images in `images_001` to
`images_012`, each with or without a folder `images` inside, in `images`, or beside the CSV file;
the official split, `train_val_list.txt` and `test_list.txt`.

The older file writes ages with a unit (`058Y`, `011M`, `001D`), some of them impossible (`412Y`),
and its header, not its rows, ends in a comma.
"""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Bool

from cxr_lightning.data.sources.base import Source, arrange
from cxr_lightning.data.sources.files import FolderReader
from cxr_lightning.data.sources.nih_labels import NIH_LABELS, map_nih
from cxr_lightning.data.sources.tables import (
    PROBLEM,
    find_csv,
    flag,
    flag_repeated_paths,
    read_csv,
    require_columns,
)
from cxr_lightning.errors import UserError
from cxr_lightning.types import OBSERVATIONS

CSV_NAMES = ("Data_Entry_2017_v2020", "Data_Entry_2017")

COLUMNS = (
    "Image Index",
    "Finding Labels",
    "Follow-up #",
    "Patient ID",
    "Patient Age",
    "Patient Gender",
    "View Position",
)
"""The columns that are read; some versions say `Patient Sex`."""

TRAIN_LIST, TEST_LIST = "train_val_list.txt", "test_list.txt"

NO_FINDING = "No Finding"

NUMBER = r"\d{1,9}"
AGE = r"^(\d+(?:\.\d+)?)([YMWD]?)$"
YEARS = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365, "D": 1 / 365}
"""Length of a unit of age in years."""

MAX_AGE = 120


class Nih14Source(Source):
    """The images that the CSV file names, all frontal.

    The official test split is kept, and the validation split is drawn from the other patients;
    without the two lists no split is stated. An image in neither list goes with its patient. An age
    above 120 years counts as unknown. The labels are text-mined; see `map_nih`.

    Args:
        root: Folder of the CSV file.

    Raises:
        UserError: If the CSV file is not there.
    """

    name: ClassVar[str] = "nih14"
    origins = ("NIH ChestX-ray14",)

    def __init__(self, root: Path) -> None:
        """Finds the CSV file and the folders of the images."""
        self.root = root
        self.csv = find_csv(root, *CSV_NAMES)
        folders = (*sorted(root.glob("images*/images")), *sorted(root.glob("images*")), root)
        self.reader = FolderReader(tuple(folder for folder in folders if folder.is_dir()))

    def table(self) -> pd.DataFrame:
        """See the base class; the study is the number of the follow-up, from 1."""
        table = _read_entries(self.csv)
        table = flag_repeated_paths(table.assign(Path=table["Image Index"].str.strip()))
        table = _with_people(table)
        found, problems = read_findings(table["Finding Labels"])
        table = flag(table, problems != "", problems)
        table[list(OBSERVATIONS)] = map_nih(found)
        view = table["View Position"].str.strip().str.upper()
        table["Frontal/Lateral"] = "Frontal"
        table["AP/PA"] = view.where(view.isin(["AP", "PA"]), "")
        return arrange(_with_split(table, self.root))


def read_findings(cells: pd.Series) -> tuple[Bool[np.ndarray, "n 14"], pd.Series]:
    """Which of the `NIH_LABELS` cells such as `Effusion|Mass` name, and what is wrong with each."""
    codes, texts = pd.factorize(cells)
    names = [[name.strip() for name in str(text).split("|")] for text in texts]
    found = np.array([[label in parts for label in NIH_LABELS] for parts in names])
    problems = np.array([_problem(parts) for parts in names], dtype=object)
    return found[codes], pd.Series(problems[codes], index=cells.index, dtype=str)


def _problem(names: list[str]) -> str:
    """What is wrong with the labels of one image; blank if nothing is."""
    for name in names:
        if name not in (*NIH_LABELS, NO_FINDING):
            return f"{name!r} is not a label of NIH ChestX-ray14"
    if NO_FINDING in names and len(names) > 1:
        return f"{NO_FINDING} stands beside other labels"
    return ""


def _read_entries(file: Path) -> pd.DataFrame:
    """The CSV file; a nameless last column is dropped, and no row needs to have it."""
    table = read_csv(file).rename(columns={"Patient Sex": "Patient Gender"})
    require_columns(table, COLUMNS, file)
    if "" not in table.columns:
        return table
    *named, last = [column for column in table.columns if column != PROBLEM]
    if last != "":
        return table
    extra = table[last] != ""
    complete = (table[named[-1]] != "") & ~extra
    table = table.assign(**{PROBLEM: table[PROBLEM].mask(complete, "")})
    return flag(table, extra, "more cells than columns with a name").drop(columns=last)


def _with_people(table: pd.DataFrame) -> pd.DataFrame:
    """Adds patient, study, sex and age."""
    for column in ("Patient ID", "Follow-up #"):
        text = table[column].str.strip()
        wrong = ~text.str.fullmatch(NUMBER)
        table = flag(table, wrong, column + " is '" + table[column] + "', not a number")
        table = table.assign(**{column: text.mask(wrong, "0").astype(int)})
    text = table["Patient Age"].str.strip().str.upper()
    parts = text.str.extract(AGE)
    table = flag(
        table,
        parts[0].isna() & (text != ""),
        "Patient Age is '" + table["Patient Age"] + "', not a number of years",
    )
    age = parts[0].astype(float) * parts[1].map(YEARS)
    sex = table["Patient Gender"].str.strip().str.upper().map({"M": "Male", "F": "Female"})
    return table.assign(
        patient="patient" + table["Patient ID"].astype(str).str.zfill(5),
        study="study" + (table["Follow-up #"] + 1).astype(str),
        Sex=sex.fillna("Unknown"),
        Age=age.where(age <= MAX_AGE),
    )


def _with_split(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Adds the official split: `test`, or blank, from which `valid` is drawn."""
    there = [name for name in (TRAIN_LIST, TEST_LIST) if (root / name).is_file()]
    if not there:
        return table.assign(split="")
    if len(there) == 1:
        (missing,) = {TRAIN_LIST, TEST_LIST} - set(there)
        raise UserError(
            f"root: {root} holds {there[0]} but not {missing}; put both lists there, or none."
        )
    train = table["Path"].isin(_read_list(root / TRAIN_LIST))
    test = table["Path"].isin(_read_list(root / TEST_LIST))
    if not (train | test).any():
        raise UserError(
            f"root: {TRAIN_LIST} and {TEST_LIST} in {root} name none of the images of the CSV "
            "file; give the official lists, one file name a line."
        )
    table = flag(table, train & test, f"named by both {TRAIN_LIST} and {TEST_LIST}")
    return table.assign(split=test.map({True: "test", False: ""}))


def _read_list(file: Path) -> list[str]:
    """The names in a text file, one a line."""
    try:
        return file.read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"root: {file} cannot be read as UTF-8 text ({error}).") from error
