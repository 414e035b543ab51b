"""VinDr-CXR (Nguyen et al. 2022, arXiv 2012.15029).

Read: the layout of PhysioNet, `train/*.dicom` and `test/*.dicom` with
`annotations/image_labels_train.csv` and `annotations/image_labels_test.csv`; the layout of Kaggle,
`train/*.dicom` with the boxes of `train.csv`, whose test images have no labels.
"""

from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd

from cxr_lightning.data.sources.base import Source, arrange
from cxr_lightning.data.sources.dicom import fill_from_headers
from cxr_lightning.data.sources.dicom_files import DicomReader, require_pydicom
from cxr_lightning.data.sources.tables import PROBLEM, flag, read_csv, require_columns
from cxr_lightning.errors import UserError
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS

NO_FINDING = "No finding"

COUNTERPARTS = {
    NO_FINDING: "No Finding",
    "Atelectasis": "Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Consolidation": "Consolidation",
    "Infiltration": "Lung Opacity",
    "Lung Opacity": "Lung Opacity",
    "Nodule/Mass": "Lung Lesion",
    "Pleural effusion": "Pleural Effusion",
    "Pleural thickening": "Pleural Other",
    "Pneumothorax": "Pneumothorax",
}
"""The observation that a label is, in both layouts."""

PHYSIONET_COUNTERPARTS = {
    **COUNTERPARTS,
    "Clavicle fracture": "Fracture",
    "Edema": "Edema",
    "Lung tumor": "Lung Lesion",
    "Pneumonia": "Pneumonia",
    "Rib fracture": "Fracture",
}
"""The same where all 28 labels are given."""

OTHERS = ("Aortic enlargement", "Calcification", "ILD", "Other lesion", "Pulmonary fibrosis")
PHYSIONET_OTHERS = (
    *OTHERS,
    "COPD",
    "Emphysema",
    "Enlarged PA",
    "Lung cavity",
    "Lung cyst",
    "Mediastinal shift",
    "Other disease",  # in the test file
    "Other diseases",  # in the training file
    "Tuberculosis",
)
"""Labels without a counterpart: who gives one denies No Finding."""

FLAGS = {"0": False, "0.0": False, "1": True, "1.0": True}


class LabelFile(NamedTuple):
    """One CSV file.

    Attributes:
        file: Where it lies.
        folder: Of its images.
        split: That its images have; blank if `valid` is to be drawn from them.
        readers: Whether its rows say which radiologist is meant; else each is a consensus.
        boxes: Whether a row is a box and names its class; else it has a column a label.
    """

    file: Path
    folder: str
    split: str = ""
    readers: bool = True
    boxes: bool = False

    @property
    def counterparts(self) -> dict[str, str]:
        """The observation that a label is."""
        return COUNTERPARTS if self.boxes else PHYSIONET_COUNTERPARTS

    @property
    def labels(self) -> dict[str, str]:
        """All labels that may occur, by their name in lower case."""
        others = OTHERS if self.boxes else PHYSIONET_OTHERS
        return {label.lower(): label for label in (*self.counterparts, *others)}


class VindrSource(Source):
    """Images and the labels of the radiologists.

    Three radiologists read each training image on their own. An observation is positive where more
    than half of those who read it saw it, negative where nobody did, and uncertain where a minority
    did; this holds for No Finding too. The labels of a test image are a consensus.

    All images are frontal and PA. No patient is stated: each image counts as a patient of its own.
    Sex and age come from the headers; an age of 0 counts as unknown, as no infant is radiographed
    PA. The official test split is kept, and `valid` is drawn from the training images.

    Args:
        root: Folder of `train`.

    Raises:
        UserError: If neither layout is there, or pydicom is not installed.
    """

    name: ClassVar[str] = "vindr"
    origins = ("VinDr-CXR",)

    def __init__(self, root: Path) -> None:
        """Finds the CSV files."""
        require_pydicom()
        self.files = _find_files(root)
        self.dicoms = DicomReader(root)
        self.reader = self.dicoms

    def table(self) -> pd.DataFrame:
        """See the base class."""
        table = pd.concat([_read_images(file) for file in self.files])
        table = flag(table, table["image_id"] == "", "no image_id")
        twice = table["image_id"].duplicated()
        table = flag(table, twice, "the image is in the training file as well")
        table[["Frontal/Lateral", "AP/PA", "study"]] = ["Frontal", "PA", "study1"]
        table = table.assign(Sex="Unknown", Age=np.nan, patient=table["image_id"])
        table = fill_from_headers(table, self.dicoms, ("Sex", "Age"))
        return arrange(table.assign(Age=table["Age"].mask(table["Age"] == 0)))


def _find_files(root: Path) -> list[LabelFile]:
    """The CSV files of the one layout or the other; each has its folder of images."""
    annotations = root / "annotations"
    candidates = [
        LabelFile(annotations / "image_labels_train.csv", "train"),
        LabelFile(annotations / "image_labels_test.csv", "test", "test", readers=False),
        LabelFile(root / "train.csv", "train", boxes=True),
    ]
    found = [candidate for candidate in candidates if candidate.file.is_file()]
    physionet = [candidate for candidate in found if not candidate.boxes]
    if not found:
        raise UserError(
            f"root: there is neither {candidates[0].file} nor {candidates[2].file}; give the "
            "folder of VinDr-CXR as PhysioNet or Kaggle have it."
        )
    for candidate in physionet or found:
        if not (root / candidate.folder).is_dir():
            raise UserError(
                f"root: there is no folder {root / candidate.folder} for the images of "
                f"{candidate.file.name}; put it there."
            )
    return physionet or found


def _read_images(source: LabelFile) -> pd.DataFrame:
    """One CSV file as a table of one row an image; columns `image_id`, `Path`, `split`, labels."""
    rows = (_read_boxes if source.boxes else _read_columns)(source)
    # A row without an image stands for itself.
    image = rows["image_id"].mask(rows["image_id"] == "", rows.index.to_series())
    problem = rows.groupby(image)[PROBLEM].transform("max")  # one that is not blank, if any is
    table = rows[["image_id"]].assign(**{PROBLEM: problem})[~image.duplicated()]
    labels = vote(rows, image, source)
    path = source.folder + "/" + table["image_id"] + ".dicom"
    for observation in OBSERVATIONS:
        there = observation in labels.columns
        table[observation] = labels[observation].to_numpy() if there else NOT_ANNOTATED
    return table.assign(Path=path.where(table["image_id"] != "", ""), split=source.split)


def vote(rows: pd.DataFrame, image: pd.Series, source: LabelFile) -> pd.DataFrame:
    """Observations of each image, in the order of the rows: 1, 0, -1; see `VindrSource`.

    Args:
        rows: A column a label, boolean, and `rad_id`.
        image: The image of each row.
        source: Where they are from.
    """
    labels = [label for label in source.labels.values() if label in rows.columns]
    readings = rows[labels].groupby([image, rows["rad_id"]], sort=False).any()
    readings[NO_FINDING] &= ~readings.drop(columns=NO_FINDING).any(axis=1)
    observations: dict[str, pd.Series] = {}
    for label, observation in source.counterparts.items():
        observations[observation] = readings[label] | observations.get(observation, False)
    by_image = pd.DataFrame(observations).astype(int).groupby(level=0, sort=False)
    votes, readers = by_image.sum(), by_image.size()
    positive, none = votes.mul(2).gt(readers, axis=0), votes == 0
    return votes.astype(float).mask(~none, -1.0).mask(positive, 1.0)


def _read_columns(source: LabelFile) -> pd.DataFrame:
    """A file with a column a label: `image_id`, `rad_id`, labels as booleans, `PROBLEM`."""
    table = read_csv(source.file)
    table = table.rename(columns=lambda name: source.labels.get(name.lower(), name))
    twice = table.columns[table.columns.duplicated()]
    if len(twice):
        raise UserError(f"root: {source.file} names the column {twice[0]} twice; keep one of them.")
    required = ("image_id", "rad_id") if source.readers else ("image_id",)
    require_columns(table, (*required, *source.counterparts), source.file)
    table = _with_readers(table, source)
    repeated = table.duplicated(["image_id", "rad_id"]) & (table["image_id"] != "")
    table = flag(table, repeated, "an earlier row has the same image and radiologist")
    for label in source.labels.values():
        if label in table.columns:
            text = table[label].str.strip()
            table = flag(table, ~text.isin(list(FLAGS)), f"{label} is '" + text + "', not 0 or 1")
            table = table.assign(**{label: text.isin([name for name in FLAGS if FLAGS[name]])})
    return table


def _read_boxes(source: LabelFile) -> pd.DataFrame:
    """A file with a row a box, in the same form; what a row does not name is False."""
    table = read_csv(source.file)
    require_columns(table, ("image_id", "rad_id", "class_name"), source.file)
    table = _with_readers(table, source)
    name = table["class_name"].str.strip().str.lower()
    wrong = ~name.isin(list(source.labels))
    table = flag(table, wrong, "class_name '" + table["class_name"] + "' is unknown")
    return table.assign(**{label: name == lower for lower, label in source.labels.items()})


def _with_readers(table: pd.DataFrame, source: LabelFile) -> pd.DataFrame:
    """Strips `image_id` and `rad_id`; the latter is the same throughout for a consensus."""
    reader = table["rad_id"].str.strip() if source.readers else "consensus"
    table = table.assign(image_id=table["image_id"].str.strip(), rad_id=reader)
    return flag(table, table["rad_id"] == "", "no rad_id")
