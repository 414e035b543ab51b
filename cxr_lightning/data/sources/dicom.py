"""A folder of DICOM files of one's own, with or without a CSV file; the headers fill its gaps."""

import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from cxr_lightning.data.sources.base import Source, arrange
from cxr_lightning.data.sources.dicom_files import (
    DicomReader,
    Header,
    is_dicom,
    read_headers,
    require_pydicom,
)
from cxr_lightning.data.sources.folder import (
    DEFAULTS,
    FolderSource,
    read_list,
    stand_in_patients,
)
from cxr_lightning.data.sources.reading import in_order
from cxr_lightning.data.sources.tables import PROBLEM, flag, shown_path
from cxr_lightning.errors import UserError
from cxr_lightning.files import usable_cores
from cxr_lightning.progress import progress_bar
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS

HEADER_COLUMNS = ("patient", "study", "Sex", "Age", "Frontal/Lateral", "AP/PA")
"""The columns that a header can fill, in the order of `Header`."""

NO_SUFFIX = re.compile(r"[^.]+|[0-9.]+")
"""Names without a suffix, among them the UIDs that scanners name files by."""

NOT_STATED = {"", "Unknown"}

CHUNK = 256
"""Headers that a process reads at a time."""


class DicomSource(Source):
    """DICOM files, and labels from a CSV file if there is one.

    With a CSV file, its rows are the images: see `FolderSource` for its columns. A path may lack
    the suffix `.dcm` or `.dicom`. What the CSV file does not state of patient, study, view, sex and
    age is taken from the header.

    Without one, the images are all files below `root` with the suffix `.dcm`, `.dicom` or `.dcim`,
    and those without a suffix that begin as DICOM files do. Linked folders are not entered. Nothing
    is annotated then.

    A view that neither states stays blank, which counts as frontal; a patient that neither states
    is the image itself. Take care where files were anonymised: one Patient ID for all makes them
    all one patient.

    Args:
        root: Folder that the paths start from.
        csv: The CSV file; default: the only one in `root`, if there is any.
        columns: Our name of a column of the CSV file to the one used there.

    Raises:
        UserError: If the folder or the CSV file is not there, `columns` has other names or there is
            no CSV file for it, or pydicom is not installed.
    """

    name: ClassVar[str] = "dicom"

    def __init__(
        self, root: Path, csv: Path | None = None, columns: Mapping[str, str] | None = None
    ) -> None:
        """Finds the CSV file."""
        require_pydicom()
        listing = FolderSource(root, csv, columns)
        self.root = root
        self.csv = listing.csv
        self.columns = listing.columns
        self.dicoms = DicomReader(root)
        self.reader = self.dicoms
        if self.columns and self.csv is None:
            raise UserError(
                f"columns: {root} has no CSV file whose columns they could name; name one with "
                "--csv FILE."
            )

    def table(self) -> pd.DataFrame:
        """See the base class; a row whose header cannot be read has a problem."""
        table = self._read_csv(self.csv) if self.csv else self._list_files()
        table = fill_from_headers(table, self.dicoms, HEADER_COLUMNS)
        table["patient"] = stand_in_patients(table)
        table["study"] = table["study"].mask(table["study"] == "", "study1")
        return arrange(table)

    def _read_csv(self, file: Path) -> pd.DataFrame:
        """The CSV file, with blanks where it does not state a thing."""
        table = read_list(file, self.columns, {**DEFAULTS, "Frontal/Lateral": ""})
        unknown = table["patient"] == stand_in_patients(table.assign(patient=""))
        if table["study"].isin(["", "study1"]).all():  # what stands for no study
            table["study"] = ""
        return table.assign(patient=table["patient"].mask(unknown, ""))

    def _list_files(self) -> pd.DataFrame:
        """One row a file, with blanks for what the header can state."""
        found = sorted(shown_path(f.relative_to(self.root)) for f in _dicoms_below(self.root))
        if not found:
            raise UserError(
                f"root: there is no DICOM file in {self.root} or below it; give the folder of the "
                "files."
            )
        paths = [path for path, _ in found]
        table = pd.DataFrame(found, columns=["Path", PROBLEM], index=pd.Index(paths))
        table[[*HEADER_COLUMNS, "split"]] = ""
        table[list(OBSERVATIONS)] = NOT_ANNOTATED
        return table.assign(Age=np.nan, Sex="Unknown")


def fill_from_headers(
    table: pd.DataFrame, dicoms: DicomReader, columns: tuple[str, ...]
) -> pd.DataFrame:
    """Fills what is blank, NaN or Unknown in some of `HEADER_COLUMNS` from the files' headers.

    A header that cannot be read is a problem of its row. Rows that have a problem are left alone.
    """
    usable = (table[PROBLEM] == "").to_numpy()
    paths = table["Path"][usable].tolist()
    chunks = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)]
    read: list[tuple[Header, str]] = []
    with progress_bar(total=len(paths), desc="headers", unit="file") as bar:
        for part in in_order(partial(read_headers, dicoms), chunks, usable_cores()):
            read += part
            bar.update(len(part))
    rows = iter(read)
    headers, problems = zip(*(next(rows) if one else (Header(), "") for one in usable), strict=True)
    found = pd.DataFrame(headers, index=table.index).set_axis(list(HEADER_COLUMNS), axis=1)
    for column in columns:
        stated = table[column].notna() & ~table[column].isin(NOT_STATED)
        table = table.assign(**{column: table[column].where(stated, found[column])})
    reasons = pd.Series(problems, index=table.index, dtype=str)
    return flag(table, reasons != "", reasons)


def _dicoms_below(root: Path) -> Iterator[Path]:
    """Files that are meant to be DICOM images; hidden ones and the index DICOMDIR are none."""
    for folder, _, names in os.walk(root):
        for name in names:
            file = Path(folder, name)
            if not name.startswith(".") and name != "DICOMDIR" and _is_meant_as_dicom(file):
                yield file


def _is_meant_as_dicom(file: Path) -> bool:
    """By the suffix, or where there is none by the first bytes; what cannot be opened is taken."""
    if is_dicom(file):
        return True
    if not NO_SUFFIX.fullmatch(file.name) or not file.is_file():
        return False
    try:
        with file.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return True
