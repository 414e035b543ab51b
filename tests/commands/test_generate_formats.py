"""Synthetic sets as other readers see them: evaluation, preparation, torchxrayvision."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_lightning.cli import main
from cxr_lightning.commands.prepare import prepare
from cxr_lightning.data.prepared import open_prepared
from cxr_lightning.errors import UserError
from cxr_lightning.evaluation.synthetic import read_synthetic
from cxr_lightning.types import OBSERVATIONS

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "dicom": ".dcm"}


def decoded(folder: Path, suffix: str) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.rglob(f"*{suffix}"))])


@pytest.mark.parametrize("name", SUFFIXES)
def test_evaluation_reads_every_format(make_set, tmp_path, name):
    out = make_set(tmp_path / "set", format=name, view="PA")
    suffix = SUFFIXES[name]
    images = [f"train/patient{i:05d}/study1/view1_frontal{suffix}" for i in range(1, 7)]
    assert sorted(f.relative_to(out).as_posix() for f in out.rglob("*.*")) == sorted(
        [*images, "train.csv", "manifest.json"]
    )
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["image_format"] == name
    assert [image["path"] for image in manifest["images"]] == images
    drawn = read_synthetic(out, 32, tmp_path / "images.npy")
    png = decoded(make_set(tmp_path / "png" / "set", view="PA"), ".png")
    assert np.array_equal(drawn.images, decoded(out, ".jpg") if name == "jpeg" else png)
    assert np.abs(drawn.images.astype(int) - png).mean() < 3
    assert drawn.requested.tolist() == ["healthy"] * 3 + ["pneumonia+edema"] * 3
    assert set(drawn.table["AP/PA"]) == {"PA"}
    assert drawn.failures == {}
    assert drawn.notes == []


def test_prepare_reads_the_dicom_files_back(make_set, tmp_path):
    texts = ["edema, PA view, 70-year-old woman", "possible pneumonia in a man"]
    settings = {"condition": None, "prompt": texts}
    out = make_set(tmp_path / "set", format="dicom", **settings)
    png = decoded(make_set(tmp_path / "png" / "set", **settings), ".png")
    for name in ("listed", "bare"):
        prepare("dicom", out, tmp_path / name, size=32, workers=1)
        found = open_prepared(tmp_path / name)
        assert np.array_equal(found.images, png)
        assert found.table["Sex"].tolist() == ["Female"] * 3 + ["Male"] * 3
        assert found.table["Age"].tolist()[:3] == [70.0] * 3
        assert found.table["AP/PA"].tolist() == ["PA"] * 3 + [""] * 3
        unstated = "Frontal" if name == "listed" else ""
        assert found.table["Frontal/Lateral"].tolist() == ["Frontal"] * 3 + [unstated] * 3
        assert found.table["patient"].nunique() == 6
        if name == "listed":
            assert found.table["patient"].tolist() == [f"patient{i:05d}" for i in range(1, 7)]
            assert found.table["Edema"].tolist()[:3] == [1.0] * 3
            assert found.table["Pneumonia"].tolist()[3:] == [-1.0] * 3
        (out / "train.csv").unlink(missing_ok=True)  # then the headers alone say it


@pytest.mark.parametrize("name", ["png", "jpeg"])
@pytest.mark.parametrize("view", ["PA", None])
def test_torchxrayvision_reads_the_set_as_chexpert(make_set, tmp_path, name, view):
    datasets = pytest.importorskip("torchxrayvision").datasets
    out = make_set(tmp_path / "set", format=name, view=view)
    views = ["PA"] if view else ["UNKNOWN"]
    found = datasets.CheX_Dataset(str(tmp_path), str(out / "train.csv"), views=views)
    assert len(found) == 6
    images = decoded(out, SUFFIXES[name])
    table = pd.read_csv(out / "train.csv")
    names = {"Effusion": "Pleural Effusion"}
    for i in range(6):
        expected = datasets.normalize(images[i], maxval=255, reshape=True)
        np.testing.assert_array_equal(found[i]["img"], expected)
        labels = [table[names.get(str(p), str(p))][i] for p in found.pathologies]
        np.testing.assert_array_equal(found[i]["lab"], np.array(labels, dtype=np.float32))
    assert sorted(names.get(str(p), str(p)) for p in found.pathologies) == sorted(OBSERVATIONS[1:])
    healthy, ill = found.labels[:3], found.labels[3:]
    assert np.nansum(healthy) == 0
    assert np.nansum(ill) == 6  # pneumonia and edema in three images


def test_dicom_without_pydicom_is_refused_with_the_command_that_installs_it(
    make_set, tmp_path, monkeypatch
):
    out = make_set(tmp_path / "set", format="dicom", count=1)
    monkeypatch.setitem(sys.modules, "pydicom.pixels", None)
    with pytest.raises(UserError, match=r"^format: .* run pip install 'cxr_lightning\[dicom\]'"):
        make_set(tmp_path / "other", format="dicom")
    with pytest.raises(UserError, match=r"^synthetic: .* run pip install 'cxr_lightning\[dicom\]'"):
        read_synthetic(out, 32, tmp_path / "images.npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_an_unknown_format_is_refused(products, tmp_path, capsys):
    arguments = [f"--model={products}/generator", f"--out={tmp_path}/set", "--format=bmp"]
    with pytest.raises(SystemExit) as stop:
        main(["generate", *arguments])
    assert stop.value.code == 2
    assert "format: bmp is not possible; use png, jpeg or dicom." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
