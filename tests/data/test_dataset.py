"""A split as batches, and what a table says as a condition."""

import numpy as np
import pandas as pd
import pytest
import torch

from cxr_lightning.data.dataset import (
    Radiographs,
    demographics,
    read_probabilities,
    table_condition,
)
from cxr_lightning.data.policies import LabelPolicy
from cxr_lightning.errors import UserError
from cxr_lightning.types import FIELDS, OBSERVATIONS


def table(rows: list[dict[str, object]]) -> pd.DataFrame:
    """A table with CheXpert columns; what is not given is blank."""
    blank = dict.fromkeys(OBSERVATIONS, np.nan) | {"AP/PA": "", "Sex": "", "Age": np.nan}
    return pd.DataFrame([blank | row for row in rows])


def test_an_item_is_a_batch_gathered_from_the_array(datamodule):
    prepared, rows = datamodule.prepared, datamodule.rows["valid"]
    view = Radiographs(prepared, rows, datamodule.condition)
    batch = view[[2, 0]]
    assert batch.image.dtype == torch.uint8
    assert batch.image.shape == (2, 1, 32, 32)
    for i, position in enumerate([2, 0]):
        row = rows[position]
        assert int(batch.index[i]) == row
        assert np.array_equal(batch.image[i, 0].numpy(), prepared.images[row])
        assert torch.equal(batch.condition.value[i], datamodule.condition.value[row])
        assert torch.equal(batch.condition.known[i], datamodule.condition.known[row])
    assert len(view) == len(rows)


def test_a_batch_can_be_written_to(datamodule):
    """The memory map is read-only; a batch is a copy of it."""
    batch = Radiographs(datamodule.prepared, datamodule.rows["train"], datamodule.condition)[[0]]
    before = datamodule.prepared.images[datamodule.rows["train"][0]].copy()
    batch.image.fill_(7)
    assert np.array_equal(datamodule.prepared.images[datamodule.rows["train"][0]], before)


@pytest.mark.parametrize(
    ("column", "text", "expected"),
    [
        ("AP/PA", {"AP": 0.0, "PA": 1.0, "": None, "LL": None}, 0),
        ("Sex", {"Female": 0.0, "Male": 1.0, "": None, "Unknown": None}, 1),
        ("Age", {0.0: 0.0, 47.0: 0.47, 100.0: 1.0, 120.0: 1.0, np.nan: None}, 2),
    ],
)
def test_demographics(column, text, expected):
    values = demographics(table([{column: key} for key in text]))[:, expected]
    wanted = [np.nan if v is None else v for v in text.values()]
    np.testing.assert_allclose(values, wanted, rtol=1e-6)


def test_a_row_becomes_a_condition_under_the_policies():
    rows = table(
        [
            {"Pneumonia": 1.0, "Edema": -1.0, "Fracture": 0.0, "AP/PA": "PA", "Age": 60.0},
            {"No Finding": 1.0, "Sex": "Female"},
        ]
    )
    condition = table_condition(rows, LabelPolicy({"Edema": "soft"}, soft=(0.5, 0.5)))
    first = dict(zip(FIELDS, condition.value[0].tolist(), strict=True))
    known = dict(zip(FIELDS, condition.known[0].tolist(), strict=True))
    assert (first["Pneumonia"], first["Edema"], first["Fracture"]) == (1.0, 0.5, 0.0)
    assert first["Age"] == pytest.approx(0.6)
    assert {f for f in FIELDS if known[f]} == {
        *("Pneumonia", "Edema", "Fracture", "PA", "Age"),
        "No Finding",  # a present pathology denies it
    }
    assert known["Sex" if "Sex" in known else "Male"] is False
    second = dict(zip(FIELDS, condition.known[1].tolist(), strict=True))
    assert not second["Support Devices"]
    assert second["Pneumonia"]
    assert second["Male"]


def write_probabilities(file, text):
    file.write_text(text)
    return file


def test_probabilities_are_joined_by_path(tmp_path):
    file = write_probabilities(tmp_path / "p.csv", "Edema,Path\n0.25,b\n0.5,unused\n,a\n")
    values = read_probabilities(file, pd.Series(["a", "b", "c"]))
    edema = OBSERVATIONS.index("Edema")
    np.testing.assert_array_equal(values[:, edema], np.float32([np.nan, 0.25, np.nan]))
    assert np.isnan(np.delete(values, edema, axis=1)).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Path,Edema\na,1.5\n", "holds 1.5, which is not in 0 to 1"),
        ("Path,Edema\na,often\n", "cannot be read"),
        ("File,Edema\na,0.5\n", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_probabilities_that_are_none(tmp_path, text, message):
    file = write_probabilities(tmp_path / "p.csv", text)
    with pytest.raises(UserError, match=rf"data\.probabilities: .*{message}"):
        read_probabilities(file, pd.Series(["a"]))


def test_absent_probabilities(tmp_path):
    with pytest.raises(UserError, match=r"data\.probabilities: .*absent\.csv cannot be read"):
        read_probabilities(tmp_path / "absent.csv", pd.Series(["a"]))
