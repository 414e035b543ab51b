"""CheXpert v1.0, and any data set in its layout (Irvin et al. 2019, arXiv 1901.07031).

Read: the small and the full set; batches 2 to 4 of the full set as they unzip (patient folders
without a `train/` level); the CSV files beside or inside the image folder; the root given as the
image folder, as a batch or as the folder above; whatever prefix the `Path` column has. The training
labels of CheXbert (Smit et al. 2020, arXiv 2004.09167) and VisualCheXbert (Jain et al. 2021, arXiv
2102.11467), `train_cheXbert.csv` and `train_visualCheXbert.csv`, may stand for `train.csv`.
"""

import re
from pathlib import Path
from typing import ClassVar, Literal

import pandas as pd

from cxr_lightning.data.sources.base import COLUMNS, Source, arrange
from cxr_lightning.data.sources.files import RELATIVE, LayoutReader
from cxr_lightning.data.sources.tables import (
    PROBLEM,
    flag,
    flag_repeated_paths,
    leave_unannotated,
    parse_numbers,
    parse_people,
    read_csv,
    require_columns,
)
from cxr_lightning.errors import UserError
from cxr_lightning.types import OBSERVATIONS

SPLIT_FILES = (
    ("train", "train.csv"),
    ("valid", "valid.csv"),
    ("test", "test.csv"),
    ("test", "test_labels.csv"),
)
"""The labels of the test images, released later, may lack sex, age and view."""

Labeller = Literal["chexpert", "chexbert", "visualchexbert"]

LABEL_FILES: dict[Labeller, str] = {
    "chexpert": "train.csv",
    "chexbert": "train_cheXbert.csv",
    "visualchexbert": "train_visualCheXbert.csv",
}

BATCH = re.compile(r"\bbatch \d")


class ChexpertSource(Source):
    """Images and CSV files in CheXpert's layout.

    An observation that is blank in every row counts as not annotated.

    Args:
        root: The image folder, or the folder that holds it.
        labels: Which labeller's training labels to take.

    Raises:
        UserError: If no CSV file is found, or several data sets, or not the one of `labels`.
    """

    name: ClassVar[str] = "chexpert"

    def __init__(self, root: Path, labels: Labeller = "chexpert") -> None:
        """Finds the CSV files."""
        top = root.parent if BATCH.search(root.name) else root
        self.home = _find_home(root, top)
        batches = sorted(f for f in _folders(top) if BATCH.search(f.name))
        self.reader = LayoutReader((self.home, root, *batches))
        self.relabelled = None if labels == "chexpert" else self._find_labels(LABEL_FILES[labels])

    def table(self) -> pd.DataFrame:
        """See the base class; `test` rows may have unknown sex, age and view."""
        files = {s: self.home / n for s, n in reversed(SPLIT_FILES) if (self.home / n).is_file()}
        tables = [self._read(split, file) for split, file in reversed(files.items())]
        table = flag_repeated_paths(pd.concat(tables))
        table = leave_unannotated(table)
        if table["Path"].str.startswith("CheXpert-v1.0").any():
            self.origins = ("CheXpert",)
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
        if split == "train" and self.relabelled is not None:
            table = _relabel(table, self.relabelled)
        table = parse_people(parse_numbers(table[[*COLUMNS, PROBLEM]]))
        table["patient"] = table["Path"].str.extract(r"(patient\d+)", expand=False).fillna("")
        table["study"] = table["Path"].str.extract(r"(study\d+)", expand=False).fillna("study1")
        nobody = table["patient"] == ""
        if nobody.all():
            raise UserError(
                f"root: {file} names {table['Path'].iloc[0]!r}, which has no patient number "
                "(patient00001/...); use --source folder, which takes a patient column."
            )
        return flag(table, nobody, "no patient number (patient00001/...)").assign(split=split)

    def _find_labels(self, name: str) -> Path:
        """The CSV file of that name, in the folder of the others or above it."""
        for folder in (self.home, self.home.parent):
            if (folder / name).is_file():
                return folder / name
        raise UserError(f"labels: there is no {name} in {self.home} or above it; put it there.")


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
    tables = [read_csv(folder / file) for _, file in SPLIT_FILES if (folder / file).is_file()]
    return any(
        "Path" in table.columns and table["Path"].iloc[0].startswith(f"{name}/") for table in tables
    )


def _relative(paths: pd.Series) -> pd.Series:
    """Paths from `train/`, `valid/` or `test/` on."""
    return paths.str.extract(RELATIVE, expand=False).fillna(paths)


def _relabel(table: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Puts another labeller's observations in place; not annotated where it labelled no image."""
    labels = flag_repeated_paths(read_csv(file).pipe(_with_columns, ("Path", *OBSERVATIONS), file))
    broken = labels[labels[PROBLEM] != ""]
    if len(broken):
        raise UserError(f"labels: {broken[PROBLEM].iloc[0]}; correct {file}.")
    labels = labels.set_index(_relative(labels["Path"]))
    paths = _relative(table["Path"])
    extra = labels.index.difference(pd.Index(paths))
    if len(extra):
        raise UserError(
            f"labels: {file} names {len(extra)} images that train.csv does not, such as "
            f"{extra[0]}; give the file that belongs to this data set."
        )
    observations = list(OBSERVATIONS)
    found = labels[observations].reindex(paths).fillna("n/a").set_axis(table.index)
    return table.assign(**{o: found[o] for o in observations})


def _with_columns(table: pd.DataFrame, columns: tuple[str, ...], file: Path) -> pd.DataFrame:
    require_columns(table, columns, file)
    return table


def _read_reports(file: Path) -> dict[str, str]:
    """Reports by relative path."""
    reports = read_csv(file).pipe(_with_columns, ("Path", "report"), file)
    return dict(zip(_relative(reports["Path"]), reports["report"], strict=True))
