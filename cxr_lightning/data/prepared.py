"""The prepared data set: a folder with one uint8 array and one table, read by everything else.

`header.json`, `images.npy` (uint8 (n, size, size)), `table.csv` (one row an image, in array order,
labels raw: 1, 0, -1, blank where not mentioned, n/a where not annotated in this data set),
`failures.csv` (Path and reason of what could not be read or used).
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from io import BufferedRandom, BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import UInt8
from PIL import features

from cxr_lightning import __version__
from cxr_lightning.data.resize import Resize
from cxr_lightning.data.sources.base import TABLE_COLUMNS
from cxr_lightning.data.sources.reading import Chunk
from cxr_lightning.data.sources.tables import PROBLEM, parse_numbers
from cxr_lightning.data.split import SPLITS
from cxr_lightning.errors import UserError
from cxr_lightning.files import sha256_file
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS

FORMAT = 2
FILES = ("header.json", "images.npy", "table.csv", "failures.csv")
HEADER_KEYS = (
    "format",
    "source",
    "origins",  # collections whose images it holds
    "count",
    "size",
    "resize",
    "versions",
    "sha256",  # of images.npy
    "request",  # of all that decides about the result
    "rows_sha256",  # of the column Path, in order: labels may be corrected, rows may not move
)
EXTENT = ("width", "height")
"""Columns of the prepared table after a source's: the original's size in pixels."""


TABLE_BYTES = 1000
"""Room for one row of the table, in bytes; a report may need more."""


@dataclass(frozen=True)
class PreparedDataset:
    """An opened prepared data set.

    Attributes:
        root: Its folder.
        header: What `header.json` says.
        images: uint8 (n, size, size), memory-mapped, read-only.
        table: One row an image. Observations and Age are float with NaN for blank (observations
            `NOT_ANNOTATED` where nobody looked), width and height are int, the other columns text
            with "" for blank.
    """

    root: Path
    header: dict[str, Any]
    images: UInt8[np.ndarray, "n size size"]
    table: pd.DataFrame

    @property
    def size(self) -> int:
        """Side of the images, in pixels."""
        return int(self.header["size"])

    @property
    def sha256(self) -> str:
        """Hash of `images.npy`, as the header states it."""
        return str(self.header["sha256"])


def open_prepared(root: Path, *, verify: bool = False) -> PreparedDataset:
    """Opens a prepared data set.

    Args:
        root: Its folder.
        verify: Whether to read the whole array once and compare its hash.

    Raises:
        UserError: If anything is missing, of another format, or does not fit together.
    """
    header = read_header(root)
    missing = [name for name in FILES if not (root / name).is_file()]
    if missing:
        raise _broken(root, f"lacks {', '.join(missing)}")
    images = _open_images(root, header)
    table = _read_table(root)
    if len(table) != len(images):
        raise _broken(root, f"has {len(table)} rows in table.csv and {len(images)} images")
    if hash_rows(table) != header["rows_sha256"]:
        raise _broken(root, "has other rows in table.csv than images in images.npy")
    if verify and sha256_file(root / "images.npy") != header["sha256"]:
        raise _broken(root, "has an images.npy that differs from the hash in its header")
    return PreparedDataset(root, header, images, table)


def read_header(root: Path) -> dict[str, Any]:
    """The header of a prepared data set.

    Raises:
        UserError: If there is none, or it is of another format.
    """
    file = root / "header.json"
    if not file.is_file():
        raise UserError(
            f"data.root: no prepared data set at {root}; make one with 'cxr prepare --source "
            f"SOURCE --root DIR --out {root}'."
        )
    try:
        header: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _broken(root, f"has a header.json that is no JSON ({error})") from error
    lacking = [key for key in HEADER_KEYS if not isinstance(header, dict) or key not in header]
    if lacking:
        raise _broken(root, f"has a header.json without {', '.join(lacking)}")
    if header["format"] != FORMAT:
        raise _broken(root, f"is of format {header['format']}, and this version reads {FORMAT}")
    return header


def read_failures(root: Path) -> pd.DataFrame:
    """What could not be read or used, and why: columns `Path` and `reason`."""
    return pd.read_csv(root / "failures.csv", dtype=str, keep_default_na=False)


def hash_image(image: UInt8[np.ndarray, "h w"]) -> bytes:
    """128 bits that tell images apart by their pixels."""
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def hash_rows(table: pd.DataFrame) -> str:
    """Hex sha256 of which image each row is."""
    return hashlib.sha256("\n".join(table["Path"]).encode("utf-8", "surrogateescape")).hexdigest()


def describe_versions() -> dict[str, str]:
    """Versions of what decides about the pixels."""
    return {
        "cxr_lightning": __version__,
        "pillow": version("pillow"),
        "libjpeg_turbo": features.version("libjpeg_turbo") or "none",
        "numpy": np.__version__,
    }


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
        self.close()
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
        }
        text = json.dumps(header, indent=2) + "\n"
        (self.partial / "header.json").write_text(text, encoding="utf-8")
        (self.partial / "journal.jsonl").unlink()
        self.partial.replace(self.out)
        return header

    def close(self) -> None:
        """Closes the files."""
        self._images.close()
        self._journal.close()

    def _record(self, rows: int, extents: list[tuple[int, int]], failures: dict[int, str]) -> None:
        self.extents += extents
        self.failures |= {self.rows_done + offset: why for offset, why in failures.items()}
        self.rows_done += rows

    def _open_journal(self) -> TextIOWrapper:
        """The journal, locked against a second process."""
        import fcntl  # not on every platform, and only writing needs it

        journal = (self.partial / "journal.jsonl").open("a+", encoding="utf-8")
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            journal.close()
            raise UserError(
                f"out: another 'cxr prepare' is writing {self.out}; wait for it or choose another "
                "folder."
            ) from error
        return journal

    def _open_array(self) -> BufferedRandom:
        file = self.partial / "images.npy"
        file.touch()
        return file.open("r+b")

    def _resume(self, request: str) -> None:
        """Goes on behind the last row that array and journal agree on, or starts afresh."""
        self._journal.seek(0)
        lines = list(_whole_records(self._journal.read()))
        first = json.dumps({"request": request}) + "\n"
        start = len(_array_header(0, self.size))
        available = (self.partial / "images.npy").stat().st_size - start
        valid = [first]
        if lines and lines[0] == {"request": request}:
            for record in lines[1:]:
                failures = {int(offset): why for offset, why in record["failures"].items()}
                images = self.count + record["rows"] - len(failures)
                if images * self.size**2 > available:
                    break
                extents = [(width, height) for width, height in record["extents"]]
                self._record(record["rows"], extents, failures)
                valid.append(json.dumps(record) + "\n")
        self._journal.truncate(0)
        self._journal.writelines(valid)
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
        stack.callback(_remove_if_empty, writer)
        stack.callback(writer.close)
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


def write_table(table: pd.DataFrame, file: Path) -> None:
    """Writes a table: labels as 1.0 / 0.0 / -1.0 / blank / n/a, whole ages without a point."""
    ages = ["" if np.isnan(age) else f"{age:g}" for age in table["Age"]]
    names = {1.0: "1.0", 0.0: "0.0", -1.0: "-1.0", NOT_ANNOTATED: "n/a"}
    labels = {o: table[o].map(names).fillna("") for o in OBSERVATIONS}
    table.assign(Age=ages, **labels).to_csv(file, index=False)


def _read_table(root: Path) -> pd.DataFrame:
    file = root / "table.csv"
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise _broken(root, f"has a table.csv that cannot be read ({error})") from error
    missing = [column for column in (*TABLE_COLUMNS, *EXTENT) if column not in table.columns]
    if missing:
        raise _broken(root, f"has a table.csv without {', '.join(missing)}")
    wrong = ~table["split"].isin(SPLITS)
    if wrong.any():
        raise _broken(root, f"has the split {table['split'][wrong].iloc[0]!r} in table.csv")
    table = parse_numbers(table.assign(**{PROBLEM: ""}))
    problems = table[PROBLEM][table[PROBLEM] != ""]
    if len(problems):
        raise _broken(root, f"has a wrong value in table.csv, row {problems.iloc[0]}")
    try:
        extents = table[list(EXTENT)].astype(int)
    except ValueError as error:
        raise _broken(root, f"has a width or height in table.csv that is none ({error})") from error
    return table.drop(columns=PROBLEM).assign(**{c: extents[c] for c in EXTENT})


def _open_images(root: Path, header: dict[str, Any]) -> UInt8[np.ndarray, "n size size"]:
    try:
        images: np.ndarray = np.load(root / "images.npy", mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise _broken(root, f"has an images.npy that cannot be read ({error})") from error
    expected = (header["count"], header["size"], header["size"])
    if images.dtype != np.uint8 or images.shape != expected:
        raise _broken(
            root,
            f"has an images.npy of {images.dtype} {images.shape} where the header says uint8 "
            f"{expected}",
        )
    return images


def _broken(root: Path, what: str) -> UserError:
    return UserError(f"data.root: {root} {what}; prepare it again into a new folder.")


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
