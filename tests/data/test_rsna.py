import math
import sys

import numpy as np
import pydicom
import pytest
from dicom_writer import write_dicom

from cxr_lightning.data.sources.base import TABLE_COLUMNS
from cxr_lightning.data.sources.rsna import CLASSES, IMAGES, LABELS, RsnaSource
from cxr_lightning.data.sources.tables import PROBLEM
from cxr_lightning.errors import UserError
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS

TARGETS = """\
patientId,x,y,width,height,Target
0004,,,,,0
003d,,,,,0
0043,264.0,152.0,213.0,379.0,1
0043,562.0,152.0,256.0,453.0,1
"""

DETAILS = """\
patientId,class
0004,No Lung Opacity / Not Normal
003d,Normal
0043,Lung Opacity
0043,Lung Opacity
"""

PEOPLE = {
    "0004": {"PatientSex": "F", "PatientAge": "51", "ViewPosition": "PA"},
    "003d": {"PatientSex": "M", "PatientAge": "155", "ViewPosition": "AP"},
    "0043": {"PatientSex": "M", "PatientAge": "23", "ViewPosition": "AP"},
}


def image_of(name):
    return np.random.default_rng(sum(name.encode())).integers(0, 256, (6, 8), dtype=np.uint8)


def write_image(root, name, **elements):
    """One file as the challenge has them, though not compressed; ages have no unit."""
    with pydicom.config.disable_value_validation():
        write_dicom(root / IMAGES / f"{name}.dcm", image_of(name), PatientID=name, **elements)


@pytest.fixture
def root(tmp_path):
    for name, elements in PEOPLE.items():
        write_image(tmp_path, name, **elements)
    (tmp_path / LABELS).write_text(TARGETS)
    (tmp_path / CLASSES).write_text(DETAILS)
    return tmp_path


def add(root, name, *lines):
    with (root / name).open("a") as stream:
        stream.write("\n".join([*lines, ""]))


def test_one_row_an_image_with_all_classes(root):
    source = RsnaSource(root)
    table = source.table()
    assert list(table.columns) == [*TABLE_COLUMNS, PROBLEM]
    assert table["Path"].tolist() == [f"{IMAGES}/{name}.dcm" for name in PEOPLE]
    assert set(table[PROBLEM]) == {""}
    assert table["No Finding"].tolist() == [0, 1, 0]
    assert table["Lung Opacity"].tolist() == [0, 0, 1]
    assert table["Pneumonia"].tolist() == [0, 0, 1]
    others = [o for o in OBSERVATIONS if o not in ("No Finding", "Lung Opacity", "Pneumonia")]
    assert (table[others] == NOT_ANNOTATED).all(axis=None)
    for name, path in zip(PEOPLE, table["Path"], strict=True):
        assert np.array_equal(source.image(path), image_of(name))


def test_people_are_as_the_headers_say(root):
    table = RsnaSource(root).table()
    assert table["patient"].tolist() == list(PEOPLE)
    assert table["Sex"].tolist() == ["Female", "Male", "Male"]
    assert table["Age"].tolist()[::2] == [51, 23]
    assert math.isnan(table["Age"][1])  # 155 years
    assert table["AP/PA"].tolist() == ["PA", "AP", "AP"]
    assert set(table["Frontal/Lateral"]) == {"Frontal"}
    assert set(table["split"]) == {""}


def test_damaged_rows_are_problems_of_their_images(root):
    add(
        root,
        LABELS,
        "ca,,,,,0",  # no class
        "cb,1,1,1,1,1",  # targets differ
        "cb,,,,,0",
        "cc,,,,,2",
        "cd,,,,,1",  # class says no
        "ce,,,,,0",  # unknown class
        "cf,,,,0",  # a cell is missing
        "cf,,,,,0",
        ",,,,,0",
        ",,,,,1",
        "cg,,,,,0",  # classes differ
        "ch,,,,,0",  # no file
    )
    add(
        root,
        CLASSES,
        "cb,Lung Opacity",
        "cc,Normal",
        "cd,Normal",
        "ce,Healthy",
        "cf,Normal",
        "cg,Normal",
        "cg,Lung Opacity",
        "ch,Normal",
        "ci,Normal",  # not in the labels
        ",Normal",
    )
    table = RsnaSource(root).table()
    assert table[PROBLEM].tolist() == [
        *[""] * 3,
        f"{LABELS}, line 6: the image is not in {CLASSES}",
        f"{LABELS}, line 7: the rows of this image differ in Target",
        f"{LABELS}, line 9: Target is '2' and class 'Normal'",
        f"{LABELS}, line 10: Target is '1' and class 'Normal'",
        f"{LABELS}, line 11: class is 'Healthy', not one of the three",
        f"{LABELS}, line 12: 5 cells where the header has 6",
        f"{LABELS}, line 14: no patientId",
        f"{LABELS}, line 15: no patientId",
        f"{LABELS}, line 16: {CLASSES}, line 11: the rows of this image differ in class",
        f"{LABELS}, line 17: no such file",
        f"{CLASSES}, line 14: the image is not in {LABELS}",
        f"{CLASSES}, line 15: no patientId",
    ]
    assert table["Path"].tolist()[9:11] == ["", ""]
    assert table["Lung Opacity"].tolist()[:3] == [0, 0, 1]


def test_a_view_that_no_header_states_is_frontal(root):
    write_image(root, "0004")
    row = RsnaSource(root).table().iloc[0]
    assert row[["Frontal/Lateral", "AP/PA", "Sex"]].tolist() == ["Frontal", "", "Unknown"]


@pytest.mark.parametrize("name", [LABELS, CLASSES])
def test_missing_file(root, name):
    (root / name).unlink()
    with pytest.raises(UserError, match=f"root: there is no {name}"):
        RsnaSource(root)


def test_missing_folder(root):
    (root / IMAGES).rename(root / "other")
    with pytest.raises(UserError, match=f"root: there is no folder .*{IMAGES}"):
        RsnaSource(root)


@pytest.mark.parametrize(
    ("name", "old", "new"), [(LABELS, "Target", "target"), (CLASSES, "class\n", "klass\n")]
)
def test_missing_column(root, name, old, new):
    file = root / name
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=f"{name} lacks the column {old.strip()}"):
        RsnaSource(root).table()


def test_without_pydicom(root, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "pydicom"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="pip install"):
        RsnaSource(root)
