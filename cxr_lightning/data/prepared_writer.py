"""Writes a prepared data set so that a kill at any moment loses nothing."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from io import BufferedRandom, BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import features

from cxr_lightning import __version__
from cxr_lightning.data.prepared import EXTENT, FORMAT, hash_rows, write_table
from cxr_lightning.data.resize import Resize
from cxr_lightning.data.sources.reading import Chunk
from cxr_lightning.data.sources.tables import PROBLEM
from cxr_lightning.errors import UserError
from cxr_lightning.files import hold, sha256_file
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS

TABLE_BYTES = 1000
"""Room for one row of the table, in bytes; a report may need more."""


class PreparedWriter:
    """Writes a prepared data set chunk by chunk; use `open_writer`.

    All goes into a hidden folder beside `out`, which is renamed at the end, so that `out` is
    either complete or not there. A journal says which rows are done: after a kill, the same
    request goes on from there.

    Attributes:
        table: The rows that are wanted.
        problems: Why other rows are not, by position: columns `Path` and `reason`.
        rows_done: Rows of the table that are read already, written or failed.
        extents: Width and height of each image that was written.
        failures: Reason by row.
    """

    def __init__(self, out: Path, table: pd.DataFrame, size: int, request: str) -> None:
        """Starts, or goes on with, the unfinished folder of the same request.

        Args:
            out: Final folder; must be absent or empty.
            table: All rows, with the columns of a source's table.
            size: Side of the images, in pixels.
            request: Hash of all that decides about the result.
        """
        self.out = out
        self.partial = partial_folder(out)
        wanted = table[PROBLEM] == ""
        self.problems = table.loc[~wanted, ["Path", PROBLEM]].rename(columns={PROBLEM: "reason"})
        self.table = table[wanted].drop(columns=PROBLEM).reset_index(drop=True)
        self.size = size
        self.rows_done = 0
        self.extents: list[tuple[int, int]] = []
        self.failures: dict[int, str] = {}
        self.partial.mkdir(parents=True, exist_ok=True)
        self._journal = self._open_journal()
        self._images = self._open_array()
        try:
            self._resume(request)
        except BaseException:
            self.close()
            raise

    @property
    def count(self) -> int:
        """Images written."""
        return self.rows_done - len(self.failures)

    def failed(self) -> pd.DataFrame:
        """What could not be used or read so far, and why: columns `Path` and `reason`."""
        paths = self.table["Path"].iloc[list(self.failures)]
        unread = pd.DataFrame({"Path": paths, "reason": list(self.failures.values())})
        return pd.concat([self.problems, unread], ignore_index=True)

    def kept(self) -> pd.DataFrame:
        """The rows of the images that were written, with their `EXTENT`."""
        kept = self.table.drop(index=list(self.failures)).reset_index(drop=True)
        extents = pd.DataFrame(self.extents, columns=list(EXTENT), dtype=int)
        return pd.concat([kept, extents], axis=1)

    def append(self, chunk: Chunk) -> None:
        """Adds the next rows."""
        self._images.write(np.ascontiguousarray(chunk.images).tobytes())
        self._images.flush()
        record = {"rows": chunk.rows, "extents": chunk.extents, "failures": chunk.failures}
        self._journal.write(json.dumps(record) + "\n")
        self._journal.flush()
        self._record(chunk.rows, chunk.extents, chunk.failures)

    def finish(
        self, source: str, origins: Sequence[str], resize: Resize, request: str
    ) -> dict[str, Any]:
        """Completes the folder and puts it at `out`; returns the header."""
        self._images.seek(0)
        self._images.write(_array_header(self.count, self.size))
        self._images.close()
        kept = self.kept()
        write_table(kept, self.partial / "table.csv")
        self.failed().to_csv(self.partial / "failures.csv", index=False, errors="backslashreplace")
        header = {
            "format": FORMAT,
            "source": source,
            "origins": list(origins),
            "count": self.count,
            "size": self.size,
            "resize": resize.describe(),
            "versions": describe_versions(),
            "sha256": sha256_file(self.partial / "images.npy"),
            "rows_sha256": hash_rows(kept),
            "request": request,
            "not_annotated": [o for o in OBSERVATIONS if (kept[o] == NOT_ANNOTATED).any()],
        }
        text = json.dumps(header, indent=2) + "\n"
        (self.partial / "header.json").write_text(text, encoding="utf-8")
        self.partial.replace(self.out)
        (self.out / "journal.jsonl").unlink()  # last, since it is the lock
        self.close()
        return header

    def close(self) -> None:
        """Closes the files, which lets another process write."""
        self._images.close()
        self._journal.close()

    def _record(self, rows: int, extents: list[tuple[int, int]], failures: dict[int, str]) -> None:
        self.extents += extents
        self.failures |= {self.rows_done + offset: why for offset, why in failures.items()}
        self.rows_done += rows

    def _open_journal(self) -> TextIOWrapper:
        """The journal, locked against a second process."""
        return hold(
            self.partial / "journal.jsonl",
            f"out: another 'cxr prepare' is writing {self.out}; wait for it or choose another "
            "folder.",
        )

    def _open_array(self) -> BufferedRandom:
        file = self.partial / "images.npy"
        file.touch()
        return file.open("r+b")

    def _resume(self, request: str) -> None:
        """Goes on behind the last row that array and journal agree on, or starts afresh."""
        self._journal.seek(0)
        written = self._journal.read()
        lines = list(_whole_records(written))
        first = json.dumps({"request": request}) + "\n"
        start = len(_array_header(0, self.size))
        available = (self.partial / "images.npy").stat().st_size - start
        valid = [first]
        if len(lines) > 1 and lines[0] != {"request": request}:
            raise UserError(
                f"out: {self.partial} holds an unfinished data set of other options; run that "
                "command again to finish it, or remove the folder."
            )
        if lines and lines[0] == {"request": request}:
            for record in lines[1:]:
                failures = {int(offset): why for offset, why in record["failures"].items()}
                images = self.count + record["rows"] - len(failures)
                if images * self.size**2 > available:
                    break
                extents = [(width, height) for width, height in record["extents"]]
                self._record(record["rows"], extents, failures)
                valid.append(json.dumps(record) + "\n")
        kept = "".join(valid)
        begins = written.startswith(kept)  # then a kill in between loses nothing
        self._journal.truncate(len(kept.encode()) if begins else 0)
        self._journal.write("" if begins else kept)
        self._journal.flush()
        self._images.write(_array_header(self.count, self.size))
        self._images.truncate(start + self.count * self.size**2)
        self._images.seek(0, os.SEEK_END)


@contextmanager
def open_writer(
    out: Path, table: pd.DataFrame, size: int, request: str
) -> Iterator[PreparedWriter]:
    """A `PreparedWriter` that is closed at the end.

    On any error, Ctrl-C and a kill the hidden folder stays if it holds images, so that the same
    request goes on; an empty one is removed.

    Raises:
        UserError: If the disk has no room, or another process writes the same folder.
    """
    with _explain(out), ExitStack() as stack:
        check_free_space(out, len(table), size)
        writer = PreparedWriter(out, table, size, request)
        stack.callback(writer.close)
        stack.callback(_remove_if_empty, writer)
        yield writer


@contextmanager
def _explain(out: Path) -> Iterator[None]:
    """Turns what the file system refuses into one sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"out: {out} cannot be written ({error.strerror or error}); free the space or choose "
            "another folder; where images were read already, the same command goes on from there."
        ) from error


def _remove_if_empty(writer: PreparedWriter) -> None:
    if writer.partial.is_dir() and writer.count == 0:
        shutil.rmtree(writer.partial)


def partial_folder(out: Path) -> Path:
    """Where the unfinished data set lies."""
    return out.with_name(f".{out.name}.partial")


def check_free_space(out: Path, count: int, size: int) -> None:
    """Raises an error if `out` cannot be written, or its disk has no room for `count` images."""
    parent = next(folder for folder in out.absolute().parents if folder.is_dir())
    with tempfile.TemporaryFile(dir=parent):
        pass
    started = partial_folder(out) / "images.npy"
    written = started.stat().st_size if started.is_file() else 0
    needed = count * (size**2 + TABLE_BYTES) - written
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise UserError(
            f"out: {parent} has {free} bytes free, and {count} images of {size} x {size} px need "
            f"{needed}; free the space or choose another disk."
        )


def describe_versions() -> dict[str, str]:
    """Versions of what decides about the pixels."""
    return {
        "cxr_lightning": __version__,
        "pillow": version("pillow"),
        "libjpeg_turbo": features.version("libjpeg_turbo") or "none",
        "numpy": np.__version__,
    }


def _array_header(count: int, size: int) -> bytes:
    """The start of `images.npy`; its length does not depend on `count`."""
    stream = BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size)}
    np.lib.format.write_array_header_1_0(stream, description)
    return stream.getvalue()


def _whole_records(text: str) -> Iterator[Any]:
    """The JSON lines of a journal up to the first that is torn."""
    for line in text.splitlines(keepends=True):
        if not line.endswith("\n"):
            return
        try:
            yield json.loads(line)
        except ValueError:
            return
