"""Headers of DICOM files, and a folder of them with and without a CSV file."""

import math
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pydicom
import pytest
from dicom_writer import PERSON, full_range, ramp, write_dicom

from cxr_lightning.data.resize import Resize
from cxr_lightning.data.sources.base import TABLE_COLUMNS
from cxr_lightning.data.sources.dicom import DicomSource
from cxr_lightning.data.sources.dicom_files import (
    DicomReader,
    Header,
    parse_age,
    read_dicom,
    read_header,
)
from cxr_lightning.data.sources.reading import read_chunks, split_rows
from cxr_lightning.data.sources.tables import PROBLEM
from cxr_lightning.errors import UserError
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS


@pytest.fixture
def file(tmp_path):
    return tmp_path / "image.dcm"


AGES = {
    "045Y": 45,
    "018M": 1.5,
    "012W": 84 / 365.25,
    "003D": 3 / 365.25,
    "45": 45,
    " 007y ": 7,
    "000Y": 0,
    "120Y": 120,
}


@pytest.mark.parametrize(("text", "years"), AGES.items())
def test_age(text, years):
    assert parse_age(text) == pytest.approx(years)


@pytest.mark.parametrize("text", ["", "121Y", "155", "Y", "4Y5", "-3Y", "45.5Y", "none", "045X"])
def test_age_that_is_none(text):
    assert math.isnan(parse_age(text))


def test_header(file):
    write_dicom(file, ramp(8), **PERSON)
    assert read_header(file) == Header("P7", "1.2.9", "Female", 45.0, "Frontal", "PA")
    write_dicom(file, ramp(8), PatientID="", PatientSex="O", ViewPosition="")
    header = read_header(file)
    assert header._replace(age=0.0) == Header("", "", "Unknown", 0.0, "", "")
    assert math.isnan(header.age)


@pytest.mark.parametrize(
    ("position", "view", "projection"),
    [
        ("AP", "Frontal", "AP"),
        ("pa", "Frontal", "PA"),
        ("LL", "Lateral", ""),
        ("RL", "Lateral", ""),
        ("LATERAL", "Lateral", ""),
        ("XTABLE LATERAL", "Lateral", ""),
        ("RAO", "", ""),
    ],
)
def test_view_position(file, position, view, projection):
    with pydicom.config.disable_value_validation():
        write_dicom(file, ramp(8), ViewPosition=position)
    header = read_header(file)
    assert (header.view, header.projection) == (view, projection)


@pytest.mark.parametrize(
    ("meaning", "view", "projection"),
    [
        ("lateral projection", "Lateral", ""),
        ("Left lateral", "Lateral", ""),
        ("antero-posterior", "Frontal", "AP"),
        ("postero-anterior", "Frontal", "PA"),
        ("oblique", "", ""),
    ],
)
def test_view_code_where_view_position_is_blank(file, meaning, view, projection):
    code = pydicom.Dataset()
    code.CodeMeaning = meaning
    for position, expected in (("", (view, projection)), ("PA", ("Frontal", "PA"))):
        write_dicom(file, ramp(8), ViewPosition=position, ViewCodeSequence=[code])
        header = read_header(file)
        assert (header.view, header.projection) == expected


def test_values_that_break_the_rules_give_no_warning(file):
    with pydicom.config.disable_value_validation():  # as in the files of the RSNA challenge
        write_dicom(file, ramp(8), PatientAge="51", StudyInstanceUID="1.2.x")
    assert read_header(file).age == 51
    assert read_dicom(file).image.shape == (5, 7)


def test_without_pydicom(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "pydicom"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"pip install 'cxr_lightning\[dicom\]'"):
        DicomSource(tmp_path)


def test_folder_without_a_csv_file(tmp_path):
    pixels = ramp(12)
    write_dicom(tmp_path / "b" / "x.DCM", pixels, 12, **PERSON)
    write_dicom(tmp_path / "b" / "y.dicom", pixels, 12, **{**PERSON, "ViewPosition": "LL"})
    write_dicom(tmp_path / "a" / "IM1", pixels, 12, PatientSex="M", PatientAge="018M")
    write_dicom(tmp_path / "1.2.840.113619.7", pixels, 12)
    write_dicom(tmp_path / "c.dcim", pixels, 12).write_bytes(b"\0" * 300)
    write_dicom(tmp_path / ".hidden.dcm", pixels, 12)
    write_dicom(tmp_path / "DICOMDIR", pixels, 12)
    (tmp_path / "notes").write_text("no image " * 40)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "gone.dcm").symlink_to(tmp_path / "nowhere")
    (tmp_path / "b" / "loop").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.dcm")
    source = DicomSource(tmp_path)
    table = source.table().set_index("Path")
    assert list(source.table().columns) == [*TABLE_COLUMNS, PROBLEM]
    good = ["1.2.840.113619.7", "a/IM1", "b/x.DCM", "b/y.dicom"]
    bad = ["c.dcim", "gone.dcm", "pipe.dcm"]
    assert list(table.index) == [*good, *bad]
    assert table[PROBLEM].tolist() == [
        *[""] * 4,
        "c.dcim: no DICOM file: it has no prefix 'DICM'",
        "gone.dcm: no such file",
        "pipe.dcm: no such file",
    ]
    table = table.loc[good]
    assert (table[list(OBSERVATIONS)] == NOT_ANNOTATED).all(axis=None)
    assert table["patient"].tolist() == [*good[:2], "P7", "P7"]
    assert table["study"].tolist() == ["study1", "study1", "1.2.9", "1.2.9"]
    assert table["Sex"].tolist() == ["Unknown", "Male", "Female", "Female"]
    assert table["Age"].tolist()[1:] == [1.5, 45, 45]
    assert math.isnan(table["Age"].iloc[0])
    assert table["Frontal/Lateral"].tolist() == ["", "", "Frontal", "Lateral"]
    assert table["AP/PA"].tolist() == ["", "", "PA", ""]
    assert set(table["split"]) == {""}
    for path in good:
        assert np.array_equal(source.image(path), full_range(pixels, 12))


def test_headers_read_by_several_processes_are_the_same(tmp_path, monkeypatch):
    for number in range(5):
        write_dicom(tmp_path / f"{number}.dcm", ramp(12), 12, **PERSON | {"PatientID": f"{number}"})
    (tmp_path / "3.dcm").write_bytes(b"none")
    alone = DicomSource(tmp_path).table()
    monkeypatch.setattr("cxr_lightning.data.sources.dicom.CHUNK", 2)
    monkeypatch.setattr("cxr_lightning.data.sources.dicom.usable_cores", lambda: 2)
    pd.testing.assert_frame_equal(DicomSource(tmp_path).table(), alone)
    assert alone["patient"].tolist() == ["0", "1", "2", "3.dcm", "4"]


def test_a_file_name_that_is_not_utf8(tmp_path):
    write_dicom(tmp_path / "1.dcm", ramp(12), 12)
    write_dicom(tmp_path / "2.dcm", ramp(12), 12).rename(tmp_path / os.fsdecode(b"\xff.dcm"))
    table = DicomSource(tmp_path).table()
    assert table["Path"].tolist() == ["1.dcm", "\\udcff.dcm"]
    assert table[PROBLEM].tolist() == ["", "\\udcff.dcm: the name is not UTF-8"]


def test_csv_file_with_a_map_of_columns(tmp_path):
    for name in ("one.dcm", "sub/two.dicom", "three", "four.dcm"):
        write_dicom(tmp_path / name, ramp(12), 12, **PERSON)
    (tmp_path / "list.csv").write_text(
        "file,who,Sex,Age,view,effusion,split,Frontal/Lateral\n"
        "one,A,Male,30,AP,1,train,Frontal\n"  # all is stated
        "sub/two,,Unknown,,,-1,,\n"  # nothing is
        "three,B,,,,,test,\n"
        "four.dcm,B,,old,,0,,\n"
        "five,C,,,,0,,\n"
    )
    columns = {"Path": "file", "patient": "who", "AP/PA": "view", "Pleural Effusion": "effusion"}
    source = DicomSource(tmp_path, columns=columns)
    table = source.table()
    assert table["Path"].tolist() == ["one", "sub/two", "three", "four.dcm", "five"]
    assert table["patient"].tolist() == ["A", "P7", "B", "B", "C"]
    assert table["Sex"].tolist()[:3] == ["Male", "Female", "Female"]
    assert table["Age"].tolist()[:3] == [30, 45, 45]
    assert table["AP/PA"].tolist()[:3] == ["AP", "PA", "PA"]
    assert table["Frontal/Lateral"].tolist()[:3] == ["Frontal"] * 3
    assert table["study"].tolist()[:3] == ["1.2.9"] * 3
    assert table["Pleural Effusion"].tolist()[:2] == [1, -1]
    assert math.isnan(table["Pleural Effusion"][2])
    assert (table["Edema"] == NOT_ANNOTATED).all()
    assert table["split"].tolist() == ["train", "", "test", "", ""]
    assert table[PROBLEM].tolist() == [
        "",
        "",
        "",
        "list.csv, line 5: Age is 'old', not a number of years",
        "list.csv, line 6: no such file",
    ]
    for path in table["Path"][:3]:
        assert np.array_equal(source.image(path), full_range(ramp(12), 12))


def test_a_study_that_the_csv_file_states_stays(tmp_path):
    write_dicom(tmp_path / "patient3" / "study2" / "a.dcm", ramp(8), **PERSON)
    write_dicom(tmp_path / "patient3" / "study1" / "a.dcm", ramp(8), **PERSON)
    list_file = tmp_path / "elsewhere" / "list.csv"
    list_file.parent.mkdir()
    list_file.write_text("Path\npatient3/study2/a\npatient3/study1/a\n")
    table = DicomSource(tmp_path, list_file).table()
    assert table["study"].tolist() == ["study2", "study1"]
    assert table["patient"].tolist() == ["patient3", "patient3"]


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match="root: there is no folder"):
        DicomSource(tmp_path / "absent")
    with pytest.raises(UserError, match="root: there is no DICOM file"):
        DicomSource(tmp_path).table()
    with pytest.raises(UserError, match="columns: .* has no CSV file"):
        DicomSource(tmp_path, columns={"Path": "file"})
    with pytest.raises(UserError, match="csv: there is no file"):
        DicomSource(tmp_path, tmp_path / "absent.csv")
    (tmp_path / "list.csv").write_text("file\na.dcm\n")
    with pytest.raises(UserError, match="lacks the column Path"):
        DicomSource(tmp_path).table()


def test_workers_read_the_same(tmp_path):
    paths = [f"{number:03d}.dcm" for number in range(130)]
    for number, path in enumerate(paths):
        write_dicom(tmp_path / path, np.roll(ramp(12), number), 12)
    (tmp_path / paths[7]).write_bytes(b"")
    resize, reader = Resize(16), DicomReader(tmp_path)
    for workers in (1, 2):
        chunks = list(read_chunks(reader, resize, split_rows(paths, 16), workers))
        assert [chunk.rows for chunk in chunks] == [64, 64, 2]
        assert chunks[0].failures == {7: "no DICOM file: it has no prefix 'DICM'"}
        images = np.concatenate([chunk.images for chunk in chunks])
        alone = [reader(path, resize).image for path in paths if path != paths[7]]
        assert np.array_equal(images, alone)


def test_workers_import_neither_pandas_nor_torch():
    code = (
        "import sys, cxr_lightning.data.sources.dicom_files\n"
        "assert not {'pandas', 'torch', 'pydicom'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
