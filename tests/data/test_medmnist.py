import builtins
import sys
import types

import numpy as np
import pytest

from cxr_lightning.data.resize import Resize, UnreadableImageError
from cxr_lightning.data.sources.base import TABLE_COLUMNS
from cxr_lightning.data.sources.medmnist import MedmnistSource
from cxr_lightning.data.sources.nih_labels import map_nih
from cxr_lightning.data.sources.tables import PROBLEM
from cxr_lightning.errors import UserError
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS

COUNTS = {"train": 5, "val": 2, "test": 3}


def write_npz(file, size=28, labels=1, save=np.savez, counts=COUNTS):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in counts.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, size, size), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count * labels).reshape(count, labels) % 2).astype(
            np.uint8
        )
    save(file, **arrays)
    return arrays


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_are_those_of_the_file(tmp_path, save):
    arrays = write_npz(tmp_path / "pneumoniamnist.npz", save=save)
    source = MedmnistSource(tmp_path, "pneumoniamnist", 28)
    for split, count in COUNTS.items():
        for index in reversed(range(count)):  # against the order of the file, too
            image = source.image(f"pneumoniamnist/{split}/{index:06d}")
            assert np.array_equal(image, arrays[f"{split}_images"][index])
    resized = source.image("pneumoniamnist/val/000001", Resize(16))
    assert np.array_equal(resized, Resize(16)(arrays["val_images"][1]))


def test_pneumonia_table(tmp_path):
    write_npz(tmp_path / "pneumoniamnist.npz")
    table = MedmnistSource(tmp_path, "pneumoniamnist", 28).table()
    assert list(table.columns) == [*TABLE_COLUMNS, PROBLEM]
    assert set(table[PROBLEM]) == {""}
    assert table["split"].tolist() == ["train"] * 5 + ["valid"] * 2 + ["test"] * 3
    assert table["patient"].is_unique
    assert table["Path"].is_unique
    assert table["Pneumonia"].tolist() == [0, 1, 0, 1, 0, 0, 1, 0, 1, 0]
    normal = table["Pneumonia"] == 0
    assert (table["No Finding"][normal] == 1).all()
    assert table["No Finding"][~normal].isna().all()
    others = [o for o in OBSERVATIONS if o not in ("Pneumonia", "No Finding")]
    assert (table[others] == NOT_ANNOTATED).all(axis=None)
    assert set(table["AP/PA"]) == {"AP"}
    assert set(table["Frontal/Lateral"]) == {"Frontal"}


NIH = [
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
]
UNANNOTATED = ["Enlarged Cardiomediastinum", "Fracture", "Support Devices"]


@pytest.mark.parametrize(
    ("nih", "observation"),
    [
        ("Effusion", "Pleural Effusion"),
        ("Mass", "Lung Lesion"),
        ("Nodule", "Lung Lesion"),
        ("Infiltration", "Lung Opacity"),
        ("Pleural_Thickening", "Pleural Other"),
        *((n, n) for n in NIH if n in OBSERVATIONS),
        ("Emphysema", None),
        ("Fibrosis", None),
        ("Hernia", None),
    ],
)
def test_nih_mapping_of_one_label(nih, observation):
    labels = np.zeros((1, 14), dtype=bool)
    labels[0, NIH.index(nih)] = True
    mapped = dict(zip(OBSERVATIONS, map_nih(labels)[0], strict=True))
    expected = dict.fromkeys(OBSERVATIONS, 0.0)
    expected |= dict.fromkeys(UNANNOTATED, NOT_ANNOTATED)
    expected["No Finding"] = np.nan  # 1 or blank
    expected["Lung Opacity"] = np.nan  # any abnormality may be one
    if observation:
        expected[observation] = 1.0
    np.testing.assert_equal(mapped, expected)


def test_nih_mapping_of_no_label():
    mapped = dict(zip(OBSERVATIONS, map_nih(np.zeros((1, 14), dtype=bool))[0], strict=True))
    assert [o for o, value in mapped.items() if value == NOT_ANNOTATED] == UNANNOTATED
    assert not any(np.isnan(value) for value in mapped.values())
    assert [o for o, value in mapped.items() if value == 1] == ["No Finding"]


def test_chestmnist_table(tmp_path):
    write_npz(tmp_path / "chestmnist.npz", labels=14)
    table = MedmnistSource(tmp_path, "chestmnist", 28).table()
    assert len(table) == 10
    assert set(table["AP/PA"]) == {""}
    assert (table["Cardiomegaly"] == 1).all()  # the second label, as all odd ones
    assert (table["Atelectasis"] == 0).all()
    assert (table[UNANNOTATED] == NOT_ANNOTATED).all(axis=None)


@pytest.mark.parametrize(("size", "chosen"), [(28, 28), (32, 64), (64, 64), (100, 128), (500, 128)])
def test_smallest_local_file_that_is_large_enough(tmp_path, size, chosen):
    for native in (28, 64, 128):
        name = "pneumoniamnist.npz" if native == 28 else f"pneumoniamnist_{native}.npz"
        write_npz(tmp_path / name, size=native)
    source = MedmnistSource(tmp_path, "pneumoniamnist", size)
    assert source.image("pneumoniamnist/train/000000").shape == (chosen, chosen)


def test_truncated_images_are_failures(tmp_path):
    file = tmp_path / "pneumoniamnist.npz"
    write_npz(file, save=np.savez_compressed, counts={"train": 500, "val": 1, "test": 1})
    content = bytearray(file.read_bytes())
    middle = content.index(b"train_images.npy") + 300_000
    content[middle : middle + 1000] = bytes(1000)
    file.write_bytes(bytes(content))
    source = MedmnistSource(tmp_path, "pneumoniamnist", 28)
    assert len(source.table()) == 502
    with pytest.raises(UnreadableImageError):
        source.image("pneumoniamnist/train/000499")


@pytest.mark.parametrize("content", [b"", b"no zip"])
def test_file_that_is_no_npz(tmp_path, content):
    (tmp_path / "pneumoniamnist.npz").write_bytes(content)
    with pytest.raises(UserError, match="not a file of MedMNIST"):
        MedmnistSource(tmp_path, "pneumoniamnist", 28).table()


def test_labels_that_do_not_fit(tmp_path):
    arrays = write_npz(tmp_path / "pneumoniamnist.npz")
    arrays["val_labels"] = arrays["val_labels"][:1]
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays)
    with pytest.raises(UserError, match="2 val images and labels uint8"):
        MedmnistSource(tmp_path, "pneumoniamnist", 28).table()


def test_package_is_absent(tmp_path, monkeypatch):
    plain = builtins.__import__

    def refuse(name, *rest):
        if name == "medmnist":
            raise ImportError(name)
        return plain(name, *rest)

    monkeypatch.delitem(sys.modules, "medmnist", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match="pip install medmnist"):
        MedmnistSource(tmp_path, "pneumoniamnist", 64)


def fake_package(monkeypatch, load):
    information = {"python_class": "PneumoniaMNIST", "url": "https://u", "url_64": "https://u64"}
    module = types.SimpleNamespace(INFO={"pneumoniamnist": information}, PneumoniaMNIST=load)
    monkeypatch.setitem(sys.modules, "medmnist", module)


def test_download_fails(tmp_path, monkeypatch):
    def load(split, download, root, size):
        (tmp_path / "pneumoniamnist_64.npz").write_bytes(b"half")
        raise RuntimeError("no network")

    fake_package(monkeypatch, load)
    with pytest.raises(UserError, match=r"no network.*https://u64.*pneumoniamnist_64\.npz"):
        MedmnistSource(tmp_path, "pneumoniamnist", 64)
    assert not any(tmp_path.iterdir())


def test_download(tmp_path, monkeypatch):
    root = tmp_path / "new"

    def load(split, download, root, size):
        write_npz(f"{root}/pneumoniamnist_{size}.npz", size=size)

    fake_package(monkeypatch, load)
    source = MedmnistSource(root, "pneumoniamnist", 32, download_size=64)
    assert source.image("pneumoniamnist/test/000002").shape == (64, 64)
