import math
import sys

import numpy as np
import pytest
from dicom_writer import write_dicom
from pydicom.uid import ImplicitVRLittleEndian

from cxr_lightning.data.sources.base import TABLE_COLUMNS
from cxr_lightning.data.sources.tables import PROBLEM
from cxr_lightning.data.sources.vindr import VindrSource
from cxr_lightning.errors import UserError
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS

LABELS = [
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Clavicle fracture",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Enlarged PA",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Lung cavity",
    "Lung cyst",
    "Mediastinal shift",
    "Nodule/Mass",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
    "Rib fracture",
    "Other lesion",
    "COPD",
    "Lung tumor",
    "Pneumonia",
    "Tuberculosis",
    "Other diseases",
    "No finding",
]
"""The columns of PhysioNet's training file, in its order."""

PHYSIONET = ("annotations/image_labels_train.csv", "annotations/image_labels_test.csv")

TRAIN = [
    # image, radiologist, what he or she said
    ("aa", "R1", ["No finding"]),
    ("aa", "R2", ["No finding"]),
    ("aa", "R3", ["Cardiomegaly"]),
    ("bb", "R9", ["Pleural effusion", "Lung Opacity"]),
    ("bb", "R8", ["Pleural effusion", "Infiltration", "Nodule/Mass"]),
    ("bb", "R4", ["No finding"]),
    ("cc", "R1", ["Aortic enlargement"]),
    ("cc", "R2", ["Aortic enlargement", "Pleural thickening"]),
    ("cc", "R3", ["Other lesion", "ILD", "Pulmonary fibrosis", "Calcification"]),
]
"""In the 14 labels of both layouts."""

EXPECTED = {
    "No Finding": [1, -1, 0],
    "Cardiomegaly": [-1, 0, 0],
    "Lung Opacity": [0, 1, 0],  # Lung Opacity and Infiltration by one radiologist each
    "Lung Lesion": [0, -1, 0],
    "Consolidation": [0, 0, 0],
    "Atelectasis": [0, 0, 0],
    "Pneumothorax": [0, 0, 0],
    "Pleural Effusion": [0, 1, 0],
    "Pleural Other": [0, 0, -1],
}
ONLY_PHYSIONET = {"Edema": [0, 0, 0], "Pneumonia": [0, 0, 0], "Fracture": [0, 0, 0]}

PEOPLE = {
    "aa": {"PatientSex": "F", "PatientAge": "061Y"},
    "bb": {"PatientSex": "M", "PatientAge": "000Y"},
    "cc": {"PatientSex": "O"},
    "tt": {"PatientSex": "M", "PatientAge": "030Y"},
    "uu": {},
}


def image_of(name):
    return np.random.default_rng(sum(name.encode())).integers(0, 256, (6, 8), dtype=np.uint8)


def write_image(folder, name):
    """A file of 12 bits in MONOCHROME1, whose grey image is `image_of(name)`."""
    values = np.round((255 - image_of(name).astype(float)) * 4095 / 255).astype(np.uint16)
    people = {"PhotometricInterpretation": "MONOCHROME1", **PEOPLE.get(name, {})}
    write_dicom(folder / f"{name}.dicom", values, 12, ImplicitVRLittleEndian, **people)


def columns_csv(readings, labels=LABELS, with_reader=True):
    """A file of PhysioNet."""
    head = ["image_id", *["rad_id"] * with_reader, *labels]
    lines = [
        [image, *[reader] * with_reader, *(str(int(label in said)) for label in labels)]
        for image, reader, said in readings
    ]
    return "\n".join(",".join(line) for line in [head, *lines]) + "\n"


def boxes_csv(readings):
    """Kaggle's file: a row a box, two of each kind."""
    lines = ["image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"]
    for image, reader, said in readings:
        for label in said:
            box = ",,," if label == "No finding" else "1,2,30,40"
            lines += [f"{image},{label},0,{reader},{box}"] * (1 if label == "No finding" else 2)
    return "\n".join(lines) + "\n"


def write_layout(root, layout):
    for name in ("aa", "bb", "cc"):
        write_image(root / "train", name)
    if layout == "kaggle":
        (root / "train.csv").write_text(boxes_csv(TRAIN))
        return root
    for name in ("tt", "uu"):
        write_image(root / "test", name)
    (root / "annotations").mkdir()
    (root / PHYSIONET[0]).write_text(columns_csv(TRAIN))
    test = [("tt", "", ["Rib fracture", "Edema", "Other disease"]), ("uu", "", ["No finding"])]
    labels = ["Other disease" if label == "Other diseases" else label for label in LABELS]
    (root / PHYSIONET[1]).write_text(columns_csv(test, labels, with_reader=False))
    return root


@pytest.fixture
def physionet(tmp_path):
    return write_layout(tmp_path, "physionet")


@pytest.fixture
def kaggle(tmp_path):
    return write_layout(tmp_path, "kaggle")


def test_both_layouts_give_the_same_votes(tmp_path):
    tables = {}
    for layout in ("physionet", "kaggle"):
        source = VindrSource(write_layout(tmp_path / layout, layout))
        table = source.table()
        tables[layout] = table[:3]
        assert list(table.columns) == [*TABLE_COLUMNS, PROBLEM]
        assert set(table[PROBLEM]) == {""}
        assert table["Path"].tolist()[:3] == ["train/aa.dicom", "train/bb.dicom", "train/cc.dicom"]
        for observation, labels in EXPECTED.items():
            assert tables[layout][observation].tolist() == labels, observation
        for path in table["Path"]:
            assert np.array_equal(source.image(path), image_of(path[-8:-6]))
    for observation, labels in ONLY_PHYSIONET.items():
        assert tables["physionet"][observation].tolist() == labels
        assert tables["kaggle"][observation].tolist() == [NOT_ANNOTATED] * 3
    for observation in ("Enlarged Cardiomediastinum", "Support Devices"):
        assert set(tables["physionet"][observation]) == {NOT_ANNOTATED}


def test_every_observation_is_covered():
    both = {"Enlarged Cardiomediastinum", "Support Devices", *EXPECTED, *ONLY_PHYSIONET}
    assert both == set(OBSERVATIONS)


@pytest.mark.parametrize(
    ("label", "observation"),
    [
        ("Atelectasis", "Atelectasis"),
        ("Cardiomegaly", "Cardiomegaly"),
        ("Clavicle fracture", "Fracture"),
        ("Consolidation", "Consolidation"),
        ("Edema", "Edema"),
        ("Infiltration", "Lung Opacity"),
        ("Lung Opacity", "Lung Opacity"),
        ("Lung tumor", "Lung Lesion"),
        ("Nodule/Mass", "Lung Lesion"),
        ("Pleural effusion", "Pleural Effusion"),
        ("Pleural thickening", "Pleural Other"),
        ("Pneumonia", "Pneumonia"),
        ("Pneumothorax", "Pneumothorax"),
        ("Rib fracture", "Fracture"),
        ("No finding", "No Finding"),
        ("Other diseases", None),
        ("COPD", None),
        ("Lung cavity", None),
    ],
)
def test_each_label(physionet, label, observation):
    readings = [("aa", reader, [label]) for reader in ("R1", "R2", "R3")]
    (physionet / PHYSIONET[0]).write_text(columns_csv(readings))
    row = VindrSource(physionet).table().iloc[0]
    assert [o for o in OBSERVATIONS if row[o] == 1] == ([observation] if observation else [])
    assert row["No Finding"] == (observation == "No Finding")


def votes_by_hand(readings, labels):
    """1, 0 or -1 for one image: what most, none or some of the radiologists said."""
    count = sum(any(label in said for label in labels) for said in readings)
    return 1 if 2 * count > len(readings) else 0 if count == 0 else -1


def test_votes_of_many_images(physionet):
    rng = np.random.default_rng(0)
    readings = []
    for number in range(60):
        for reader in range(1 + number % 3):
            said = [label for label in LABELS[:-1] if rng.random() < 0.2]
            readings.append((f"i{number}", f"R{reader}", said or ["No finding"]))
    rng.shuffle(readings)
    (physionet / PHYSIONET[0]).write_text(columns_csv(readings))
    table = VindrSource(physionet).table().iloc[:60]
    for path, *labels in table[["Path", "No Finding", "Lung Opacity", "Fracture"]].to_numpy():
        said = [words for image, _, words in readings if path == f"train/{image}.dicom"]
        groups = [["No finding"], ["Lung Opacity", "Infiltration"], ["Rib fracture", LABELS[4]]]
        assert labels == [votes_by_hand(said, group) for group in groups]


def test_who_names_a_label_denies_no_finding(physionet):
    said = ["No finding", "Aortic enlargement"]
    (physionet / PHYSIONET[0]).write_text(columns_csv([("aa", "R1", said), ("aa", "R2", said)]))
    assert VindrSource(physionet).table()["No Finding"][0] == 0


def test_the_test_images_are_a_consensus(physionet):
    table = VindrSource(physionet).table().iloc[3:].reset_index()
    assert table["Path"].tolist() == ["test/tt.dicom", "test/uu.dicom"]
    assert table["split"].tolist() == ["test", "test"]
    assert table["Fracture"].tolist() == [1, 0]
    assert table["Edema"].tolist() == [1, 0]
    assert table["No Finding"].tolist() == [0, 1]


def test_people(physionet):
    table = VindrSource(physionet).table()
    assert table["patient"].tolist() == list(PEOPLE)
    assert table["Sex"].tolist() == ["Female", "Male", "Unknown", "Male", "Unknown"]
    assert table["Age"].tolist()[::3] == [61, 30]
    assert all(math.isnan(table["Age"][row]) for row in (1, 2, 4))  # 0 years are no age
    assert set(table["Frontal/Lateral"]) == {"Frontal"}
    assert set(table["AP/PA"]) == {"PA"}
    assert table["split"].tolist() == ["", "", "", "test", "test"]


def test_column_names_in_any_case_and_order(physionet):
    expected = VindrSource(physionet).table()
    labels = [label.lower() for label in LABELS[::-1]]
    readings = [(image, who, [label.lower() for label in said]) for image, who, said in TRAIN]
    (physionet / PHYSIONET[0]).write_text(columns_csv(readings, labels))
    assert VindrSource(physionet).table().equals(expected)


def test_damaged_rows_of_physionet(physionet):
    file = physionet / PHYSIONET[0]
    lines = file.read_text().splitlines()
    zeros = ",".join(["0"] * len(LABELS))
    lines[5] = lines[5].replace(",1,", ",2,", 1)  # bb
    lines += [f"dd,R1,{zeros}", f"dd,R1,{zeros}", f"ee,,{zeros}", f",R1,{zeros}", f",R2,{zeros}"]
    lines += [f"ff,R1,{zeros},0", f"ff,R2,{zeros}", f"gg,R1,{zeros[:-1]}", f"hh,R1,{zeros}"]
    lines += [f"tt,R1,{zeros}"]
    file.write_text("\n".join(lines) + "\n")
    write_image(physionet / "train", "tt")
    table = VindrSource(physionet).table()
    where = "image_labels_train.csv, line"
    assert table[PROBLEM].tolist() == [
        "",
        f"{where} 6: Infiltration is '2', not 0 or 1",
        "",
        f"{where} 12: an earlier row has the same image and radiologist",
        f"{where} 13: no rad_id",
        f"{where} 14: no image_id",
        f"{where} 15: no image_id",
        f"{where} 16: 31 cells where the header has 30",
        f"{where} 18: No finding is '', not 0 or 1",
        f"{where} 19: no such file",
        "",
        "image_labels_test.csv, line 2: the image is in the training file as well",
        "",
    ]
    assert table["No Finding"].tolist()[:3] == [1, -1, 0]


def test_damaged_rows_of_kaggle(kaggle):
    with (kaggle / "train.csv").open("a") as stream:
        stream.write("cc,Broken rib,3,R1,1,2,3,4\ndd,No finding,14,R1,,,,\n,No finding,14,R1,,,,\n")
    table = VindrSource(kaggle).table()
    assert [problem.split(": ", 1)[-1] for problem in table[PROBLEM]] == [
        "",
        "",
        "class_name 'Broken rib' is unknown",
        "no such file",
        "no image_id",
    ]


def test_only_the_test_images(physionet):
    (physionet / PHYSIONET[0]).unlink()
    assert VindrSource(physionet).table()["Path"].tolist() == ["test/tt.dicom", "test/uu.dicom"]


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match="root: there is neither .*image_labels_train.csv nor"):
        VindrSource(tmp_path)
    (tmp_path / "train.csv").write_text(boxes_csv(TRAIN))
    with pytest.raises(UserError, match="root: there is no folder .*train for the images"):
        VindrSource(tmp_path)


@pytest.mark.parametrize("column", ["image_id", "rad_id", "Pneumonia", "No finding"])
def test_missing_column_of_physionet(physionet, column):
    file = physionet / PHYSIONET[0]
    file.write_text(file.read_text().replace(column, "x", 1))
    with pytest.raises(UserError, match=f"lacks the column {column}"):
        VindrSource(physionet).table()


@pytest.mark.parametrize("column", ["image_id", "rad_id", "class_name"])
def test_missing_column_of_kaggle(kaggle, column):
    file = kaggle / "train.csv"
    file.write_text(file.read_text().replace(column, "x", 1))
    with pytest.raises(UserError, match=f"lacks the column {column}"):
        VindrSource(kaggle).table()


def test_a_column_twice(physionet):
    file = physionet / PHYSIONET[0]
    file.write_text(file.read_text().replace("Emphysema", "EDEMA", 1))
    with pytest.raises(UserError, match="names the column Edema twice"):
        VindrSource(physionet).table()


def test_without_pydicom(physionet, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "pydicom"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="pip install"):
        VindrSource(physionet)
