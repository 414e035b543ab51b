import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_lightning.data.resize import UnreadableImageError
from cxr_lightning.data.sources.base import COLUMNS, TABLE_COLUMNS
from cxr_lightning.data.sources.chexpert import ChexpertSource
from cxr_lightning.data.sources.tables import PROBLEM
from cxr_lightning.errors import UserError
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS

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
    assert list(table.columns) == [*TABLE_COLUMNS, PROBLEM]
    assert set(table[PROBLEM]) == {""}
    assert table["Sex"].tolist() == ["Female"] * 3 + ["Unknown", "Female", "Male", "Male"]
    assert table["Age"].tolist() == [68, 68, 68, 34, 0, 90, 73]
    assert table["AP/PA"].tolist() == ["PA", "", "AP", "LL", "RL", "AP", "AP"]
    assert table["Frontal/Lateral"].tolist() == ["Frontal", "Lateral"] + ["Frontal"] * 5
    assert table["patient"].tolist()[2:5] == ["patient00001", "patient33093", "patient64540"]
    assert table["study"].tolist()[:3] == ["study2", "study2", "study1"]
    assert table["split"].tolist() == ["train"] * 6 + ["valid"]


def test_origin_is_stated_by_the_paths_alone(small):
    source = ChexpertSource(small)
    source.table()
    assert source.origins == ("CheXpert",)
    for name in ("train.csv", "valid.csv"):  # another data set in the same layout
        (small / name).write_text((small / name).read_text().replace(SMALL, "ours"))
    other = ChexpertSource(small)
    other.table()
    assert other.origins == ()


def test_uncertain_negative_and_blank_stay_distinct(small):
    table = ChexpertSource(small).table()
    assert table["Pneumonia"].tolist()[:2] == [-1, -1]
    assert table["Edema"].tolist()[3] == 0
    assert table["Edema"].isna().tolist() == [True, True, True, False, True, True, False]
    assert table["Fracture"].tolist()[5] == 1
    annotated = ["No Finding", "Edema", "Pneumonia", "Fracture"]
    assert table[annotated].loc[4].isna().all()
    others = [o for o in OBSERVATIONS if o not in annotated]  # blank in every row
    assert (table[others] == NOT_ANNOTATED).all(axis=None)


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
    assert list(table.columns) == [*TABLE_COLUMNS, PROBLEM, "report"]
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
    ],
)
def test_mistakes_in_the_csv(small, old, new, message):
    replace_text(small / "train.csv", old, new)
    with pytest.raises(UserError, match=message):
        ChexpertSource(small).table()


@pytest.mark.parametrize(
    ("old", "new", "row", "problem"),
    [
        ("-1.0", "2", 0, "train.csv, line 2: Pneumonia is '2', not 1, 0, -1 or blank"),
        ("-1.0", "yes", 0, "train.csv, line 2: Pneumonia is 'yes', not 1, 0, -1 or blank"),
        ("34", "old", 3, "train.csv, line 5: Age is 'old', not a number of years"),
        ("34", "-3", 3, "train.csv, line 5: Age is '-3', not a number of years"),
        (
            "train/patient33093",
            "train/p33093",
            3,
            "train.csv, line 5: no patient number (patient00001/...)",
        ),
        (
            "study2/view2_lateral",
            "study2/view1_frontal",
            1,
            "train.csv, line 3: an earlier row names the same image",
        ),
        ("Frontal,LL", "Frontal", 3, "train.csv, line 5: 18 cells where the header has 19"),
        ("Frontal,LL", "Frontal,LL,", 3, "train.csv, line 5: 20 cells where the header has 19"),
    ],
)
def test_a_damaged_row_is_kept_with_its_problem(small, old, new, row, problem):
    expected = ChexpertSource(small).table()
    replace_text(small / "train.csv", old, new)
    table = ChexpertSource(small).table()
    assert table[PROBLEM].tolist() == ["" if i != row else problem for i in range(len(expected))]
    others = [i for i in range(len(expected)) if i != row]
    left = [c for c in table.columns if c not in OBSERVATIONS]  # a row less: Edema is blank now
    pd.testing.assert_frame_equal(table.loc[others, left], expected.loc[others, left])


def test_no_patient_number_at_all(small):
    for file in ("train.csv", "valid.csv"):
        text = (small / file).read_text()
        (small / file).write_text(text.replace("/patient", "/p"))
    with pytest.raises(UserError, match="has no patient number"):
        ChexpertSource(small).table()


def write_relabelled(file, prefix, edema="0"):
    rows = [(path, "Unknown,0,Frontal,AP", {"Edema": edema}) for path, _, _ in reversed(TRAIN[1:])]
    write_csv(file, prefix, "train", rows)


@pytest.mark.parametrize("labels", ["chexbert", "visualchexbert"])
@pytest.mark.parametrize("layout", ["small", "unmerged"])
def test_relabelled_training_set(tmp_path, layout, labels):
    write_layout(tmp_path, layout)
    name = {"chexbert": "train_cheXbert.csv", "visualchexbert": "train_visualCheXbert.csv"}[labels]
    home = tmp_path / SMALL if layout == "small" else tmp_path  # beside the batches
    write_relabelled(home / name, "CheXpert-v1.0")
    original = ChexpertSource(tmp_path).table()
    table = ChexpertSource(tmp_path, labels).table()
    unchanged = [c for c in table.columns if c not in OBSERVATIONS]
    pd.testing.assert_frame_equal(table[unchanged], original[unchanged])
    # The labeller gave nothing for the first image; the official valid labels stay.
    assert table["Edema"].tolist() == [NOT_ANNOTATED, 0, 0, 0, 0, 0, 1]
    assert (table.loc[0, list(OBSERVATIONS)] == NOT_ANNOTATED).all()


def test_relabelled_set_that_does_not_fit(small):
    with pytest.raises(UserError, match=r"labels: there is no train_cheXbert\.csv"):
        ChexpertSource(small, "chexbert")
    write_relabelled(small / "train_cheXbert.csv", SMALL)
    replace_text(small / "train_cheXbert.csv", "patient33093", "patient33094")
    with pytest.raises(UserError, match=r"names 1 images that train\.csv does not"):
        ChexpertSource(small, "chexbert").table()
    write_relabelled(small / "train_cheXbert.csv", SMALL)
    replace_text(small / "train_cheXbert.csv", "AP,", "AP,,")
    with pytest.raises(UserError, match=r"train_cheXbert\.csv, line 2: 20 cells"):
        ChexpertSource(small, "chexbert").table()


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
    assert (table["Support Devices"] == NOT_ANNOTATED).all()
    assert table["Lung Opacity"].isna().any()
    assert table["AP/PA"].value_counts().to_dict() == {"PA": 513, "AP": 337}
    for path in table["Path"][::50]:
        assert source.image(path).shape == (64, 64)
