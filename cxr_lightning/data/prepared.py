"""The prepared data set: a folder with one uint8 array and one table, read by everything else.

`header.json`, `images.npy` (uint8 (n, size, size)), `table.csv` (one row an image, in array order,
labels raw: 1, 0, -1, blank where not mentioned, n/a where not annotated in this data set),
`failures.csv` (Path and reason of what could not be read or used).
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import UInt8

from cxr_lightning.data.sources.base import TABLE_COLUMNS
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

    @property
    def labels_sha256(self) -> str:
        """Hash of `table.csv`, whose labels may be corrected without a change of the images."""
        return sha256_file(self.root / "table.csv")


def open_prepared(
    root: Path, argument: str = "data.root", *, verify: bool = False
) -> PreparedDataset:
    """Opens a prepared data set.

    Args:
        root: Its folder.
        argument: What the user gave the folder as.
        verify: Whether to read the whole array once and compare its hash.

    Raises:
        UserError: If anything is missing, of another format, or does not fit together.
    """
    header = read_header(root, argument)
    missing = [name for name in FILES if not (root / name).is_file()]
    if missing:
        raise _broken(root, f"lacks {', '.join(missing)}", argument)
    images = _open_images(root, header, argument)
    table = _read_table(root, argument)
    if len(table) != len(images):
        raise _broken(
            root, f"has {len(table)} rows in table.csv and {len(images)} images", argument
        )
    if hash_rows(table) != header["rows_sha256"]:
        raise _broken(root, "has other rows in table.csv than images in images.npy", argument)
    lost = [o for o in header.get("not_annotated", []) if not (table[o] == NOT_ANNOTATED).any()]
    if lost:
        raise _broken(
            root,
            f"has lost the n/a of {', '.join(lost)} in table.csv, as pandas loses it unless it "
            "reads with dtype=str, keep_default_na=False",
            argument,
        )
    if verify and sha256_file(root / "images.npy") != header["sha256"]:
        raise _broken(root, "has an images.npy that differs from the hash in its header", argument)
    return PreparedDataset(root, header, images, table)


def read_header(root: Path, argument: str = "data.root") -> dict[str, Any]:
    """The header of a prepared data set.

    Args:
        root: Its folder.
        argument: What the user gave the folder as.

    Raises:
        UserError: If there is none, or it is of another format.
    """
    file = root / "header.json"
    if not file.is_file():
        raise UserError(
            f"{argument}: no prepared data set at {root}; make one with 'cxr prepare --source "
            f"SOURCE --root DIR --out {root}'."
        )
    try:
        header: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _broken(root, f"has a header.json that is no JSON ({error})", argument) from error
    lacking = [key for key in HEADER_KEYS if not isinstance(header, dict) or key not in header]
    if lacking:
        raise _broken(root, f"has a header.json without {', '.join(lacking)}", argument)
    if header["format"] != FORMAT:
        raise _broken(
            root, f"is of format {header['format']}, and this version reads {FORMAT}", argument
        )
    return header


def read_failures(root: Path, argument: str = "data.root") -> pd.DataFrame:
    """What could not be read or used, and why: columns `Path` and `reason`.

    Args:
        root: Folder of the prepared data set.
        argument: What the user gave the folder as.
    """
    try:
        return pd.read_csv(root / "failures.csv", dtype=str, keep_default_na=False)
    except ValueError as error:
        raise _broken(
            root, f"has a failures.csv that cannot be read ({error})", argument
        ) from error


def hash_image(image: UInt8[np.ndarray, "h w"]) -> bytes:
    """128 bits that tell images apart by their pixels."""
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def hash_rows(table: pd.DataFrame) -> str:
    """Hex sha256 of which image each row is."""
    return hashlib.sha256("\n".join(table["Path"]).encode("utf-8", "surrogateescape")).hexdigest()


def write_table(table: pd.DataFrame, file: Path) -> None:
    """Writes a table: labels as 1.0 / 0.0 / -1.0 / blank / n/a, whole ages without a point."""
    ages = ["" if np.isnan(age) else f"{age:g}" for age in table["Age"]]
    names = {1.0: "1.0", 0.0: "0.0", -1.0: "-1.0", NOT_ANNOTATED: "n/a"}
    labels = {o: table[o].map(names).fillna("") for o in OBSERVATIONS}
    table.assign(Age=ages, **labels).to_csv(file, index=False)


def _read_table(root: Path, argument: str) -> pd.DataFrame:
    file = root / "table.csv"
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise _broken(root, f"has a table.csv that cannot be read ({error})", argument) from error
    missing = [column for column in (*TABLE_COLUMNS, *EXTENT) if column not in table.columns]
    if missing:
        raise _broken(root, f"has a table.csv without {', '.join(missing)}", argument)
    wrong = ~table["split"].isin(SPLITS)
    if wrong.any():
        raise _broken(
            root, f"has the split {table['split'][wrong].iloc[0]!r} in table.csv", argument
        )
    pairs = table[["patient", "split"]].drop_duplicates()
    crossing = pairs["patient"][pairs["patient"].duplicated()]
    if len(crossing):
        raise _broken(
            root,
            f"has the patient {crossing.iloc[0]!r} in two splits in table.csv, which would leak",
            argument,
        )
    table = parse_numbers(table.assign(**{PROBLEM: ""}))
    problems = table[PROBLEM][table[PROBLEM] != ""]
    if len(problems):
        raise _broken(root, f"has a wrong value in table.csv, row {problems.iloc[0]}", argument)
    try:
        extents = table[list(EXTENT)].astype(int)
    except ValueError as error:
        raise _broken(
            root, f"has a width or height in table.csv that is none ({error})", argument
        ) from error
    return table.drop(columns=PROBLEM).assign(**{c: extents[c] for c in EXTENT})


def _open_images(
    root: Path, header: dict[str, Any], argument: str
) -> UInt8[np.ndarray, "n size size"]:
    try:
        images: np.ndarray = np.load(root / "images.npy", mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise _broken(root, f"has an images.npy that cannot be read ({error})", argument) from error
    expected = (header["count"], header["size"], header["size"])
    if images.dtype != np.uint8 or images.shape != expected:
        raise _broken(
            root,
            f"has an images.npy of {images.dtype} {images.shape} where the header says uint8 "
            f"{expected}",
            argument,
        )
    return images


def _broken(root: Path, what: str, argument: str) -> UserError:
    return UserError(f"{argument}: {root} {what}; prepare it again into a new folder.")
