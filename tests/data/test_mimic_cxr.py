import csv
import gzip
import random

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_lightning.data.resize import UnreadableImageError
from cxr_lightning.data.sources.base import TABLE_COLUMNS
from cxr_lightning.data.sources.mimic_cxr import Labeller, MimicCxrSource
from cxr_lightning.data.sources.registry import choose_labels
from cxr_lightning.data.sources.tables import PROBLEM
from cxr_lightning.data.split import assign_splits
from cxr_lightning.errors import UserError
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS

METADATA_LINE = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,"
    "StudyDate,StudyTime,ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,"
    "PatientOrientationCodeSequence_CodeMeaning"
)
METADATA = METADATA_LINE.split(",")
SPLIT = ["dicom_id", "study_id", "subject_id", "split"]
LABELS = ["subject_id", "study_id", *sorted(OBSERVATIONS)]  # alphabetical, as the real files

IMAGES = [
    # dicom_id, subject_id, study_id, ViewPosition, its meaning, split
    ("02aa804e-bde0afdd", "10000032", "50414267", "PA", "postero-anterior", "train"),
    ("174413ec-4ec4c1f7", "10000032", "50414267", "LATERAL", "lateral", "train"),
    ("2a2277a9-b0ded155", "10000032", "53189527", "LL", "left lateral", "train"),
    ("68b5c4b1-227d0485", "10000764", "57375967", "AP", "antero-posterior", "validate"),
    ("ea030e7a-2e3b1346", "10000898", "50771383", "", "", "test"),
]
STUDIES = {
    "50414267": {"Pneumonia": "-1.0", "Edema": "0.0", "Pleural Effusion": "1.0"},
    "53189527": {"No Finding": "1.0"},
    "50771383": {"Support Devices": "1.0"},
}
"""The study 57375967 has no labels."""

PATHS = [f"files/p10/p{subject}/s{study}/{image}.jpg" for image, subject, study, *_ in IMAGES]


def image_of(path):
    """An image of its own for each path, not symmetric."""
    rng = np.random.default_rng(sum(path.encode()))
    return rng.integers(0, 256, (6, 8), dtype=np.uint8)


def metadata():
    names = ("dicom_id", "subject_id", "study_id", "ViewPosition", "ViewCodeSequence_CodeMeaning")
    return [
        {"Rows": "3056", "PerformedProcedureStepDescription": "CHEST (PA, LAT)"}
        | dict(zip(names, image[:5], strict=True))
        for image in IMAGES
    ]


def splits():
    return [
        {"dicom_id": i, "subject_id": p, "study_id": s, "split": split}
        for i, p, s, *_, split in IMAGES
    ]


def studies():
    subjects = {study: subject for _, subject, study, *_ in IMAGES}
    return [
        {"subject_id": subjects[study], "study_id": study, **labels}
        for study, labels in STUDIES.items()
    ]


def write(root, kind, rows, header):
    file = root / f"mimic-cxr-2.0.0-{kind}.csv"
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, header, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return file


@pytest.fixture
def root(tmp_path):
    write(tmp_path, "metadata", metadata(), METADATA)
    write(tmp_path, "split", splits(), SPLIT)
    write(tmp_path, "chexpert", studies(), LABELS)
    for path in PATHS:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image_of(path)).save(tmp_path / path, format="png")  # lossless
    return tmp_path


def labels_of(table):
    """Labels that say something, by row, as text."""
    return [
        {o: str(value) for o, value in row.items() if not np.isnan(value)}
        for row in table[list(OBSERVATIONS)].to_dict("records")
    ]


NOTHING = dict.fromkeys(OBSERVATIONS, str(NOT_ANNOTATED))
EXPECTED = [
    STUDIES["50414267"],
    STUDIES["50414267"],
    STUDIES["53189527"],
    NOTHING,
    STUDIES["50771383"],
]


def test_table(root):
    table = MimicCxrSource(root).table()
    assert list(table.columns) == [*TABLE_COLUMNS, PROBLEM]
    assert table["Path"].tolist() == PATHS
    assert set(table["Sex"]) == {"Unknown"}
    assert table["Age"].isna().all()
    assert table["Age"].dtype == float
    assert table["patient"].tolist()[2:] == ["p10000032", "p10000764", "p10000898"]
    assert table["study"].tolist()[1:4] == ["s50414267", "s53189527", "s57375967"]
    assert table["split"].tolist() == ["train"] * 3 + ["valid", "test"]
    assert labels_of(table) == EXPECTED
    assert set(table[PROBLEM]) == {""}


def test_columns_go_by_name(root):
    expected = MimicCxrSource(root).table()
    rng = random.Random(1)
    for kind, rows, header in (
        ("metadata", metadata(), METADATA),
        ("split", splits(), SPLIT),
        ("chexpert", studies(), LABELS),
    ):
        write(root, kind, rows, rng.sample(header, len(header)))
    pd.testing.assert_frame_equal(MimicCxrSource(root).table(), expected)


def test_rows_go_by_identifiers(root):
    write(root, "split", splits()[::-1], SPLIT)
    write(root, "chexpert", studies()[::-1], LABELS)
    assert MimicCxrSource(root).table()["split"].tolist() == ["train"] * 3 + ["valid", "test"]
    assert labels_of(MimicCxrSource(root).table()) == EXPECTED


def test_gzipped_files_and_release_2_1(root):
    expected = MimicCxrSource(root).table()
    for file in list(root.glob("*.csv")):
        name = f"{file.name}.gz".replace("2.0.0-metadata", "2.1.0-metadata")
        (root / name).write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    (root / "mimic-cxr-2.1.0-test-set-labeled.csv").write_text("study_id\n50771383\n")
    pd.testing.assert_frame_equal(MimicCxrSource(root).table(), expected)


def test_other_labeller(root):
    rows = [{**row, "Fracture": "-1.0"} for row in studies()]
    write(root, "negbio", rows, LABELS)
    fracture = MimicCxrSource(root, "negbio").table()["Fracture"].tolist()
    assert fracture == [-1, -1, -1, NOT_ANNOTATED, -1]
    assert MimicCxrSource(root).table()["Fracture"].isna().sum() == 4


@pytest.mark.parametrize(
    ("position", "meaning", "expected"),
    [
        ("PA", "", ("Frontal", "PA")),
        ("AP", "lateral", ("Frontal", "AP")),  # the position decides
        ("AP AXIAL", "", ("Frontal", "AP")),
        ("PA LLD", "", ("Frontal", "PA")),
        ("LL", "", ("Lateral", "")),
        ("RL", "", ("Lateral", "")),
        ("LATERAL", "", ("Lateral", "")),
        ("XTABLE LATERAL", "", ("Lateral", "")),
        ("SWIMMERS", "", ("Lateral", "")),
        ("LAO", "", ("Lateral", "")),
        ("", "antero-posterior", ("Frontal", "AP")),
        ("", "postero-anterior", ("Frontal", "PA")),
        ("", "left lateral", ("Lateral", "")),
        ("ERECT", "Lateral", ("Lateral", "")),
        ("", "", ("", "")),
        ("ERECT", "something", ("", "")),
    ],
)
def test_views(root, position, meaning, expected):
    rows = metadata()
    rows[0] |= {"ViewPosition": position, "ViewCodeSequence_CodeMeaning": meaning}
    write(root, "metadata", rows, METADATA)
    first = MimicCxrSource(root).table().iloc[0]
    assert (first["Frontal/Lateral"], first["AP/PA"]) == expected


def test_no_view_at_all(root):
    rows = [{**row, "ViewPosition": "", "ViewCodeSequence_CodeMeaning": ""} for row in metadata()]
    write(root, "metadata", rows, METADATA)
    table = MimicCxrSource(root).table()
    assert set(table["Frontal/Lateral"]) == set(table["AP/PA"]) == {""}


def test_without_the_meaning_of_the_view(root):
    header = METADATA[:5]
    rows = [{name: row[name] for name in header} for row in metadata()]
    write(root, "metadata", rows, header)
    views = MimicCxrSource(root).table()["Frontal/Lateral"].tolist()
    assert views == ["Frontal", "Lateral", "Lateral", "Frontal", ""]


@pytest.mark.parametrize("name", ["patients.csv", "patients.csv.gz"])
def test_sex_but_not_age_from_patients(root, name):
    text = "subject_id,gender,anchor_age\n10000764,M,86\n10000032,F,52\n19999999,M,50\n"
    data = text.encode()
    (root / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    table = MimicCxrSource(root).table()
    assert table["Sex"].tolist() == ["Female"] * 3 + ["Male", "Unknown"]
    assert table["Age"].isna().all()  # the anchor is another year than the image's


def test_damaged_patients(root):
    (root / "patients.csv").write_text("subject_id,gender\n10000764,M\n100")
    with pytest.raises(UserError, match="patients.csv, line 3: 1 cells.* or remove it"):
        MimicCxrSource(root).table()
    (root / "patients.csv").write_text("subject_id,sex\n10000764,M\n")
    with pytest.raises(UserError, match="patients.csv lacks the column gender"):
        MimicCxrSource(root).table()


def test_images(root):
    source = MimicCxrSource(root)
    for path in source.table()["Path"]:
        assert np.array_equal(source.image(path), image_of(path))
    (root / PATHS[1]).unlink()
    with pytest.raises(UnreadableImageError, match="no such file"):
        source.image(PATHS[1])


def test_splits_are_kept_and_patients_apart(root):
    rows = splits()
    del rows[1]  # not in the split file: goes with its patient
    write(root, "split", rows, SPLIT)
    table = MimicCxrSource(root).table()
    assert table["split"].tolist()[:2] == ["train", ""]
    split = assign_splits(table, valid_fraction=0.9, seed=0)
    assert split.tolist() == ["train"] * 3 + ["valid", "test"]
    assert split.groupby(table["patient"]).nunique().max() == 1


def problems_of(root):
    """Problems by row, and the check that the other rows stay as they are."""
    table = MimicCxrSource(root).table()
    assert len(table) >= len(IMAGES)
    for row in table.index[table[PROBLEM] == ""]:
        assert table["Path"][row] == PATHS[row]
        assert labels_of(table)[row] == EXPECTED[row]
    return table[PROBLEM][table[PROBLEM] != ""].to_dict()


def test_label_that_is_none(root):
    rows = studies()
    rows[0]["Edema"] = "2"
    write(root, "chexpert", rows, LABELS)
    problems = problems_of(root)
    assert list(problems) == [0, 1]  # both images of the study
    assert "chexpert.csv, line 2: Edema is '2', not 1, 0, -1 or blank" in problems[0]


def test_torn_label_row(root):
    file = write(root, "chexpert", [studies()[0], studies()[2]], LABELS)
    with file.open("a") as stream:
        stream.write("10000032,5318")
    problems = problems_of(root)
    # It may be the row of either study that has none.
    assert list(problems) == [2, 3]
    assert "no row in mimic-cxr-2.0.0-chexpert.csv, which is damaged" in problems[2]
    assert "line 4: 2 cells where the header has 16" in problems[2]


def test_torn_label_row_of_a_known_study(root):
    file = write(root, "chexpert", studies()[:2], LABELS)
    with file.open("a") as stream:
        stream.write("10000898,50771383,,,1.0")
    problems = problems_of(root)
    assert list(problems) == [4]
    assert "line 4: 5 cells" in problems[4]


def test_contradicting_labels(root):
    write(root, "chexpert", [*studies(), {**studies()[1], "Edema": "1.0"}], LABELS)
    problems = problems_of(root)
    assert list(problems) == [2]
    assert problems[2].endswith("line 3: another row contradicts this one")
    write(root, "chexpert", [*studies(), studies()[1]], LABELS)  # the same row twice
    assert problems_of(root) == {}


def test_split_that_is_none(root):
    rows = splits()
    rows[3]["split"] = "dev"
    write(root, "split", rows, SPLIT)
    problems = problems_of(root)
    assert list(problems) == [3]
    assert "split is 'dev', not train, valid, test or blank" in problems[3]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"dicom_id": ""}, "dicom_id is '', no identifier"),
        ({"dicom_id": "../x"}, "dicom_id is '../x'"),
        ({"subject_id": "p100"}, "subject_id is 'p100'"),
        ({"study_id": "50414267.0"}, "study_id is '50414267.0'"),
        (
            {"dicom_id": IMAGES[1][0], "study_id": IMAGES[1][2]},
            "an earlier row names the same image",
        ),
    ],
)
def test_damaged_metadata(root, cells, message):
    rows = metadata()
    rows[2] |= cells
    write(root, "metadata", rows, METADATA)
    problems = problems_of(root)
    assert list(problems) == [2]
    assert f"metadata.csv, line 4: {message}" in problems[2]


def test_torn_metadata(root):
    with (root / "mimic-cxr-2.0.0-metadata.csv").open("a") as stream:
        stream.write("aaaa,100")
    problems = problems_of(root)
    assert list(problems) == [5]
    assert problems[5].endswith("2 cells where the header has 12")


@pytest.mark.parametrize(
    ("kind", "column"),
    [("metadata", "ViewPosition"), ("split", "dicom_id"), ("chexpert", "Edema")],
)
def test_missing_column(root, kind, column):
    file = root / f"mimic-cxr-2.0.0-{kind}.csv"
    file.write_text(file.read_text().replace(column, "Other", 1))
    with pytest.raises(UserError, match=f"{file.name} lacks the column {column}"):
        MimicCxrSource(root).table()


@pytest.mark.parametrize("kind", ["metadata", "split", "chexpert"])
def test_missing_file(root, kind):
    (root / f"mimic-cxr-2.0.0-{kind}.csv").unlink()
    with pytest.raises(UserError, match=rf"root: there is no mimic-cxr-2\.\*-{kind}\.csv .or .csv"):
        MimicCxrSource(root)


def test_two_releases_at_once(root):
    write(root, "split", splits(), SPLIT).rename(root / "mimic-cxr-2.1.0-split.csv")
    write(root, "split", splits(), SPLIT)
    with pytest.raises(UserError, match="2.0.0-split.csv and mimic-cxr-2.1.0-split.csv; keep one"):
        MimicCxrSource(root)


def test_labels_of_another_data_set(root):
    write(root, "chexpert", [{"subject_id": "1", "study_id": "2"}], LABELS)
    with pytest.raises(UserError, match="names none of the images, such as 10000032/50414267"):
        MimicCxrSource(root).table()


def test_unknown_labels(root):
    with pytest.raises(UserError, match="labels: 'report' .* chexpert, negbio"):
        choose_labels("report", Labeller)
    with pytest.raises(UserError, match=r"there is no mimic-cxr-2\.\*-negbio\.csv"):
        MimicCxrSource(root, "negbio")
