"""A folder of one's own: images with a CSV file, or sub-folders as classes."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pandas as pd

from cxr_lightning.data.sources.base import COLUMNS, TABLE_COLUMNS, Source, arrange
from cxr_lightning.data.sources.files import FolderReader
from cxr_lightning.data.sources.tables import (
    PROBLEM,
    SPLIT_NAMES,
    flag_repeated_paths,
    leave_unannotated,
    parse_numbers,
    parse_people,
    read_csv,
    require_columns,
    shown_path,
    with_split,
)
from cxr_lightning.data.vocabulary import find_observation
from cxr_lightning.errors import UserError
from cxr_lightning.types import OBSERVATIONS

DEFAULTS = {"Sex": "Unknown", "Frontal/Lateral": "Frontal", **dict.fromkeys(OBSERVATIONS, "n/a")}
"""What a column that is absent means; all others are blank."""

LOOSE = "it lies in no folder of a class"

PATIENT = r"^(?!/).*?(patient\d+)"
"""The patient in a path below the root; an absolute path says nothing."""

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".jp2"}


class FolderSource(Source):
    """Images and a CSV file with at least a path column, or images in sub-folders by class.

    The CSV file's other columns are those of `TABLE_COLUMNS` and `report`, in any order and case;
    what is absent is blank, an observation that is absent or blank throughout is not annotated, and
    a view that is not stated is frontal. Without a column `patient`, a `patient<digits>` in the
    path counts, and else each image is a patient of its own.

    Without a CSV file, a folder's name is the class of the images below it, as in
    `train/PNEUMONIA/1.jpg`: an observation or `normal`; a folder `train`, `val` or `test` above or
    below it states the split. Hidden folders and prepared data sets are left out. An image of the
    class `normal` has none of the other classes' findings; any other image has its own, and of the
    others nothing is said.

    Args:
        root: Folder that the paths start from.
        csv: The CSV file; default: the only one in `root`, if there is any.
        columns: Our name of a column, or of a class, to the one used here.

    Raises:
        UserError: If the folder or the CSV file is not there, or `columns` has other names.
    """

    name: ClassVar[str] = "folder"

    def __init__(
        self, root: Path, csv: Path | None = None, columns: Mapping[str, str] | None = None
    ) -> None:
        """Finds the CSV file."""
        if not root.is_dir():
            raise UserError(f"root: there is no folder {root}; give the folder of the images.")
        self.root = root
        self.reader = FolderReader((root,))
        self.csv = csv or _only_csv(root)
        self.columns = check_columns(columns or {})
        if self.csv is not None and not self.csv.is_file():
            raise UserError(f"csv: there is no file {self.csv}; give one with a path column.")

    def table(self) -> pd.DataFrame:
        """See the base class."""
        if self.csv is None:
            return table_of_classes(self.root, self.columns)
        return arrange(read_list(self.csv, self.columns))


def check_columns(columns: Mapping[str, str]) -> Mapping[str, str]:
    """The map as it is, if its keys are names of ours.

    Raises:
        UserError: Naming the first key that is none.
    """
    known = (*TABLE_COLUMNS, "report")
    for name in columns:
        if name not in known:
            raise UserError(
                f"columns: {name!r} is not a column of a prepared table; use {', '.join(known)}, "
                "each with the name that your file has for it."
            )
    return columns


def read_list(
    file: Path, columns: Mapping[str, str], defaults: Mapping[str, str] = DEFAULTS
) -> pd.DataFrame:
    """A CSV file with one row an image, as a table with all columns; see `FolderSource`.

    Args:
        file: The CSV file.
        columns: Our name of a column to the file's; other names are matched without case.
        defaults: What a column that is absent means; blank where not stated.
    """
    table = read_csv(file)
    require_columns(table, columns.values(), file)
    ours = {column.lower(): column for column in (*TABLE_COLUMNS, "report")}
    asked = pd.Series([*columns.values()], dtype=str)
    if asked.duplicated().any():
        shared = asked[asked.duplicated()].iloc[0]
        raise UserError(
            f"columns: {shared!r} is given for two columns; copy it in {file}, or leave one out."
        )
    theirs = {name: column for column, name in columns.items()}
    names = [theirs.get(c, ours.get(c.lower(), c)) for c in table.columns]
    table.columns = pd.Index(names)
    require_columns(table, ("Path",), file)
    twice = table.columns[table.columns.duplicated()]
    if len(twice):
        raise UserError(f"csv: {file} names the column {twice[0]} twice; keep one of them.")
    for column in (*COLUMNS, "split"):
        if column not in table.columns:
            table[column] = defaults.get(column, "")
    table = flag_repeated_paths(parse_people(parse_numbers(table)))
    table = leave_unannotated(table)
    table = with_split(table, table["split"])
    if "patient" not in table.columns:
        table["patient"] = table["Path"].str.extract(PATIENT, expand=False).fillna("")
    if "study" in table.columns:
        table["patient"] = stand_in_patients(table)
    else:
        table["study"] = table["Path"].str.extract(r"(study\d+)", expand=False).fillna("study1")
        table["patient"] = table["patient"].where(table["patient"] != "", table["Path"])
    return table


def stand_in_patients(table: pd.DataFrame) -> "pd.Series[str]":
    """The patient of each image; where none is known, its study stands for one, or its path."""
    study = table["study"].astype(str)
    named = ~study.isin(["", "study1"])
    stand_in = ("study " + study).where(named, table["Path"])
    return table["patient"].where(table["patient"] != "", stand_in)


def table_of_classes(root: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """The table of images that lie in folders by class; see `FolderSource`.

    Raises:
        UserError: If there is no image in such a folder, or a folder has a name that is no class.
    """
    theirs = {name: column for column, name in columns.items()}
    rows, loose = [], []
    for path in images_below(root):
        folders = list(path.relative_to(root).parts[:-1])
        named = [name for name in folders[:2] if name.lower() in SPLIT_NAMES]
        split = SPLIT_NAMES[named[0].lower()] if named else ""
        folders = [name for name in folders if name not in named[:1]]
        if not folders:
            loose.append((*shown_path(path.relative_to(root)), split))
            continue
        observation = theirs.get(folders[0]) or find_observation(folders[0])
        if observation not in OBSERVATIONS:
            raise UserError(
                f"root: {root} has no CSV file, and its folder {folders[0]!r} is not named after "
                f"an observation; rename it to one of normal, {', '.join(OBSERVATIONS)}, map it "
                "with --columns, or add a CSV file."
            )
        shown, problem = shown_path(path.relative_to(root))
        rows.append((shown, observation, split, problem))
    if not rows:
        raise UserError(
            f"csv: {root} holds neither a CSV file nor images in folders by class; name the CSV "
            "file with --csv FILE."
        )
    rows += [(shown, "", split, problem or LOOSE) for shown, problem, split in loose]
    return _label_classes(pd.DataFrame(rows, columns=["Path", "class", "split", PROBLEM]))


def _label_classes(table: pd.DataFrame) -> pd.DataFrame:
    """A table with all columns from the columns Path, class, split and `PROBLEM`."""
    classes = set(table["class"])
    for observation in OBSERVATIONS:
        shown = (table["class"] == observation).map({True: "1", False: ""})
        absent = (table["class"] == "No Finding") & (observation != "No Finding")
        table[observation] = shown.mask(absent, "0") if observation in classes else "n/a"
    table[["Sex", "Age", "Frontal/Lateral", "AP/PA", "study"]] = [
        "Unknown",
        "",
        "Frontal",
        "",
        "study1",
    ]
    found = table["Path"].str.extract(PATIENT, expand=False)
    return arrange(parse_numbers(table.assign(patient=found.fillna(table["Path"]))))


def images_below(root: Path) -> Iterator[Path]:
    """Image files by their suffix, in the order of their paths.

    Raises:
        UserError: If a folder is a link: it might lead in a circle, and is not left out in silence.
    """
    found = []
    for place, folders, names in os.walk(root):
        folder = Path(place)
        folders[:] = [name for name in folders if not name.startswith(".")]
        if (folder / "images.npy").is_file():  # a prepared data set
            folders.clear()
            continue
        for name in folders:
            if (folder / name).is_symlink():
                raise UserError(
                    f"root: {folder / name} is a link to a folder; put the folder itself there."
                )
        found += [folder / n for n in names if Path(n).suffix.lower() in IMAGE_SUFFIXES]
    return (path for path in sorted(found) if not path.name.startswith("."))


def _only_csv(root: Path) -> Path | None:
    found = sorted(root.glob("*.csv"))
    if len(found) > 1:
        raise UserError(
            f"csv: {root} holds {len(found)} CSV files; name the one to use with --csv FILE."
        )
    return found[0] if found else None
