"""MIMIC-CXR-JPG 2.0 and 2.1 (Johnson et al. 2019, arXiv 1901.07042; physionet.org)."""

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pandas as pd

from cxr_lightning.data.sources.base import Source, arrange
from cxr_lightning.data.sources.files import FolderReader
from cxr_lightning.data.sources.joining import KEY, join_labels, look_up
from cxr_lightning.data.sources.tables import (
    PROBLEM,
    find_csv,
    flag,
    flag_repeated_paths,
    read_csv,
    require_columns,
    with_split,
)
from cxr_lightning.errors import UserError
from cxr_lightning.types import OBSERVATIONS

Labeller = Literal["chexpert", "negbio"]

VIEWS = {
    **dict.fromkeys(("AP", "AP AXIAL", "AP LLD", "AP RLD", "ANTERO-POSTERIOR"), "AP"),
    **dict.fromkeys(("PA", "PA LLD", "PA RLD", "POSTERO-ANTERIOR"), "PA"),
    **dict.fromkeys(("LL", "RL", "LATERAL", "LEFT LATERAL", "RIGHT LATERAL"), "Lateral"),
    **dict.fromkeys(("XTABLE LATERAL", "SWIMMERS", "LAO", "RAO", "LPO", "RPO"), "Lateral"),
}
"""What `ViewPosition` and `ViewCodeSequence_CodeMeaning` say. A swimmer's or oblique view is not
frontal, so it counts as lateral."""


class MimicCxrSource(Source):
    """The images that the metadata file names; labels are those of the whole study.

    The official split is kept. A study without a row in the label file is not annotated. Where
    neither `ViewPosition` nor `ViewCodeSequence_CodeMeaning` says it, the view is blank; that of a
    lateral image has no AP/PA, as in CheXpert. Sex is unknown, unless `patients.csv` of MIMIC-IV
    lies at the root. Age is always unknown: the `anchor_age` there is that of another year.

    Args:
        root: Folder of `files/` and of `mimic-cxr-2.0.0-metadata.csv` and the others, which may be
            gzipped.
        labels: Which labeller's labels to take.

    Raises:
        UserError: If one of the files is not there.
    """

    name: ClassVar[str] = "mimic_cxr"
    origins = ("MIMIC-CXR",)

    def __init__(self, root: Path, labels: Labeller = "chexpert") -> None:
        """Finds the CSV files."""
        self.metadata = find_csv(root, "mimic-cxr-2.*-metadata")
        self.split = find_csv(root, "mimic-cxr-2.*-split")
        self.labels = find_csv(root, f"mimic-cxr-2.*-{labels}")
        there = [root / name for name in ("patients.csv", "patients.csv.gz")]
        self.patients = next((file for file in there if file.is_file()), None)
        self.reader = FolderReader((root,))

    def table(self) -> pd.DataFrame:
        """See the base class."""
        table = _with_view(_read_images(self.metadata))
        labels = read_csv(self.labels)
        require_columns(labels, ("subject_id", "study_id", *OBSERVATIONS), self.labels)
        labels[KEY] = labels["subject_id"] + "/" + labels["study_id"]
        keys = table["subject_id"] + "/" + table["study_id"]
        table = join_labels(table, keys, labels, self.labels)
        table = _read_split(table, self.split)
        sex = _read_sex(self.patients) if self.patients else {}
        table["Sex"] = [sex.get(subject, "Unknown") for subject in table["subject_id"]]
        return arrange(table.assign(Age=np.nan))


def _read_images(file: Path) -> pd.DataFrame:
    """The metadata file with Path, patient and study."""
    table = read_csv(file)
    identifiers = ("dicom_id", "subject_id", "study_id")
    require_columns(table, (*identifiers, "ViewPosition"), file)
    for column, pattern in zip(identifiers, (r"[^/\s]+", r"\d+", r"\d+"), strict=True):
        wrong = ~table[column].str.fullmatch(pattern)
        table = flag(table, wrong, column + " is '" + table[column] + "', no identifier")
    table["patient"] = "p" + table["subject_id"]
    table["study"] = "s" + table["study_id"]
    folder = "files/p" + table["subject_id"].str[:2] + "/" + table["patient"] + "/" + table["study"]
    return flag_repeated_paths(table.assign(Path=folder + "/" + table["dicom_id"] + ".jpg"))


def _with_view(table: pd.DataFrame) -> pd.DataFrame:
    """Adds Frontal/Lateral and AP/PA."""
    view = table["ViewPosition"].str.strip().str.upper().map(VIEWS)
    if "ViewCodeSequence_CodeMeaning" in table.columns:
        meaning = table["ViewCodeSequence_CodeMeaning"].str.strip().str.upper()
        view = view.where(view.notna(), meaning.map(VIEWS))
    frontal = {"AP": "Frontal", "PA": "Frontal", "Lateral": "Lateral"}
    return table.assign(
        **{
            "Frontal/Lateral": view.map(frontal).fillna(""),
            "AP/PA": view.where(view.isin(["AP", "PA"]), ""),
        }
    )


def _read_split(table: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Adds the official split; blank where the file does not have the image."""
    splits = read_csv(file)
    require_columns(splits, ("dicom_id", "split"), file)
    splits = splits[["dicom_id", "split", PROBLEM]].rename(columns={"dicom_id": KEY})
    rows = look_up(table["dicom_id"], splits, file)
    table = flag(table, rows[PROBLEM] != "", rows[PROBLEM])
    return with_split(table, rows["split"].fillna(""))


def _read_sex(file: Path) -> dict[str, str]:
    """Sex by subject_id, from `patients.csv` of MIMIC-IV."""
    patients = read_csv(file)
    require_columns(patients, ("subject_id", "gender"), file)
    damaged = patients.loc[patients[PROBLEM] != "", PROBLEM]
    if len(damaged):
        raise UserError(f"root: {damaged.iloc[0]}; correct {file} or remove it.")
    sex = patients["gender"].str.strip().str.upper().map({"M": "Male", "F": "Female"})
    return dict(zip(patients["subject_id"], sex.fillna("Unknown"), strict=True))
