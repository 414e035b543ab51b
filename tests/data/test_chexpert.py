import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_lightning.data.resize import UnreadableImageError
from cxr_lightning.data.sources.base import COLUMNS, TABLE_COLUMNS
from cxr_lightning.data.sources.chexpert import ChexpertSource
from cxr_lightning.errors import UserError
from cxr_lightning.types import OBSERVATIONS

SMALL, FULL = "CheXpert-v1.0-small", "CheXpert-v1.0"
BATCHES = {
    "patient00001": f"{FULL} batch 2 (train 1)",
    "patient33093": f"{FULL} batch 3 (train 2)",
    "patient64540": f"{FULL} batch 4 (train 3)",
}
FIRST_BATCH = f"{FULL} batch 1 (validate & csv)"

TRAIN = [
    # study 2 before study 1; frontal PA and its lateral, whose AP/PA is blank
    ("patient00001/study2/view1_frontal.jpg", "Female,68,Frontal,PA", {"Pneumonia": "-1.0"}),
    ("patient00001/study2/view2_lateral.jpg", "Female,68,Lateral,", {"Pneumonia": "-1.0"}),
    ("patient00001/study1/view1_frontal.jpg", "Female,68,Frontal,AP", {"No Finding": "1.0"}),
    ("patient33093/study1/view1_frontal.jpg", "Unknown,34,Frontal,LL", {"Edema": "0.0"}),
    ("patient64540/study1/view1_frontal.jpg", "Female,0,Frontal,RL", {}),
    ("patient64540/study1/view2_frontal.jpg", "Male,90,Frontal,AP", {"Fracture": "1"}),
]
VALID = [("patient64541/study1/view1_frontal.jpg", "Male,73,Frontal,AP", {"Edema": "1.0"})]


def image_of(path):
    """An image of its own for each path, not symmetric."""
    rng = np.random.default_rng(sum(path.encode()))
    return rng.integers(0, 256, (6, 8), dtype=np.uint8)


def row(path, head, labels):
    return ",".join([path, head, *(labels.get(o, "") for o in OBSERVATIONS)])


def write_csv(file, prefix, split, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [row(f"{prefix}/{split}/{path}", head, labels) for path, head, labels in rows]
    file.write_text("\n".join([",".join(COLUMNS), *lines]) + "\n")


def write_image(file, path):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_of(path)).save(file, format="png")  # lossless, whatever its name


def write_layout(top, layout):
    """Writes the same data set in one of the layouts."""
    prefix = SMALL if layout.startswith("small") else FULL
    home = {"small": top / SMALL, "small beside": top, "merged": top / FULL}
    folder = home.get(layout, top / FIRST_BATCH)
    for split, rows in (("train", TRAIN), ("valid", VALID)):
        write_csv(folder / f"{split}.csv", prefix, split, rows)
        for path, _, _ in rows:
            if layout == "unmerged" and split == "train":
                write_image(top / BATCHES[path.split("/")[0]] / path, path)
            elif layout == "unmerged":
                write_image(top / FIRST_BATCH / split / path, path)
            else:
                write_image(top / prefix / split / path, path)
    return top


LAYOUTS = [
    ("small", "."),
    ("small", SMALL),
    ("small beside", "."),
    ("small beside", SMALL),
    ("merged", "."),
    ("merged", FULL),
    ("unmerged", "."),
    ("unmerged", FIRST_BATCH),
    ("unmerged", BATCHES["patient00001"]),
]


@pytest.mark.parametrize(("layout", "root"), LAYOUTS)
def test_all_layouts_give_the_same_table_and_images(tmp_path, layout, root):
    source = ChexpertSource(write_layout(tmp_path / "data set", layout) / root)
    table = source.table()
    assert [Path(*Path(p).parts[2:]).as_posix() for p in table["Path"]] == [
        path for path, _, _ in TRAIN + VALID
    ]
    for path in table["Path"]:
        assert np.array_equal(source.image(path), image_of(path.split("/", 2)[2]))
    reference = ChexpertSource(write_layout(tmp_path / "reference", "small")).table()
    pd.testing.assert_frame_equal(table.drop(columns="Path"), reference.drop(columns="Path"))


@pytest.fixture
def small(tmp_path):
    return write_layout(tmp_path, "small") / SMALL


def test_quirks_survive(small):
    table = ChexpertSource(small).table()
    assert list(table.columns) == list(TABLE_COLUMNS)
    assert table["Sex"].tolist() == ["Female"] * 3 + ["Unknown", "Female", "Male", "Male"]
    assert table["Age"].tolist() == [68, 68, 68, 34, 0, 90, 73]
    assert table["AP/PA"].tolist() == ["PA", "", "AP", "LL", "RL", "AP", "AP"]
    assert table["Frontal/Lateral"].tolist() == ["Frontal", "Lateral"] + ["Frontal"] * 5
    assert table["patient"].tolist()[2:5] == ["patient00001", "patient33093", "patient64540"]
    assert table["study"].tolist()[:3] == ["study2", "study2", "study1"]
    assert table["split"].tolist() == ["train"] * 6 + ["valid"]


def test_uncertain_negative_and_blank_stay_distinct(small):
    table = ChexpertSource(small).table()
    assert table["Pneumonia"].tolist()[:2] == [-1, -1]
    assert table["Edema"].tolist()[3] == 0
    assert table["Edema"].isna().tolist() == [True, True, True, False, True, True, False]
    assert table["Fracture"].tolist()[5] == 1
    assert table[list(OBSERVATIONS)].loc[4].isna().all()


def test_columns_are_read_by_name(small):
    expected = ChexpertSource(small).table()
    file = small / "train.csv"
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    shuffled = table.sample(axis=1, frac=1.0, random_state=1).assign(Extra="7")
    shuffled.rename(columns={"Edema": " Edema "}).to_csv(file, index=False, encoding="utf-8-sig")
    pd.testing.assert_frame_equal(ChexpertSource(small).table(), expected)


def test_without_valid_csv_no_split_is_stated(small):
    (small / "valid.csv").unlink()
    assert set(ChexpertSource(small).table()["split"]) == {""}


def test_test_labels_without_demographics(small):
    path = "test/patient64741/study1/view1_frontal.jpg"
    observations = ",".join(OBSERVATIONS)
    values = ",".join(["0"] * 14)
    (small / "test_labels.csv").write_text(f"Path,{observations}\n{path},{values}\n")
    write_image(small / path, path)
    last = ChexpertSource(small).table().iloc[-1]
    assert last[["split", "Sex", "Frontal/Lateral", "AP/PA"]].tolist() == [
        "test",
        "Unknown",
        "Frontal",
        "",
    ]
    assert np.isnan(last["Age"])
    assert np.array_equal(ChexpertSource(small).image(path), image_of(path))


def test_reports_are_joined_by_path(small):
    lines = ["Path,report", f'train/{TRAIN[2][0]},"No effusion, no\nconsolidation."']
    (small / "reports.csv").write_text("\n".join([*lines, "train/patient9/none.jpg,unused"]))
    table = ChexpertSource(small).table()
    assert list(table.columns) == [*TABLE_COLUMNS, "report"]
    assert table["report"].tolist() == ["", "", "No effusion, no\nconsolidation.", *[""] * 4]


def test_missing_image(small):
    (small / "train" / TRAIN[0][0]).unlink()
    with pytest.raises(UnreadableImageError, match="no such file"):
        ChexpertSource(small).image(f"{SMALL}/train/{TRAIN[0][0]}")


def replace_text(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Edema,", "", r"train.csv lacks the column Edema"),
        ("Sex,Age", "Gender,Years", r"train.csv lacks the columns Sex, Age"),
        ("-1.0", "2", r"train.csv, column Pneumonia, line 2: '2' is not 1, 0, -1 or blank"),
        ("-1.0", "yes", r"column Pneumonia, line 2: 'yes'"),
        ("34", "old", r"column Age, line 5: 'old' is not a number"),
        ("train/patient33093", "train/p33093", "has no patient number"),
        ("study2/view2_lateral", "study2/view1_frontal", "names .* twice"),
    ],
)
def test_mistakes_in_the_csv(small, old, new, message):
    replace_text(small / "train.csv", old, new)
    with pytest.raises(UserError, match=message):
        ChexpertSource(small).table()


@pytest.mark.parametrize("content", [b"", (",".join(COLUMNS) + "\n").encode()])
def test_empty_csv(small, content):
    (small / "train.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.csv has no rows"):
        ChexpertSource(small).table()


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x01", b'a,b\n"1,2\n'])
def test_csv_that_is_none(small, content):
    (small / "train.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.csv"):
        ChexpertSource(small).table()


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match="root: there is no folder"):
        ChexpertSource(tmp_path / "absent")


def test_no_csv_anywhere(tmp_path):
    with pytest.raises(UserError, match=r"root: no train\.csv"):
        ChexpertSource(tmp_path)


def test_csv_of_another_data_set_beside_is_not_taken(tmp_path):
    write_layout(tmp_path, "small beside")
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"root: no train\.csv"):
        ChexpertSource(tmp_path / "other")


def test_several_data_sets_below(tmp_path):
    write_layout(tmp_path, "small")
    write_layout(tmp_path, "merged")
    with pytest.raises(UserError, match="holds several data sets"):
        ChexpertSource(tmp_path)


@pytest.mark.skipif("CXR_TEST_DATA" not in os.environ, reason="needs CXR_TEST_DATA")
def test_real_nih64():
    source = ChexpertSource(Path(os.environ["CXR_TEST_DATA"]) / "nih64")
    table = source.table()
    # The counts that the data set's README states.
    assert table["split"].value_counts().to_dict() == {"train": 720, "valid": 130}
    assert table["patient"].nunique() == 208
    assert (table["No Finding"] == 1).sum() == 419
    assert (table["Pleural Effusion"] == 1).sum() == 140
    assert table["Support Devices"].isna().all()
    assert table["AP/PA"].value_counts().to_dict() == {"PA": 513, "AP": 337}
    for path in table["Path"][::50]:
        assert source.image(path).shape == (64, 64)
