import numpy as np
import pytest
from PIL import Image

from cxr_lightning.data.resize import UnreadableImageError
from cxr_lightning.data.sources.base import TABLE_COLUMNS
from cxr_lightning.data.sources.folder import FolderSource
from cxr_lightning.errors import UserError
from cxr_lightning.types import OBSERVATIONS


def write(root, text, name="images.csv"):
    root.mkdir(exist_ok=True)
    (root / name).write_text(text)
    return root


def test_path_alone(tmp_path):
    table = FolderSource(write(tmp_path, "path\na.png\nb c.png\n")).table()
    assert list(table.columns) == list(TABLE_COLUMNS)
    assert table["patient"].tolist() == ["a.png", "b c.png"]
    assert table[list(OBSERVATIONS)].isna().all(axis=None)
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


def test_image_relative_to_the_root(tmp_path):
    root = write(tmp_path / "images", "Path\nsub/a.png\n")
    other = write(tmp_path / "tables", "Path\nsub/a.png\n") / "images.csv"
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    (root / "sub").mkdir()
    Image.fromarray(image).save(root / "sub" / "a.png")
    assert np.array_equal(FolderSource(root, other).image("sub/a.png"), image)


def test_blank_path_is_a_failure(tmp_path):
    source = FolderSource(write(tmp_path, "Path,patient\n,p1\na.png,p2\n"))
    assert len(source.table()) == 2
    with pytest.raises(UnreadableImageError, match="no path"):
        source.image("")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\na.png\n", "lacks the column Path"),
        ("Path,Edema\na.png,2\n", "column Edema, line 2: '2'"),
        ("Path,split\na.png,train\nb.png,dev\n", "column split, line 3: 'dev'"),
        ("Path\na.png\na.png\n", "names a.png twice"),
        ("Path\n", "has no rows"),
        ("Path,PATH\na,b\n", "names the column Path twice"),
    ],
)
def test_mistakes_in_the_csv(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        FolderSource(write(tmp_path, text)).table()


def test_which_csv(tmp_path):
    with pytest.raises(UserError, match="holds 0 CSV files"):
        FolderSource(tmp_path)
    write(tmp_path, "Path\na\n", "a.csv")
    write(tmp_path, "Path\nb\n", "b.csv")
    with pytest.raises(UserError, match="holds 2 CSV files"):
        FolderSource(tmp_path)
    assert FolderSource(tmp_path, tmp_path / "b.csv").table()["Path"].tolist() == ["b"]
    with pytest.raises(UserError, match="csv: there is no file"):
        FolderSource(tmp_path, tmp_path / "absent.csv")
    with pytest.raises(UserError, match="root: there is no folder"):
        FolderSource(tmp_path / "absent")
