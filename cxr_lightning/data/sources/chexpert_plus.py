"""CheXpert Plus (Chambon et al. 2024, arXiv 2405.19538).

Read: `df_chexpert_plus_240401.csv`; the PNG images in `PNG/`, which some downloads hold twice
(`PNG/PNG/`); the labels of CheXbert (Smit et al. 2020, arXiv 2004.09167), JSON lines, made from the
whole report or from one of its sections.
"""

import json
from pathlib import Path
from typing import ClassVar, Literal

import pandas as pd

from cxr_lightning.data.sources.base import Source, arrange
from cxr_lightning.data.sources.files import FolderReader
from cxr_lightning.data.sources.joining import KEY, join_labels
from cxr_lightning.data.sources.tables import (
    PROBLEM,
    find_csv,
    flag,
    flag_repeated_paths,
    parse_numbers,
    read_csv,
    require_columns,
    with_split,
)
from cxr_lightning.errors import UserError
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS

Section = Literal["report", "findings", "impression"]

TEXT_COLUMNS: dict[Section, str] = {
    "report": "report",
    "findings": "section_findings",
    "impression": "section_impression",
}

COLUMNS = {
    "path_to_image": "Path",
    "sex": "Sex",
    "age": "Age",
    "frontal_lateral": "Frontal/Lateral",
    "ap_pa": "AP/PA",
    "deid_patient_id": "patient",
    "split": "split",
}
"""Their name of a column to ours."""

PROJECTIONS = ("AP", "PA", "LL", "RL")


class ChexpertPlusSource(Source):
    """The images that the CSV file names, with the labels and the text of a section.

    The official split is kept. An image without a line in the label file is not annotated. Nor is
    one whose section is blank, as most findings are: there CheXbert says No Finding of no text at
    all. Images of one study may have different labels.

    Args:
        root: Folder of the CSV file and of `PNG`; `chexbert_labels` lies in it or beside it.
        labels: What the labels are made from; the same text is the report.

    Raises:
        UserError: If the CSV file or the label file is not there.
    """

    name: ClassVar[str] = "chexpert_plus"
    origins = ("CheXpert",)

    def __init__(self, root: Path, labels: Section = "report") -> None:
        """Finds the CSV file and the label file."""
        self.csv = find_csv(root, "df_chexpert_plus*")
        self.labels = _find_labels(root, f"{labels}_fixed.json")
        self.text_column = TEXT_COLUMNS[labels]
        self.reader = FolderReader((root / "PNG", root / "PNG" / "PNG", root), png=True)

    def table(self) -> pd.DataFrame:
        """See the base class."""
        table = read_csv(self.csv)
        require_columns(table, (*COLUMNS, self.text_column), self.csv)
        text = table[self.text_column]
        table = _with_people(table[[*COLUMNS, PROBLEM]].rename(columns=COLUMNS))
        table = join_labels(table, table["Path"], read_label_lines(self.labels), self.labels)
        table.loc[text.str.strip() == "", list(OBSERVATIONS)] = NOT_ANNOTATED
        return arrange(table.assign(report=text))


def read_label_lines(file: Path) -> pd.DataFrame:
    """A file with one JSON object an image as a table of text: `KEY`, `OBSERVATIONS`, `PROBLEM`.

    Raises:
        UserError: If it cannot be read, or no line can be used.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"labels: {file} cannot be read as UTF-8 text ({error}).") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    table = pd.DataFrame(
        [_cells(line) for _, line in numbered],
        index=pd.Index([f"{file.name}, line {number}" for number, _ in numbered]),
        columns=[KEY, *OBSERVATIONS, PROBLEM],
        dtype=str,
    )
    problems = table[PROBLEM]
    table = flag(table.assign(**{PROBLEM: ""}), problems != "", problems)
    if (table[PROBLEM] != "").all():
        first = table[PROBLEM].iloc[0] if len(table) else "it is empty"
        raise UserError(
            f"labels: {file} has no line of labels ({first}); give one JSON object a line, with "
            "path_to_image and the 14 observations."
        )
    return table


def _cells(line: str) -> list[str]:
    """One line as text: the path, the observations, and what is wrong with it."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict) or not isinstance(entry.get("path_to_image"), str):
        return [""] * (1 + len(OBSERVATIONS)) + ["not a JSON object with path_to_image"]
    path = entry["path_to_image"]
    missing = [observation for observation in OBSERVATIONS if observation not in entry]
    if missing:
        return [path] + [""] * len(OBSERVATIONS) + [f"no value of {missing[0]}"]
    values = [entry[observation] for observation in OBSERVATIONS]
    return [path, *("" if value is None else str(value) for value in values), ""]


def _with_people(table: pd.DataFrame) -> pd.DataFrame:
    """Checks path, patient, split, sex, age and view, and adds the study."""
    table = flag(flag_repeated_paths(table), table["patient"].str.strip() == "", "no patient")
    table = with_split(table, table["split"])
    table = parse_numbers(table.assign(**dict.fromkeys(OBSERVATIONS, "")))  # the age
    sex = table["Sex"].str.strip().str.title()
    view = table["Frontal/Lateral"].str.strip().str.title()
    projection = table["AP/PA"].str.strip().str.upper()
    study = table["Path"].str.extract(r"(study\d+)", expand=False)
    return table.assign(
        **{
            "Sex": sex.where(sex.isin(["Male", "Female"]), "Unknown"),
            "Frontal/Lateral": view.where(view.isin(["Frontal", "Lateral"]), ""),
            "AP/PA": projection.where(projection.isin(PROJECTIONS), ""),
            "study": study.fillna("study1"),
        }
    )


def _find_labels(root: Path, name: str) -> Path:
    """The label file of that name."""
    for folder in (root / "chexbert_labels", root, root.parent / "chexbert_labels"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"labels: there is no chexbert_labels/{name} in {root} or beside it; put it there."
    )
