import csv
import gzip
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_lightning.data.resize import UnreadableImageError
from cxr_lightning.data.sources.base import TABLE_COLUMNS
from cxr_lightning.data.sources.nih14 import Nih14Source, read_findings
from cxr_lightning.data.sources.nih_labels import NIH_LABELS, map_nih
from cxr_lightning.data.sources.tables import PROBLEM, read_csv
from cxr_lightning.data.split import assign_splits
from cxr_lightning.errors import UserError
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS

# The brackets hold commas, so there are two columns in each.
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
ROWS = [
    "00000001_000.png,Cardiomegaly,0,1,57,M,PA,2682,2749,0.143,0.143",
    "00000001_001.png,Cardiomegaly|Emphysema,1,1,58,M,AP,2894,2729,0.143,0.143",
    "00000002_000.png,No Finding,0,2,80,F,PA,2500,2048,0.171,0.171",
    "00000013_005.png,Effusion|Infiltration|Mass,30,13,60,M,AP,3056,2544,0.139,0.139",
    "00030805_000.png,Pleural_Thickening,0,30805,27,M,PA,2048,2500,0.171,0.171",
]
# The release of 2017: numbers with zeros, ages with units, a comma more in the header alone.
OLD_HEADER = HEADER + ","
OLD_ROWS = [
    "00000001_000.png,Cardiomegaly,000,00000001,057Y,M,PA,2682,2749,0.143,0.143",
    "00000001_001.png,Cardiomegaly|Emphysema,001,00000001,058Y,M,AP,2894,2729,0.143,0.143",
    "00000002_000.png,No Finding,000,00000002,080Y,F,PA,2500,2048,0.171,0.171",
    "00000013_005.png,Effusion|Infiltration|Mass,030,00000013,060Y,M,AP,3056,2544,0.139,0.139",
    "00030805_000.png,Pleural_Thickening,000,00030805,027Y,M,PA,2048,2500,0.171,0.171",
]
NAMES = [row.split(",")[0] for row in ROWS]
FOLDERS = ["images_001/images", "images_001/images", "images_002/images", "images_012/images"]

UNANNOTATED = ("Enlarged Cardiomediastinum", "Fracture", "Support Devices")


def image_of(name):
    """An image of its own for each name, not symmetric."""
    rng = np.random.default_rng(sum(name.encode()))
    return rng.integers(0, 256, (6, 8), dtype=np.uint8)


def write(root, rows, header=HEADER, name="Data_Entry_2017_v2020.csv"):
    (root / name).write_text("\n".join([header, *rows]) + "\n")


def write_image(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_of(file.name)).save(file)


@pytest.fixture
def root(tmp_path):
    write(tmp_path, ROWS)
    (tmp_path / "train_val_list.txt").write_text("\n".join(NAMES[:3]))
    (tmp_path / "test_list.txt").write_bytes((NAMES[3] + "\r\n").encode())  # the last in neither
    for folder, name in zip([*FOLDERS, "images_012/images"], NAMES, strict=True):
        write_image(tmp_path / folder / name)
    return tmp_path


def test_table(root):
    table = Nih14Source(root).table()
    assert list(table.columns) == [*TABLE_COLUMNS, PROBLEM]
    assert table["Path"].tolist() == NAMES
    assert table["Sex"].tolist() == ["Male", "Male", "Female", "Male", "Male"]
    assert table["Age"].tolist() == [57, 58, 80, 60, 27]
    assert set(table["Frontal/Lateral"]) == {"Frontal"}
    assert table["AP/PA"].tolist() == ["PA", "AP", "PA", "AP", "PA"]
    assert table["patient"].tolist()[1:] == [
        "patient00001",
        "patient00002",
        "patient00013",
        "patient30805",
    ]
    assert table["study"].tolist() == ["study1", "study2", "study1", "study31", "study1"]
    assert table["split"].tolist() == ["", "", "", "test", ""]
    assert set(table[PROBLEM]) == {""}


def test_labels(root):
    table = Nih14Source(root).table()
    assert (table[list(UNANNOTATED)] == NOT_ANNOTATED).all(axis=None)
    positive = [{o for o in OBSERVATIONS if row[o] == 1} for _, row in table.iterrows()]
    assert positive == [
        {"Cardiomegaly"},
        {"Cardiomegaly"},
        {"No Finding"},
        {"Pleural Effusion", "Lung Opacity", "Lung Lesion"},
        {"Pleural Other"},
    ]
    assert table["No Finding"].isna().tolist() == [True, True, False, True, True]
    assert table["Lung Opacity"].tolist()[2:4] == [0, 1]
    assert table["Lung Opacity"].isna().tolist() == [True, True, False, False, True]
    assert table["Pneumonia"].tolist() == [0] * 5


@pytest.mark.parametrize("comma", ["", ","])
def test_release_of_2017(root, comma):
    expected = Nih14Source(root).table()
    (root / "Data_Entry_2017_v2020.csv").unlink()
    write(root, [row + comma for row in OLD_ROWS], OLD_HEADER, "Data_Entry_2017.csv")
    pd.testing.assert_frame_equal(Nih14Source(root).table(), expected)


def test_release_of_2020_goes_first(root):
    write(root, OLD_ROWS[:1], OLD_HEADER, "Data_Entry_2017.csv")
    assert len(Nih14Source(root).table()) == 5


def test_columns_go_by_name(root):
    expected = Nih14Source(root).table()
    shuffled = read_csv(root / "Data_Entry_2017_v2020.csv").drop(columns=PROBLEM)
    shuffled = shuffled.sample(axis=1, frac=1.0, random_state=1)
    shuffled = shuffled.rename(columns={"Patient Gender": "Patient Sex"})
    shuffled.to_csv(root / "Data_Entry_2017_v2020.csv", index=False)
    pd.testing.assert_frame_equal(Nih14Source(root).table(), expected)


def test_gzipped_csv(root):
    expected = Nih14Source(root).table()
    file = root / "Data_Entry_2017_v2020.csv"
    (root / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()
    pd.testing.assert_frame_equal(Nih14Source(root).table(), expected)


@pytest.mark.parametrize("layout", ["{}", "images/{}", "images_002/{}", "images_012/images/{}"])
def test_images(tmp_path, layout):
    write(tmp_path, ROWS)
    for name in NAMES:
        write_image(tmp_path / layout.format(name))
    (tmp_path / "images_001.tar.gz").write_bytes(b"")
    source = Nih14Source(tmp_path)
    reader = pickle.loads(pickle.dumps(source.reader))
    for name in source.table()["Path"]:
        assert np.array_equal(reader(name).image, image_of(name))


def test_missing_image(root):
    (root / FOLDERS[0] / NAMES[0]).unlink()
    source = Nih14Source(root)
    assert np.array_equal(source.image(NAMES[3]), image_of(NAMES[3]))
    with pytest.raises(UnreadableImageError, match="no such file"):
        source.image(NAMES[0])


def test_module_of_the_reader_is_light():
    check = "import sys; sys.exit('pandas' in sys.modules or 'torch' in sys.modules)"
    command = f"import cxr_lightning.data.sources.files; {check}"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


def test_test_split_is_kept_and_valid_is_drawn_by_patient(tmp_path):
    rows = [
        f"{patient:08d}_{image:03d}.png,No Finding,{image},{patient},50,M,PA,1,1,1,1"
        for patient in range(1, 41)
        for image in range(2)
    ]
    write(tmp_path, rows)
    names = [row.split(",")[0] for row in rows]
    (tmp_path / "train_val_list.txt").write_text("\n".join(names[:60]))
    (tmp_path / "test_list.txt").write_text("\n".join(names[60:79]))  # the last in neither
    table = Nih14Source(tmp_path).table()
    split = assign_splits(table, valid_fraction=0.5, seed=0)
    assert set(split[:60]) == {"train", "valid"}
    assert set(split[60:]) == {"test"}
    assert split.groupby(table["patient"]).nunique().max() == 1


def test_without_lists_no_split_is_stated(root):
    (root / "train_val_list.txt").unlink()
    (root / "test_list.txt").unlink()
    assert set(Nih14Source(root).table()["split"]) == {""}


@pytest.mark.parametrize(
    ("one", "other"),
    [("train_val_list.txt", "test_list.txt"), ("test_list.txt", "train_val_list.txt")],
)
def test_one_list_without_the_other(root, one, other):
    (root / one).unlink()
    with pytest.raises(UserError, match=f"holds {other} but not {one}"):
        Nih14Source(root).table()


def test_lists_of_another_data_set(root):
    for name in ("train_val_list.txt", "test_list.txt"):
        (root / name).write_text("other.png\n")
    with pytest.raises(UserError, match="name none of the images"):
        Nih14Source(root).table()
    (root / "test_list.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="test_list.txt cannot be read as UTF-8"):
        Nih14Source(root).table()


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("058Y", 58),
        ("0", 0),
        ("120", 120),
        ("018M", 1.5),
        ("001D", 1 / 365),
        ("", np.nan),
        ("412Y", np.nan),
        ("148", np.nan),
    ],
)
def test_ages(root, text, age):
    write(root, [ROWS[0].replace(",57,", f",{text},"), *ROWS[1:]])
    table = Nih14Source(root).table()
    np.testing.assert_equal(table["Age"].tolist(), [age, 58, 80, 60, 27])
    assert set(table[PROBLEM]) == {""}


def problems_of(root):
    """Problems by row, and the check that the other rows stay as they are."""
    table = Nih14Source(root).table()
    assert len(table) >= len(ROWS)
    for row in table.index[table[PROBLEM] == ""]:
        assert table["Path"][row] == NAMES[row]
        assert table["Cardiomegaly"][row] == (row < 2)
    return table[PROBLEM][table[PROBLEM] != ""].to_dict()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("No Finding", "Effusion|Tumour", "'Tumour' is not a label of NIH ChestX-ray14"),
        ("No Finding", "", "'' is not a label"),
        ("No Finding", "No Finding|Mass", "No Finding stands beside other labels"),
        (",0,2,", ",first,2,", "Follow-up # is 'first', not a number"),
        (",0,2,", ",0,,", "Patient ID is '', not a number"),
        (",80,", ",old,", "Patient Age is 'old', not a number of years"),
        (",80,", ",-1,", "Patient Age is '-1'"),
        (",0.171,0.171", "", "9 cells where the header has 11"),
        ("00000002_000.png", "", "no path"),
        ("00000002_000.png", "00000001_000.png", "an earlier row names the same image"),
    ],
)
def test_damaged_rows(root, old, new, message):
    assert old in ROWS[2]
    write(root, [*ROWS[:2], ROWS[2].replace(old, new), *ROWS[3:]])
    problems = problems_of(root)
    assert list(problems) == [2]
    assert f"Data_Entry_2017_v2020.csv, line 4: {message}" in problems[2]


def test_damaged_rows_under_the_long_header(root):
    (root / "Data_Entry_2017_v2020.csv").unlink()
    rows = [*OLD_ROWS[:2], OLD_ROWS[2][:-6], OLD_ROWS[3].replace("060Y", ",060Y"), OLD_ROWS[4]]
    write(root, rows, OLD_HEADER, "Data_Entry_2017.csv")
    problems = problems_of(root)
    assert list(problems) == [2, 3]
    assert "line 4: 10 cells" in problems[2]
    assert "line 5: more cells than columns with a name" in problems[3]


def test_image_in_both_lists(root):
    (root / "test_list.txt").write_text(f"{NAMES[3]}\n{NAMES[2]}\n")
    problems = problems_of(root)
    assert list(problems) == [2]
    assert "named by both train_val_list.txt and test_list.txt" in problems[2]


@pytest.mark.parametrize("column", ["Image Index", "Finding Labels", "Patient Gender"])
def test_missing_column(root, column):
    write(root, ROWS, HEADER.replace(column, "Other"))
    with pytest.raises(UserError, match=f"v2020.csv lacks the column {column}"):
        Nih14Source(root).table()


def test_missing_csv(tmp_path):
    with pytest.raises(UserError, match="no Data_Entry_2017_v2020.csv or Data_Entry_2017.csv"):
        Nih14Source(tmp_path)
    with pytest.raises(UserError, match="root: there is no folder"):
        Nih14Source(tmp_path / "absent")


def real(name):
    folder = Path(os.environ["CXR_TEST_DATA"]) / "nih64"
    return pd.read_csv(folder / name, dtype=str, keep_default_na=False).set_index("Path")


needs_nih64 = pytest.mark.skipif("CXR_TEST_DATA" not in os.environ, reason="needs CXR_TEST_DATA")


@needs_nih64
def test_mapping_agrees_with_nih64():
    labels = real("provenance.csv")["original_labels"]
    theirs = pd.concat([real("train.csv"), real("valid.csv")]).loc[labels.index]
    found, problems = read_findings(labels)
    assert len(found) == 850
    assert set(problems) == {""}
    ours = pd.DataFrame(map_nih(found), index=labels.index, columns=list(OBSERVATIONS))
    for observation in OBSERVATIONS:
        expected = pd.to_numeric(theirs[observation]).astype(float)
        if observation in UNANNOTATED:
            assert expected.isna().all()  # nih64 leaves blank what nobody looked for
            expected = expected.fillna(NOT_ANNOTATED)
        pd.testing.assert_series_equal(ours[observation], expected, check_names=False)


@needs_nih64
def test_table_agrees_with_nih64(tmp_path):
    source = real("provenance.csv")
    theirs = pd.concat([real("train.csv"), real("valid.csv")]).loc[source.index]
    paths = source.index.to_series()
    rows = pd.DataFrame(
        {
            "Image Index": source["source_file"].str.split("/").str[-1],
            "Finding Labels": source["original_labels"],
            "Follow-up #": paths.str.extract(r"study(\d+)", expand=False).astype(int) - 1,
            "Patient ID": source["patient_key"],
            "Patient Age": theirs["Age"],
            "Patient Gender": theirs["Sex"].str[0],
            "View Position": source["view"],
        }
    )
    with (tmp_path / "Data_Entry_2017_v2020.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(HEADER.split(","))
        writer.writerows([*row, "1", "1", "1", "1"] for row in rows.itertuples(index=False))
    table = Nih14Source(tmp_path).table()
    assert set(table[PROBLEM]) == {""}
    where = table["patient"] + "/" + table["study"]
    assert where.tolist() == paths.str.extract(r"(patient\d+/study\d+)", expand=False).tolist()
    for column in ("Sex", "AP/PA", "Frontal/Lateral"):
        assert table[column].tolist() == theirs[column].tolist()
    assert table["Age"].tolist() == theirs["Age"].astype(float).tolist()


def test_each_label_has_a_counterpart_or_none():
    rows, _ = read_findings(pd.Series(NIH_LABELS))
    mapped = pd.DataFrame(map_nih(rows), index=NIH_LABELS, columns=list(OBSERVATIONS))
    counterparts = {label: list(mapped.columns[mapped.loc[label] == 1]) for label in NIH_LABELS}
    renamed = {
        "Effusion": ["Pleural Effusion"],
        "Infiltration": ["Lung Opacity"],
        "Mass": ["Lung Lesion"],
        "Nodule": ["Lung Lesion"],
        "Pleural_Thickening": ["Pleural Other"],
        "Emphysema": [],
        "Fibrosis": [],
        "Hernia": [],
    }
    assert counterparts == {label: renamed.get(label, [label]) for label in NIH_LABELS}
