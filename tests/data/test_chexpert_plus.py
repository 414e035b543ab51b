import csv
import gzip
import json
import pickle
import random
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_lightning.data.resize import UnreadableImageError
from cxr_lightning.data.sources.base import TABLE_COLUMNS
from cxr_lightning.data.sources.chexpert_plus import ChexpertPlusSource, Section
from cxr_lightning.data.sources.registry import choose_labels
from cxr_lightning.data.sources.tables import PROBLEM
from cxr_lightning.data.split import assign_splits
from cxr_lightning.errors import UserError
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS

CSV = "df_chexpert_plus_240401.csv"
HEADER_LINE = (
    "path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,"
    "report,section_narrative,section_clinical_history,section_history,section_comparison,"
    "section_technique,section_procedure_comments,section_findings,section_impression,"
    "section_end_of_impression,section_summary,section_accession_number,age,sex,race,ethnicity,"
    "interpreter_needed,insurance_type,recent_bmi,deceased,split"
)
HEADER = HEADER_LINE.split(",")

FIRST, LATERAL, SECOND, VALID = PATHS = [
    "train/patient42142/study5/view1_frontal.jpg",
    "train/patient42142/study5/view2_lateral.jpg",
    "train/patient00007/study1/view1_frontal.jpg",
    "valid/patient64541/study1/view1_frontal.jpg",
]
ROWS = [
    {"ap_pa": "AP", "age": "61.0", "sex": "Female", "section_findings": "Large effusion."},
    {"frontal_lateral": "Lateral", "age": "61.0", "sex": "Female"},
    {"ap_pa": "PA", "age": "90.0", "sex": "Unknown", "section_findings": "Clear."},
    {"ap_pa": "AP", "age": "", "sex": "Male", "split": "valid"},
]
LABELS = [
    {"Pleural Effusion": 1.0, "Pneumonia": -1.0, "Edema": 0.0},
    {"Pleural Effusion": -1.0},
    {"No Finding": 1.0},
    {"Support Devices": 1.0},
]


def image_of(path):
    """An image of its own for each path, not symmetric."""
    rng = np.random.default_rng(sum(path.encode()))
    return rng.integers(0, 256, (6, 8), dtype=np.uint8)


def rows():
    texts = {"report": 'IMPRESSION:\n1. "Stable", no change', "section_impression": "1. Stable"}
    defaults = {"frontal_lateral": "Frontal", "split": "train", **texts}
    return [
        {**defaults, "path_to_image": path, "deid_patient_id": path.split("/")[1], **cells}
        for path, cells in zip(PATHS, ROWS, strict=True)
    ]


def lines():
    """Label lines; No Finding stands last, as in the real files."""
    order = [*OBSERVATIONS[1:], "No Finding"]
    return [
        {"path_to_image": path, **{o: labels.get(o) for o in order}}
        for path, labels in zip(PATHS, LABELS, strict=True)
    ]


def write_csv(root, rows, header=HEADER):
    with (root / CSV).open("w", newline="") as stream:
        writer = csv.DictWriter(stream, header, restval="")
        writer.writeheader()
        writer.writerows(rows)


def write_labels(root, lines, name="report"):
    folder = root / "chexbert_labels"
    folder.mkdir(exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / f"{name}_fixed.json").write_text("\n".join(texts) + "\n")


def write_images(folder):
    for path in PATHS:
        file = (folder / path).with_suffix(".png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image_of(path)).save(file)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "chexpert plus"
    root.mkdir()
    write_csv(root, rows())
    for name in get_args(Section):
        write_labels(root, lines(), name)
    write_images(root / "PNG")
    return root


def labels_of(table):
    """Labels that say something, by row."""
    return [
        {o: value for o, value in row.items() if not np.isnan(value)}
        for row in table[list(OBSERVATIONS)].to_dict("records")
    ]


def test_table(root):
    table = ChexpertPlusSource(root).table()
    assert list(table.columns) == [*TABLE_COLUMNS, PROBLEM, "report"]
    assert table["Path"].tolist() == PATHS
    assert table["Sex"].tolist() == ["Female", "Female", "Unknown", "Male"]
    assert table["Age"].tolist()[:3] == [61, 61, 90]
    assert np.isnan(table["Age"][3])
    assert table["Frontal/Lateral"].tolist() == ["Frontal", "Lateral", "Frontal", "Frontal"]
    assert table["AP/PA"].tolist() == ["AP", "", "PA", "AP"]
    assert table["patient"].tolist()[1:] == ["patient42142", "patient00007", "patient64541"]
    assert table["study"].tolist() == ["study5", "study5", "study1", "study1"]
    assert table["split"].tolist() == ["train"] * 3 + ["valid"]
    assert set(table["report"]) == {'IMPRESSION:\n1. "Stable", no change'}
    assert set(table[PROBLEM]) == {""}


def test_labels_go_by_name_and_by_image(root):
    expected = ChexpertPlusSource(root).table()
    # Also that 1, 0, -1 and blank stay apart, and images of one study may differ.
    assert labels_of(expected) == LABELS
    rng = random.Random(1)
    shuffled = [dict(rng.sample(list(line.items()), len(line))) for line in lines()]
    write_labels(root, reversed(shuffled))
    write_csv(root, rows(), rng.sample(HEADER, len(HEADER)))
    pd.testing.assert_frame_equal(ChexpertPlusSource(root).table(), expected)


def test_gzipped_csv(root):
    expected = ChexpertPlusSource(root).table()
    (root / f"{CSV}.gz").write_bytes(gzip.compress((root / CSV).read_bytes()))
    (root / CSV).unlink()
    pd.testing.assert_frame_equal(ChexpertPlusSource(root).table(), expected)


@pytest.mark.parametrize("folder", ["PNG", "PNG/PNG", "."])
def test_images(root, tmp_path, folder):
    (root / "PNG").rename(tmp_path / "elsewhere")
    write_images(root / folder)
    source = ChexpertPlusSource(root)
    reader = pickle.loads(pickle.dumps(source.reader))
    for path in source.table()["Path"]:
        assert np.array_equal(reader(path).image, image_of(path))


def test_missing_image(root):
    (root / "PNG" / FIRST).with_suffix(".png").unlink()
    source = ChexpertPlusSource(root)
    assert source.image(SECOND).shape == (6, 8)
    with pytest.raises(UnreadableImageError, match="no such file"):
        source.image(FIRST)


def test_labels_of_a_blank_section_are_no_labels(root):
    # CheXbert says No Finding of an empty text.
    write_labels(root, [{**line, "No Finding": 1.0} for line in lines()], "findings")
    table = ChexpertPlusSource(root, "findings").table()
    assert table["report"].tolist() == ["Large effusion.", "", "Clear.", ""]
    assert table["No Finding"].tolist() == [1, NOT_ANNOTATED, 1, NOT_ANNOTATED]
    assert (table.loc[[1, 3], list(OBSERVATIONS)] == NOT_ANNOTATED).all(axis=None)
    assert table["Pneumonia"][0] == -1
    assert set(table[PROBLEM]) == {""}


def test_each_section_has_labels_of_its_own(root):
    write_labels(root, [{**line, "Fracture": -1.0} for line in lines()], "impression")
    assert (ChexpertPlusSource(root, "impression").table()["Fracture"] == -1).all()
    assert set(ChexpertPlusSource(root, "impression").table()["report"]) == {"1. Stable"}
    assert ChexpertPlusSource(root, "report").table()["Fracture"].isna().all()


def test_label_folder_beside_the_root(root):
    expected = ChexpertPlusSource(root).table()
    (root / "chexbert_labels").rename(root.parent / "chexbert_labels")
    pd.testing.assert_frame_equal(ChexpertPlusSource(root).table(), expected)


def test_image_without_a_line_is_not_annotated(root):
    write_labels(root, [lines()[0], *lines()[2:], *lines()[3:]])  # one line twice, the same
    table = ChexpertPlusSource(root).table()
    assert set(table[PROBLEM]) == {""}
    assert (table.loc[1, list(OBSERVATIONS)] == NOT_ANNOTATED).all()
    assert labels_of(table)[2:] == LABELS[2:]


def test_splits_are_kept_and_patients_apart(root):
    table = ChexpertPlusSource(root).table()
    split = assign_splits(table, valid_fraction=0.9, seed=0)
    assert split.tolist() == ["train"] * 3 + ["valid"]
    assert split.groupby(table["patient"]).nunique().max() == 1


def problems_of(root):
    """Problems by row, and the check that the other rows stay as they are."""
    table = ChexpertPlusSource(root).table()
    assert table["Path"].tolist()[:4] == PATHS
    good = table.index[(table[PROBLEM] == "") & (table.index < 4)]
    assert [labels_of(table)[row] for row in good] == [LABELS[row] for row in good]
    return table[PROBLEM][table[PROBLEM] != ""].to_dict()


@pytest.mark.parametrize("torn", ['{"path_to_image": "train/pat', "[1]", '{"Edema": 1.0}'])
def test_torn_label_line(root, torn):
    write_labels(root, [*lines()[:2], torn, lines()[3]])
    problems = problems_of(root)
    assert list(problems) == [2]
    assert f"{CSV}, line 6: no row in report_fixed.json, which is damaged" in problems[2]
    assert "report_fixed.json, line 3: not a JSON object with path_to_image" in problems[2]


def test_truncated_label_file(root):
    file = root / "chexbert_labels" / "report_fixed.json"
    file.write_text(file.read_text()[: -len(json.dumps(lines()[3])) - 100])
    assert list(problems_of(root)) == [2, 3]


@pytest.mark.parametrize(
    ("value", "message"), [(2, "Edema is '2', not 1"), (True, "'True'"), ("yes", "'yes'")]
)
def test_label_that_is_none(root, value, message):
    write_labels(root, [lines()[0], {**lines()[1], "Edema": value}, *lines()[2:]])
    problems = problems_of(root)
    assert list(problems) == [1]
    assert "report_fixed.json, line 2: " in problems[1]
    assert message in problems[1]


def test_line_that_lacks_an_observation(root):
    line = lines()[2]
    del line["Edema"]
    write_labels(root, [*lines()[:2], line, lines()[3]])
    problems = problems_of(root)
    assert list(problems) == [2]
    assert problems[2].endswith("report_fixed.json, line 3: no value of Edema")


def test_contradicting_lines(root):
    write_labels(root, [*lines(), {**lines()[1], "Edema": 1.0}])
    problems = problems_of(root)
    assert list(problems) == [1]
    assert problems[1].endswith("line 2: another row contradicts this one")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"age": "old"}, "line 6: Age is 'old', not a number of years"),
        ({"split": "dev"}, "line 6: split is 'dev', not train, valid, test or blank"),
        ({"deid_patient_id": " "}, "line 6: no patient"),
    ],
)
def test_damaged_row(root, cells, message):
    changed = rows()
    changed[2].update(cells)
    write_csv(root, changed)
    problems = problems_of(root)
    assert list(problems) == [2]
    assert message in problems[2]


def test_short_and_repeated_rows(root):
    with (root / CSV).open("a") as stream:
        stream.write(f"{FIRST},x\n")
    problems = problems_of(root)
    assert list(problems) == [4]
    assert problems[4].endswith("2 cells where the header has 27")
    write_csv(root, [*rows(), rows()[0]])
    assert "an earlier row names the same image" in problems_of(root)[4]


@pytest.mark.parametrize("column", ["path_to_image", "ap_pa", "split", "report"])
def test_missing_column(root, column):
    header = [name for name in HEADER if name != column]
    write_csv(root, [{k: v for k, v in row.items() if k != column} for row in rows()], header)
    with pytest.raises(UserError, match=f"{CSV} lacks the column {column}"):
        ChexpertPlusSource(root).table()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no line of labels .it is empty"),
        (b"no json\nat all\n", r"no line of labels .*line 1: not a JSON object"),
        (b"\xff\xfe", "cannot be read as UTF-8"),
        (b'{"path_to_image": "a", "Edema": 1}', "no line of labels .*no value of No Finding"),
    ],
)
def test_label_file_that_is_none(root, content, message):
    (root / "chexbert_labels" / "report_fixed.json").write_bytes(content)
    with pytest.raises(UserError, match=f"labels: .*report_fixed.json.* {message}"):
        ChexpertPlusSource(root).table()


def test_label_file_of_another_data_set(root):
    write_labels(root, [{**line, "path_to_image": f"x/{i}"} for i, line in enumerate(lines())])
    with pytest.raises(UserError, match="names none of the images, such as train/patient42142"):
        ChexpertPlusSource(root).table()


def test_missing_files(root):
    (root / "chexbert_labels" / "findings_fixed.json").unlink()
    with pytest.raises(UserError, match="labels: there is no chexbert_labels/findings_fixed.json"):
        ChexpertPlusSource(root, "findings")
    (root / "df_chexpert_plus_mine.csv").write_text("a\n")
    with pytest.raises(UserError, match=f"{CSV} and df_chexpert_plus_mine.csv; keep one"):
        ChexpertPlusSource(root)
    with pytest.raises(UserError, match=r"root: there is no df_chexpert_plus\*.csv"):
        ChexpertPlusSource(root.parent)
    with pytest.raises(UserError, match="root: there is no folder"):
        ChexpertPlusSource(root / "absent")


def test_unknown_labels():
    with pytest.raises(UserError, match="labels: 'summary'.* report, findings, impression"):
        choose_labels("summary", Section)
