"""Folders that are either whole or absent."""

import hashlib
from pathlib import Path

import pytest

from cxr_lightning.files import atomic_folder, sha256_file


def test_folder_appears_at_the_end_with_its_parents(tmp_path: Path):
    folder = tmp_path / "deep" / "product"
    with atomic_folder(folder) as partial:
        (partial / "a").write_text("1")
        assert not folder.exists()
    assert (folder / "a").read_text() == "1"
    assert list(folder.parent.iterdir()) == [folder]


def test_earlier_folder_is_replaced_as_a_whole(tmp_path: Path):
    folder = tmp_path / "product"
    folder.mkdir()
    (folder / "old").write_text("old")
    with atomic_folder(folder) as partial:
        (partial / "new").write_text("new")
        assert (folder / "old").is_file()
    assert [p.name for p in folder.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [folder]


def half_write(folder: Path, error: type[BaseException]) -> None:
    with atomic_folder(folder) as partial:
        (partial / "half").write_text("x")
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_earlier_folder_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
):
    folder = tmp_path / "product"
    folder.mkdir()
    (folder / "old").write_text("old")
    with pytest.raises(error):
        half_write(folder, error)
    assert (folder / "old").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_an_error_without_earlier_folder_leaves_nothing(tmp_path: Path):
    with pytest.raises(RuntimeError):
        half_write(tmp_path / "product", RuntimeError)
    assert list(tmp_path.iterdir()) == []


def test_sha256_is_that_of_the_bytes(tmp_path: Path):
    data = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()
