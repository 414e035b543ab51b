"""Reading synthetic sets: ours, other tools', unlabelled ones, and what is wrong with them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_lightning.data.resize import Resize
from cxr_lightning.data.vocabulary import parse_condition
from cxr_lightning.errors import UserError
from cxr_lightning.evaluation import synthetic as module
from cxr_lightning.evaluation.synthetic import SyntheticSet, read_synthetic
from cxr_lightning.types import OBSERVATIONS

SIZE = 16


def _pixels(seed: int, width: int = SIZE, height: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def _read(place: Path, tmp_path: Path) -> SyntheticSet:
    return read_synthetic(place, SIZE, tmp_path / "array.npy")


def _save(folder: Path, name: str, pixels: np.ndarray) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images in a flat folder."""
    for i in range(6):
        _save(tmp_path / "set", f"{i}.png", _pixels(i))
    return tmp_path / "set"


def test_a_folder_of_images_without_labels(folder: Path, tmp_path: Path) -> None:
    found = _read(folder, tmp_path)
    assert not found.labelled
    assert found.conditions() == []
    np.testing.assert_array_equal(found.images, np.stack([_pixels(i) for i in range(6)]))
    assert len(set(found.patients)) == 6


def test_names_that_are_no_text_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    _save(folder, "a.png", _pixels(9))
    (folder / "a.png").rename(folder / "a\udcff.png")
    with pytest.raises(UserError, match="the name is not UTF-8"):
        _read(folder, tmp_path)


def test_a_condition_is_found_in_any_order(folder: Path, tmp_path: Path) -> None:
    found = replace(_read(folder, tmp_path), requested=np.array(["pneumonia+edema", "healthy"] * 3))
    assert found.matches(parse_condition("edema+pneumonia")).tolist() == [True, False] * 3
    assert not found.matches(parse_condition("edema")).any()


def test_sub_folders_by_class(tmp_path: Path) -> None:
    for i in range(4):
        _save(tmp_path / "set", f"{'PNEUMONIA' if i < 2 else 'NORMAL'}/{i}.png", _pixels(i))
    found = _read(tmp_path / "set", tmp_path)
    assert found.labelled
    assert [c.name for c in found.conditions()] == ["healthy", "pneumonia"]


def test_a_table_with_few_columns(folder: Path, tmp_path: Path) -> None:
    table = pd.DataFrame({"Path": [f"{i}.png" for i in range(6)], "Edema": [1, 1, 1, 0, 0, ""]})
    table.to_csv(folder / "any.csv", index=False)
    for place in (folder, folder / "any.csv"):
        found = _read(place, tmp_path)
        assert [c.name for c in found.conditions()] == ["edema"]
        assert found.matches(found.conditions()[0]).tolist() == [True] * 3 + [False] * 3


def test_patients_and_views_come_from_the_table(folder: Path, tmp_path: Path) -> None:
    rows = {"Path": [f"{i}.png" for i in range(6)], "patient": [*"aabbcc"], "AP/PA": ["PA"] * 6}
    pd.DataFrame(rows).to_csv(folder / "train.csv", index=False)
    found = _read(folder, tmp_path)
    assert len(set(found.patients)) == 3
    assert set(found.table["AP/PA"]) == {"PA"}
    assert not found.labelled


def test_larger_images_are_resized_as_prepare_does(tmp_path: Path) -> None:
    large = _pixels(0, 40, 30)
    _save(tmp_path / "set", "a.png", large)
    _save(tmp_path / "set", "b.png", _pixels(1))
    found = _read(tmp_path / "set", tmp_path)
    np.testing.assert_array_equal(found.images[0], Resize(SIZE)(large))
    np.testing.assert_array_equal(found.images[1], _pixels(1))
    assert found.notes == ["1 of 2 images resized to 16 pixels"]


def test_smaller_images_are_refused(folder: Path, tmp_path: Path) -> None:
    _save(folder, "z.png", _pixels(9, 8, 8))
    with pytest.raises(UserError, match=r"synthetic: z\.png has 8 x 8 pixels .* --size 8"):
        _read(folder, tmp_path)


def test_colour_becomes_luma_and_is_noted(tmp_path: Path) -> None:
    pixels = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    pixels[..., 0] = 200
    _save(tmp_path / "set", "a.png", pixels)
    grey = np.repeat(_pixels(0)[..., None], 3, axis=2)
    _save(tmp_path / "set", "b.png", grey)
    found = _read(tmp_path / "set", tmp_path)
    assert (found.images[0] == round(0.299 * 200)).all()
    np.testing.assert_array_equal(found.images[1], _pixels(0))
    assert found.notes == ["colour images turned to grey (luma), as 'cxr prepare' does"]


def test_grey_stored_as_colour_is_not_noted(tmp_path: Path) -> None:
    _save(tmp_path / "set", "b.jpg", np.repeat(_pixels(0)[..., None], 3, axis=2))
    assert _read(tmp_path / "set", tmp_path).notes == []


def test_the_hash_is_of_the_pixels(folder: Path, tmp_path: Path) -> None:
    first = _read(folder, tmp_path).sha256
    (folder / "0.png").unlink()
    _save(folder, "0.bmp", _pixels(0))  # another format, the same pixels and order
    assert _read(folder, tmp_path).sha256 == first
    _save(folder, "0.bmp", _pixels(77))
    assert _read(folder, tmp_path).sha256 != first


def test_unreadable_images_are_counted_apart_and_too_many_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "2.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"synthetic: 1 images in .* \(first: 2\.png: Unidentified"):
        _read(folder, tmp_path)
    monkeypatch.setattr(module, "MAX_UNREADABLE", 0.5)
    found = _read(folder, tmp_path)
    assert len(found.images) == len(found.table) == 5
    np.testing.assert_array_equal(found.images[2], _pixels(3))
    assert list(found.failures) == ["2.png"]


def test_two_tables_are_not_guessed_between(folder: Path, tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (folder / name).write_text("Path\n0.png\n1.png\n")
    with pytest.raises(UserError, match=r"synthetic: .* several CSV files \(a\.csv, b\.csv\)"):
        _read(folder, tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.csv", "", r"^synthetic: .* has no rows"),
        ("train.csv", "file\na.png\n", r"^synthetic: .* lacks the column Path"),
        ("train.csv", "Path,Edema\n0.png,2\n", r"^synthetic: 1 images .* Edema is '2'"),
        ("manifest.json", "{", r"^synthetic: .*manifest.json cannot be read"),
        ("manifest.json", '{"format": 9, "kind": "synthetic", "images": []}', "in format 1"),
    ],
)
def test_broken_files(folder: Path, tmp_path: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=message):
        _read(folder, tmp_path)


def test_manifest_and_table_must_agree(folder: Path, tmp_path: Path) -> None:
    (folder / "train.csv").write_text("Path\nset/0.png\nset/1.png\n")
    images = [{"path": f"{i}.png", "condition": "edema"} for i in range(3)]
    manifest = {"format": 1, "kind": "synthetic", "images": images}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"do not list the same images \(first: 2\.png\)"):
        _read(folder, tmp_path)


def test_absent_and_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="synthetic: no folder"):
        _read(tmp_path / "absent", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="^synthetic: (?!synthetic).* holds no image"):
        _read(tmp_path / "empty", tmp_path)


def test_observations_are_numbers(folder: Path, tmp_path: Path) -> None:
    table = _read(folder, tmp_path).table
    assert table[list(OBSERVATIONS)].dtypes.eq(float).all()
    assert table["Age"].isna().all()
