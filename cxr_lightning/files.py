"""Folders and files that are either whole or absent."""

import hashlib
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from numpy.lib.format import open_memmap

from cxr_lightning.errors import UserError


def usable_cores() -> int:
    """CPU cores that this process may use: a job's share of a machine, not all of it."""
    if hasattr(os, "sched_getaffinity"):  # not on every platform
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


ZEROS = 2**20
"""Bytes written at a time to take place on the disk."""


def check_there(paths: Mapping[str, Path | str | None]) -> None:
    """Names all inputs that are missing, where there are several: one is told by who opens it.

    Args:
        paths: Path of each argument, or None where it was not given.

    Raises:
        UserError: If two or more are not there.
    """
    missing = [f"{name} {path}" for name, path in paths.items() if path and not Path(path).exists()]
    if len(missing) > 1:
        raise UserError(f"{', '.join(missing)}: none of these is there; give paths that are.")


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Gives a temporary sibling to write into and renames it to `folder` when all went well.

    An existing `folder` is replaced only then, and where it is a link, what it points to. On any
    exception the sibling is removed and `folder` is as it was.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir()
    try:
        yield partial
        replace_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(new: Path, folder: Path, keep: Callable[[str], bool] | None = None) -> None:
    """Renames `new` to `folder`, in the place of an earlier one, which stays if that fails.

    Args:
        new: The folder, on the same disk.
        folder: Its new name.
        keep: Whether a file or folder of this name in the earlier one moves to the new one; by
            default none does.
    """
    if not folder.exists():
        new.rename(folder)
        return
    replaced = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.replaced")
    folder.rename(replaced)
    try:
        new.rename(folder)
    except BaseException:
        if not folder.exists():
            replaced.rename(folder)
        raise
    for path in replaced.iterdir():
        if keep is not None and keep(path.name):
            path.rename(folder / path.name)
    shutil.rmtree(replaced, ignore_errors=True)


def write_whole(file: Path, content: bytes, place: Path | None = None) -> None:
    """Writes a file that is either whole or absent, and the folders above it.

    Args:
        file: The file; an earlier one is replaced at once.
        content: Its bytes.
        place: Folder on the same disk for the file while it is written; by default the one that it
            goes to. If it is gone, nothing is written.
    """
    temporary = (place or file.parent) / f"{uuid.uuid4().hex}.partial"
    try:
        temporary.write_bytes(content)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def array_bytes(array: Shaped[np.ndarray, "..."]) -> bytes:
    """The content of a .npy file."""
    stream = BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Waits until no other process is in here for this folder, which is made where needed."""
    import fcntl  # not on every platform

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def hold(file: Path, message: str) -> TextIOWrapper:
    """Opens a file for appending and locks it; closing it, or the end of the process, frees it.

    Args:
        file: The file, made where needed.
        message: What to say where another process holds it.

    Raises:
        UserError: If another process does.
    """
    import fcntl  # not on every platform

    held = file.open("a+", encoding="utf-8")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        held.close()
        raise UserError(message) from error
    return held


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def create_array(
    file: Path, dtype: type[np.generic], shape: tuple[int, ...]
) -> np.memmap[Any, Any]:
    """A new .npy file, mapped into memory for writing, whose place on the disk is taken at once.

    A sparse file would end the process by SIGBUS where the disk turns out to be full.

    Args:
        file: The file; its folder exists.
        dtype: Of the array.
        shape: Of the array, not empty.

    Raises:
        UserError: If the disk has no room; no file is left then.
    """
    size = np.dtype(dtype).itemsize * math.prod(shape)
    try:
        array: np.memmap[Any, Any] = open_memmap(file, "w+", dtype, shape)
        with file.open("r+b") as raw:
            raw.seek(array.offset)
            for start in range(0, size, ZEROS):
                raw.write(bytes(min(ZEROS, size - start)))
    except OSError as error:
        file.unlink(missing_ok=True)
        raise UserError(
            f"{file}: no room for {size} bytes on its disk; make room and give the same command "
            "again, or choose another folder."
        ) from error
    return array
