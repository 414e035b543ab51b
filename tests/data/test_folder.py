import os

import numpy as np
import pytest
from PIL import Image

from cxr_lightning.data.sources.base import TABLE_COLUMNS
from cxr_lightning.data.sources.folder import FolderSource
from cxr_lightning.data.sources.tables import PROBLEM
from cxr_lightning.errors import UserError
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS


def write(root, text, name="images.csv"):
    root.mkdir(exist_ok=True)
    (root / name).write_text(text)
    return root


def test_path_alone(tmp_path):
    table = FolderSource(write(tmp_path, "path\na.png\nb c.png\n")).table()
    assert list(table.columns) == [*TABLE_COLUMNS, PROBLEM]
    assert table["patient"].tolist() == ["a.png", "b c.png"]
    assert (table[list(OBSERVATIONS)] == NOT_ANNOTATED).all(axis=None)
    assert set(table["split"]) == {""}
    assert set(table["Sex"]) == {"Unknown"}
    assert set(table["Frontal/Lateral"]) == {"Frontal"}


def test_columns_by_name(tmp_path):
    text = (
        "Report,pneumonia,AGE,Patient,Path,split,other\n"
        "opacity on the right,-1,40.5,p7,a.png,val,x\n"
        ",1,,p8,b.png,Train,y\n"
        ",,,,c.png,,z\n"
    )
    table = FolderSource(write(tmp_path, text)).table()
    assert table["Pneumonia"].tolist()[:2] == [-1, 1]
    assert np.isnan(table["Pneumonia"][2])
    assert table["Age"][0] == 40.5
    assert table["patient"].tolist() == ["p7", "p8", "c.png"]
    assert table["split"].tolist() == ["valid", "train", ""]
    assert table["report"].tolist() == ["opacity on the right", "", ""]


def test_patient_and_study_from_the_path(tmp_path):
    table = FolderSource(
        write(tmp_path, "Path\npatient12/study3/a.png\npatient12/b.png\nx.png\n")
    ).table()
    assert table["patient"].tolist() == ["patient12", "patient12", "x.png"]
    assert table["study"].tolist() == ["study3", "study1", "study1"]


def test_a_study_stands_for_an_unknown_patient(tmp_path):
    """Its images may not come to lie in two splits."""
    text = "Path,study\na.png,s1\nb.png,s1\nc.png,s2\npatient4/d.png,s3\ne.png,\n"
    table = FolderSource(write(tmp_path, text)).table()
    expected = ["study s1", "study s1", "study s2", "patient4", "e.png"]
    assert table["patient"].tolist() == expected


def test_image_relative_to_the_root(tmp_path):
    root = write(tmp_path / "images", "Path\nsub/a.png\n")
    other = write(tmp_path / "tables", "Path\nsub/a.png\n") / "images.csv"
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    (root / "sub").mkdir()
    Image.fromarray(image).save(root / "sub" / "a.png")
    assert np.array_equal(FolderSource(root, other).image("sub/a.png"), image)


SPLIT_DEV = "split is 'dev', not train, valid, test or blank"


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("Path,patient\n,p1\na.png,p2\n", ["no path", ""]),
        ("Path,Edema\na.png,2\n", ["Edema is '2', not 1, 0, -1 or blank"]),
        (
            "Path,split\na.png,train\nb.png,dev\n",
            ["", SPLIT_DEV],
        ),
        ("Path\na.png\na.png\nb.png\n", ["", "an earlier row names the same image", ""]),
        ("Path\na.png\n./a.png\n", ["", "an earlier row names the same image"]),
        ("Path,Sex\na.png\nb.png,Male\n", ["1 cells where the header has 2", ""]),
        (
            'Path,Sex\n"a.png",Male\nb.png,"Fe\nmale",x\nc.png,Male\n',
            ["", "3 cells where the header has 2", ""],
        ),
    ],
)
def test_damaged_rows(tmp_path, text, problems):
    found = FolderSource(write(tmp_path, text)).table()[PROBLEM].tolist()
    assert [problem.partition(": ")[2] for problem in found] == problems


def test_where_a_problem_is(tmp_path):
    text = 'Path,Edema,report\na.png,1,"two\nlines"\n\nb.png,x,\n'
    found = FolderSource(write(tmp_path, text)).table()[PROBLEM].tolist()
    assert found == ["", "images.csv, line 5: Edema is 'x', not 1, 0, -1 or blank"]


def test_not_annotated_and_not_mentioned(tmp_path):
    text = "Path,Edema,Fracture,Pneumonia\na.png,1,,\nb.png,,,N/A\n"
    table = FolderSource(write(tmp_path, text)).table()
    assert table["Edema"].isna().tolist() == [False, True]
    assert table["Fracture"].tolist() == [NOT_ANNOTATED] * 2  # blank throughout
    assert table["Atelectasis"].tolist() == [NOT_ANNOTATED] * 2  # no such column
    assert np.isnan(table["Pneumonia"][0])
    assert table["Pneumonia"][1] == NOT_ANNOTATED


def test_column_map(tmp_path):
    text = "file,effusion,who,sex\na.png,1,p1,Male\nb.png,-1,p1,Female\n"
    columns = {"Path": "file", "Pleural Effusion": "effusion", "patient": "who"}
    table = FolderSource(write(tmp_path, text), columns=columns).table()
    assert table["Path"].tolist() == ["a.png", "b.png"]
    assert table["Pleural Effusion"].tolist() == [1, -1]
    assert set(table["patient"]) == {"p1"}
    assert table["Sex"].tolist() == ["Male", "Female"]
    twice = {"Path": "file", "Pleural Effusion": "effusion", "Lung Opacity": "effusion"}
    with pytest.raises(UserError, match="columns: 'effusion' is given for two columns"):
        FolderSource(tmp_path, columns=twice).table()
    with pytest.raises(UserError, match="lacks the column pictures"):
        FolderSource(tmp_path, columns={"Path": "pictures"}).table()
    with pytest.raises(UserError, match="columns: 'Effusion' is not a column of a prepared table"):
        FolderSource(tmp_path, columns={"Effusion": "effusion"})


def write_images(root, *paths):
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), number, dtype=np.uint8)).save(root / path)
    return root


def test_folders_as_classes(tmp_path):
    root = write_images(
        tmp_path,
        "train/NORMAL/1.png",
        "train/PNEUMONIA/patient7_bacteria.png",
        "val/pleural effusion/deep/down/3.png",
        "test/Normal/4.JPG",
        "readme.png",
    )
    (root / "train" / "NORMAL" / "notes.txt").write_text("no image")
    source = FolderSource(root)
    table = source.table().set_index("Path")
    problem = table.pop(PROBLEM)
    assert problem["readme.png"] == "it lies in no folder of a class"
    table = table[problem == ""]
    assert table["split"].to_dict() == {
        "test/Normal/4.JPG": "test",
        "train/NORMAL/1.png": "train",
        "train/PNEUMONIA/patient7_bacteria.png": "train",
        "val/pleural effusion/deep/down/3.png": "valid",
    }
    normal, pneumonia = table.loc["train/NORMAL/1.png"], table.iloc[2]
    assert normal[["No Finding", "Pneumonia", "Pleural Effusion"]].tolist() == [1, 0, 0]
    assert pneumonia["Pneumonia"] == 1
    assert pneumonia[["No Finding", "Pleural Effusion"]].isna().all()
    others = [o for o in OBSERVATIONS if o not in ("No Finding", "Pneumonia", "Pleural Effusion")]
    assert (table[others] == NOT_ANNOTATED).all(axis=None)
    assert pneumonia["patient"] == "patient7"
    assert (source.image("val/pleural effusion/deep/down/3.png") == 2).all()


def test_folders_that_are_no_classes(tmp_path):
    root = write_images(
        tmp_path / "set",
        "normal/test/1.png",
        "normal/.ipynb_checkpoints/1-checkpoint.png",
        "pneumonia/2.png",
        "patient3/pneumonia/.hidden.png",
        "prepared/pneumonia/9.png",
    )
    (root / "patient3/pneumonia/.hidden.png").unlink()
    (root / "prepared" / "images.npy").write_bytes(b"")
    table = FolderSource(root).table()
    assert table["Path"].tolist() == ["normal/test/1.png", "pneumonia/2.png"]
    assert table["split"].tolist() == ["test", ""]
    (root / "edema").symlink_to(root / "pneumonia", target_is_directory=True)
    with pytest.raises(UserError, match="edema is a link to a folder"):
        FolderSource(root).table()


def test_a_file_name_that_is_not_utf8(tmp_path):
    root = write_images(tmp_path, "normal/1.png", "pneumonia/2.png")
    (root / "normal/1.png").rename(root / "normal" / os.fsdecode(b"\xff.png"))
    table = FolderSource(root).table()
    assert table[PROBLEM].ne("").sum() == 1
    assert "the name is not UTF-8" in table[PROBLEM].max()
    assert table["Path"].max().encode()


def test_words_for_people_and_views(tmp_path):
    text = (
        "Path,Sex,Frontal/Lateral,AP/PA,patient\n"
        "a,M,L, pa,7\nb,female, lateral ,AP,7 \nc,,F,,\nd,Unknown,frontal,ll, 7\n"
        "e,man,Frontal,PA,1\nf,M,oblique,PA,2\ng,M,Frontal,back,3\n"
    )
    table = FolderSource(write(tmp_path, text)).table()
    assert table["Sex"].tolist()[:4] == ["Male", "Female", "Unknown", "Unknown"]
    views = ["Lateral", "Lateral", "Frontal", "Frontal"]
    assert table["Frontal/Lateral"].tolist()[:4] == views
    assert table["AP/PA"].tolist()[:4] == ["PA", "AP", "", "LL"]
    assert table["patient"].tolist()[:4] == ["7", "7", "c", "7"]
    assert [problem.partition(": ")[2] for problem in table[PROBLEM]] == [""] * 4 + [
        "Sex is 'man', not Male, Female, Unknown or blank",
        "Frontal/Lateral is 'oblique', not Frontal, Lateral or blank",
        "AP/PA is 'back', not AP, PA, LL, RL or blank",
    ]


def test_an_absolute_path_says_nothing_of_the_patient(tmp_path):
    text = "Path\n/data/patient1/0.png\n/data/patient1/1.png\nb/patient2/1.png\n"
    table = FolderSource(write(tmp_path, text)).table()
    assert table["patient"].tolist() == [*table["Path"][:2], "patient2"]


def test_line_breaks_within_a_cell(tmp_path):
    text = 'Path,report\na.png,"one\rtwo\r\nthree"\n'
    root = tmp_path / "set"
    root.mkdir()
    (root / "images.csv").write_bytes(text.encode())
    assert FolderSource(root).table()["report"].tolist() == ["one\ntwo\nthree"]


def test_folders_with_other_names(tmp_path):
    root = write_images(tmp_path, "bacteria/1.png", "normal/2.png")
    with pytest.raises(UserError, match="'bacteria' is not named after an observation"):
        FolderSource(root).table()
    table = FolderSource(root, columns={"Pneumonia": "bacteria"}).table()
    assert table["Pneumonia"].tolist() == [1, 0]
    assert set(table["split"]) == {""}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\na.png\n", "lacks the column Path"),
        ("Path\n", "has no rows"),
        ("Path,PATH\na,b\n", "names the column Path twice"),
        ("Path,Path\na,b\n", "names the column 'Path' twice"),
        ('Path,Sex\na.png,"Male\n', "cannot be read as a CSV file"),
        ('Path,Sex\na.png,Male\nb.png,"Ma"le\n', "cannot be read .*line 3:"),
        ("Path;Sex\na.png;Male\n", "has ';' between its cells; save it with commas"),
    ],
)
def test_mistakes_in_the_csv(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        FolderSource(write(tmp_path, text)).table()


def test_which_csv(tmp_path):
    with pytest.raises(UserError, match="neither a CSV file nor images in folders by class"):
        FolderSource(tmp_path).table()
    write(tmp_path, "Path\na\n", "a.csv")
    write(tmp_path, "Path\nb\n", "b.csv")
    with pytest.raises(UserError, match="holds 2 CSV files"):
        FolderSource(tmp_path)
    assert FolderSource(tmp_path, tmp_path / "b.csv").table()["Path"].tolist() == ["b"]
    with pytest.raises(UserError, match="csv: there is no file"):
        FolderSource(tmp_path, tmp_path / "absent.csv")
    with pytest.raises(UserError, match="root: there is no folder"):
        FolderSource(tmp_path / "absent")
