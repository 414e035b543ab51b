import json

import numpy as np
import pytest
from PIL import Image

from cxr_lightning.cli import main
from cxr_lightning.commands.describe import choose_rows, describe
from cxr_lightning.data.prepared import open_prepared
from cxr_lightning.errors import UserError


def test_description_of_the_phantom(prepared, tmp_path, capsys):
    describe(prepared, tmp_path / "out", "pleural_effusion+support_devices,edema", per_condition=5)
    text = capsys.readouterr().out
    facts = json.loads((tmp_path / "out" / "description.json").read_text())
    table = open_prepared(prepared).table
    assert facts["images"] == len(table)
    assert f"{len(table)} images of {table['patient'].nunique()} patients, 32 x 32 px" in text
    assert "No Finding = 1, Support Devices not 1" in text
    assert facts["sizes"] == {"32 x 32": len(table)}
    assert facts["reports"] == len(table)
    healthy = (table["No Finding"] == 1) & (table["Support Devices"] != 1)
    assert facts["conditions"]["healthy"]["images"] == healthy.sum()
    sheets = {file.stem for file in (tmp_path / "out").glob("*.png")}
    assert sheets == {name for name, c in facts["conditions"].items() if c["images"]}
    assert facts["conditions"]["fracture"] == {  # simulated patients break no bones
        **dict.fromkeys(("images", "AP", "PA", "other", "patients"), 0),
        "PA share": None,
        "definition": "Fracture = 1",
    }
    assert "pleural_effusion+support_devices" in sheets
    with Image.open(tmp_path / "out" / "healthy.png") as sheet:
        columns = min(5, int(healthy.sum()))
        assert sheet.size == (columns * 34 + 2, 36)
        first = np.asarray(sheet)[2:34, 2:34]
    assert any(np.array_equal(first, image) for image in open_prepared(prepared).images[healthy])


def test_in_the_folder_by_default_and_still_prepared(prepared, capsys):
    main(["prepare", "--describe", str(prepared)])
    assert (prepared / "description" / "description.json").is_file()
    main(["prepare", f"--describe={prepared}", "--per_condition", "2"])
    open_prepared(prepared, verify=True)
    assert "contact sheets to" in capsys.readouterr().out


def test_what_cannot_be_described(prepared, tmp_path):
    with pytest.raises(UserError, match="no prepared data set at"):
        describe(tmp_path / "absent")
    with pytest.raises(UserError, match="per_condition: 0"):
        describe(prepared, tmp_path / "out", per_condition=0)
    with pytest.raises(UserError, match="'flu' in 'flu' is not a health condition"):
        describe(prepared, tmp_path / "out", "flu")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"out: .*file cannot be written"):
        describe(prepared, tmp_path / "file")


def test_patients_come_before_second_images():
    patients = np.array(["a", "a", "a", "b", "c", "c", "d"])
    rows = np.array([0, 1, 2, 3, 4, 5])
    for count, expected in ((3, ["a", "b", "c"]), (5, ["a", "a", "b", "c", "c"]), (9, None)):
        chosen = choose_rows(patients, rows, count)
        assert len(set(chosen)) == len(chosen) == min(count, len(rows))
        if expected:
            assert sorted(patients[chosen]) == expected
