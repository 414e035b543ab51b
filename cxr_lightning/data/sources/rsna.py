"""The RSNA Pneumonia Detection Challenge 2018 (Shih et al. 2019, doi 10.1148/ryai.2019180041).

Read: the files of the second stage as Kaggle gives them, `stage_2_train_images/*.dcm`,
`stage_2_train_labels.csv` and `stage_2_detailed_class_info.csv`.
"""

from pathlib import Path
from typing import ClassVar

import pandas as pd

from cxr_lightning.data.sources.base import Source, arrange
from cxr_lightning.data.sources.dicom import fill_from_headers
from cxr_lightning.data.sources.dicom_files import DicomReader, require_pydicom
from cxr_lightning.data.sources.tables import PROBLEM, flag, read_csv, require_columns
from cxr_lightning.errors import UserError
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS

IMAGES = "stage_2_train_images"
LABELS = "stage_2_train_labels.csv"
CLASSES = "stage_2_detailed_class_info.csv"

ANNOTATED = ("No Finding", "Lung Opacity", "Pneumonia")
CLASS_LABELS = {
    "Normal": (1.0, 0.0, 0.0),
    "No Lung Opacity / Not Normal": (0.0, 0.0, 0.0),
    "Lung Opacity": (0.0, 1.0, 1.0),
}
"""What a class says of each of `ANNOTATED`; the classes exclude each other."""

TARGETS = {"Normal": "0", "No Lung Opacity / Not Normal": "0", "Lung Opacity": "1"}


class RsnaSource(Source):
    """Images, boxes and classes of the challenge.

    What was annotated is an opacity in a place and of a look that suggest pneumonia. The challenge
    calls it pneumonia; here it is both, Lung Opacity and Pneumonia, and its absence denies both. No
    other finding was looked for. The test images have no labels and are left out.

    The images are some of NIH ChestX-ray14 under new names: these files do not say which patient,
    so each image counts as a patient of its own, and a mixture of both sets leaks. View, sex and
    age come from the headers; an age above 120 years counts as unknown.

    Args:
        root: Folder of the three.

    Raises:
        UserError: If one of them is not there, or pydicom is not installed.
    """

    name: ClassVar[str] = "rsna"
    origins = ("NIH ChestX-ray14",)

    def __init__(self, root: Path) -> None:
        """Looks for the files."""
        require_pydicom()
        if not (root / IMAGES).is_dir():
            raise UserError(f"root: there is no folder {root / IMAGES}; give the folder above it.")
        for name in (LABELS, CLASSES):
            if not (root / name).is_file():
                raise UserError(f"root: there is no {name} in {root}; put it there.")
        self.root = root
        self.dicoms = DicomReader(root)
        self.reader = self.dicoms

    def table(self) -> pd.DataFrame:
        """See the base class."""
        targets = _one_row_an_image(self.root / LABELS, "Target")
        classes = _one_row_an_image(self.root / CLASSES, "class")
        table = _join(targets, classes)
        known = table["class"].isin(list(CLASS_LABELS))
        table = flag(table, ~known, "class is '" + table["class"] + "', not one of the three")
        agree = table["Target"] == table["class"].map(TARGETS)
        table = flag(
            table, ~agree, "Target is '" + table["Target"] + "' and class '" + table["class"] + "'"
        )
        path = IMAGES + "/" + table["patientId"] + ".dcm"
        table["Path"] = path.where(table["patientId"] != "", "")
        table[list(OBSERVATIONS)] = NOT_ANNOTATED
        for position, observation in enumerate(ANNOTATED):
            labels = {name: values[position] for name, values in CLASS_LABELS.items()}
            table[observation] = table["class"].map(labels)
        table[["Frontal/Lateral", "AP/PA", "split"]] = ""
        table = table.assign(Sex="Unknown", Age=float("nan"), study="study1")
        table["patient"] = table["patientId"]
        table = fill_from_headers(table, self.dicoms, ("Sex", "Age", "Frontal/Lateral", "AP/PA"))
        unseen = table["Frontal/Lateral"] == ""
        return arrange(
            table.assign(**{"Frontal/Lateral": table["Frontal/Lateral"].mask(unseen, "Frontal")})
        )


def _one_row_an_image(file: Path, column: str) -> pd.DataFrame:
    """The columns `patientId`, one other and `PROBLEM`; of an image's boxes the first.

    An image whose boxes disagree about the column, or one of which has a problem, has a problem.
    """
    table = read_csv(file)
    require_columns(table, ("patientId", column), file)
    table = table[["patientId", column, PROBLEM]].apply(lambda cells: cells.str.strip())
    table = flag(table, table["patientId"] == "", "no patientId")
    by_image = table.groupby("patientId")
    problem = by_image[PROBLEM].transform("max")  # one that is not blank, if there is any
    table = table.assign(**{PROBLEM: table[PROBLEM].mask(table["patientId"] != "", problem)})
    differ = by_image[column].transform("nunique") > 1
    table = flag(table, differ, f"the rows of this image differ in {column}")
    return table[(table["patientId"] == "") | ~table["patientId"].duplicated()]


def _join(targets: pd.DataFrame, classes: pd.DataFrame) -> pd.DataFrame:
    """All images of either file, with the problems of both."""
    by_image = classes[classes["patientId"] != ""].set_index("patientId")
    found = by_image.reindex(targets["patientId"]).set_axis(targets.index)
    table = targets.assign(**{"class": found["class"].fillna("")})
    table = flag(table, found["class"].isna(), f"the image is not in {CLASSES}")
    others = found[PROBLEM].fillna("")
    table = flag(table, others != "", others)
    alone = classes[~classes["patientId"].isin(targets["patientId"]) | (classes["patientId"] == "")]
    alone = flag(alone.assign(Target=""), alone[PROBLEM] == "", f"the image is not in {LABELS}")
    return pd.concat([table, alone])
