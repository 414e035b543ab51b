"""Folders and files that are either whole or absent."""

import hashlib
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from cxr_lightning.errors import UserError
from cxr_lightning.files import atomic_folder, check_there, create_array, sha256_file, write_whole


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


def test_what_a_link_points_to_is_replaced(tmp_path: Path):
    (tmp_path / "large_disk" / "product").mkdir(parents=True)
    folder = tmp_path / "product"
    folder.symlink_to(tmp_path / "large_disk" / "product")
    with atomic_folder(folder) as partial:
        (partial / "new").write_text("new")
    assert folder.is_symlink()
    assert (folder / "new").read_text() == "new"
    assert list((tmp_path / "large_disk").iterdir()) == [tmp_path / "large_disk" / "product"]


def test_where_the_new_folder_cannot_take_its_place_the_earlier_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, rename = tmp_path / "product", Path.rename
    folder.mkdir()
    (folder / "old").write_text("old")

    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no"), atomic_folder(folder):
        pass
    assert (folder / "old").read_text() == "old"
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


def test_processes_of_one_number_do_not_take_each_others_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As in containers that share a disk, each with a process 1."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    place = tmp_path / "writing"
    place.mkdir()
    names = []
    replace = Path.replace

    def interrupted(temporary: Path, target: Path) -> Path:
        names.append(temporary.name)
        if len(names) == 1:
            write_whole(tmp_path / "other", b"other", place)
        return replace(temporary, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    write_whole(tmp_path / "deep" / "own", b"own", place)
    assert (tmp_path / "deep" / "own").read_bytes() == b"own"
    assert (tmp_path / "other").read_bytes() == b"other"
    assert list(place.iterdir()) == []


def test_folders_of_one_process_number_do_not_mix(tmp_path: Path):
    with atomic_folder(tmp_path / "product") as partial:
        (partial / "own").write_text("1")
        with atomic_folder(tmp_path / "product") as other:
            (other / "other").write_text("2")
    assert [file.name for file in (tmp_path / "product").iterdir()] == ["own"]
    assert list(tmp_path.iterdir()) == [tmp_path / "product"]


def test_sha256_is_that_of_the_bytes(tmp_path: Path):
    data = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_an_array_takes_its_place_on_the_disk_at_once(tmp_path: Path):
    array = create_array(tmp_path / "a.npy", np.float32, (1000, 700))
    array[999] = 1.0
    array.flush()
    # Blocks of 512 bytes; a sparse file would have a few.
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= array.nbytes
    read = np.load(tmp_path / "a.npy")
    assert (read.dtype, read.shape, read.sum()) == (np.float32, (1000, 700), 700.0)


def test_an_array_without_room_leaves_no_file(tmp_path: Path):
    """The kernel's limit on the size of files stands for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"a.npy: no room for 40000 bytes on its disk; make"):
            create_array(tmp_path / "a.npy", np.uint8, (200, 200))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_several_missing_inputs_are_named_at_once(tmp_path: Path):
    check_there({"real": tmp_path, "encoder": tmp_path / "a", "classifier": None})
    with pytest.raises(UserError) as error:
        check_there({"real": tmp_path, "encoder": tmp_path / "a", "generator": str(tmp_path / "b")})
    names = f"encoder {tmp_path}/a, generator {tmp_path}/b"
    assert str(error.value) == f"{names}: none of these is there; give paths that are."
