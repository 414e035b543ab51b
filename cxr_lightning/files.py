"""Folders and files that are either whole or absent."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Gives a temporary sibling to write into and renames it to `folder` when all went well.

    An existing `folder` is replaced only then. On any exception the sibling is removed and
    `folder` is as it was.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if folder.exists():
            replaced = folder.with_name(f".{folder.name}.{os.getpid()}.replaced")
            folder.rename(replaced)
            partial.rename(folder)
            shutil.rmtree(replaced)
        else:
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
