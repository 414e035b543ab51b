"""`cxr prepare`: from a data set on disk to a prepared data set."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Literal

import pandas as pd
from tqdm import tqdm

from cxr_lightning.data.prepared import (
    PreparedWriter,
    open_prepared,
    open_writer,
    read_failures,
    read_header,
)
from cxr_lightning.data.resize import Aspect, Resize
from cxr_lightning.data.sources.base import Source
from cxr_lightning.data.sources.chexpert import ChexpertSource
from cxr_lightning.data.sources.folder import FolderSource
from cxr_lightning.data.sources.medmnist import Flag, MedmnistSource, NativeSize
from cxr_lightning.data.sources.phantom import PhantomSource
from cxr_lightning.data.sources.reading import Chunk, read_chunks, split_rows
from cxr_lightning.data.split import SPLITS, assign_splits
from cxr_lightning.errors import UserError

MIN_SIZE, MAX_SIZE = 8, 4096


def prepare(
    source: Literal["chexpert", "medmnist", "folder", "phantom"],
    root: Path,
    out: Path,
    size: int = 64,
    workers: int | None = None,
    views: Literal["frontal", "all"] = "frontal",
    aspect: Aspect = "pad",
    valid_fraction: float = 0.1,
    seed: int = 0,
    strict: bool = False,
    csv: Path | None = None,
    flag: Flag = "pneumoniamnist",
    download_size: NativeSize | None = None,
    patients: int = 400,
) -> None:
    """Reads a data set once and writes the prepared data set that everything else reads.

    The result is a folder with all images as one uint8 array, a table with the labels as they are
    (uncertain and blank stay what they are), and a list of the images that could not be read. The
    same command goes on where a killed one stopped, and does nothing where all is done.

    Args:
        source: What lies at root: `chexpert` (any data set in CheXpert's layout), `medmnist`,
            `folder` (images and a CSV file), `phantom` (simulated radiographs, made on the way).
        root: Folder of the data set. medmnist: holds `<flag>.npz`, or receives it. phantom:
            receives the simulated data set if it is empty or absent.
        out: Folder to write; must be absent or empty.
        size: Side of the square images, in pixels.
        workers: Processes that read images; default: one a core.
        views: `frontal` leaves out lateral views; `all` keeps them.
        aspect: `pad` keeps the whole image on black, `crop` the central square.
        valid_fraction: Share of the patients in the validation split where the data set has none.
        seed: Seed of that split, and of the phantom.
        strict: Whether one unreadable image is an error, with nothing written.
        csv: folder: the CSV file; default: the only one in root.
        flag: medmnist: which set.
        download_size: medmnist: side of the original images; default: the smallest that is no
            smaller than size.
        patients: phantom: number of simulated patients.

    Raises:
        UserError: If an argument or the data set is wrong, no image can be read, or the disk has
            no room.
    """
    _check_numbers(size, workers, valid_fraction, seed)
    _check_out(out, root)
    cores = workers or os.cpu_count() or 1
    data_set: Source
    if source == "chexpert":
        data_set = ChexpertSource(root)
    elif source == "folder":
        data_set = FolderSource(root, csv)
    elif source == "medmnist":
        data_set = MedmnistSource(root, flag, size, download_size)
    else:
        data_set = PhantomSource(root, patients=patients, size=size, seed=seed, workers=cores)
    table = data_set.table()
    table["split"] = assign_splits(table, valid_fraction, seed)
    if views == "frontal":
        table = _leave_out_laterals(table, root)
    resize = Resize(size, aspect)
    request = _request(data_set, root, resize, table)
    if _is_complete(out, request):
        if strict:
            _refuse_failures(read_failures(out))
        print(f"{out} is complete already: {_summary(open_prepared(out).table)}.")
        return
    with open_writer(out, table, size, request) as writer:
        _write(data_set, resize, writer, cores, strict)
        writer.finish(source, resize, {"request": request})
    _report(out, writer)


def _write(
    data_set: Source, resize: Resize, writer: PreparedWriter, workers: int, strict: bool
) -> None:
    """Reads and writes the rows that are left."""
    if strict:
        _refuse_failures(writer.reasons())
    for chunk in _read(data_set, resize, writer, workers):
        writer.append(chunk)
        if strict:
            _refuse_failures(writer.reasons())
    if writer.count == 0:
        path, reason = next(iter(writer.reasons().items()))
        raise UserError(
            f"root: none of the {len(writer.table)} images can be read ({path}: {reason}); check "
            "the folder."
        )


def _leave_out_laterals(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    """The rows that are not lateral views; prints how many are."""
    lateral = table["Frontal/Lateral"].str.lower() == "lateral"
    if lateral.all():
        raise UserError(f"views: {root} has lateral views only; use --views all.")
    if lateral.any():
        print(f"{lateral.sum()} lateral views are left out (--views all keeps them).")
    return table[~lateral].reset_index(drop=True)


def _check_numbers(size: int, workers: int | None, valid_fraction: float, seed: int) -> None:
    """Raises a UserError for the first number that is out of its range."""
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise UserError(f"size: {size} is not a side in pixels; give {MIN_SIZE} to {MAX_SIZE}.")
    if workers is not None and workers < 1:
        raise UserError(f"workers: {workers} processes cannot read images; give 1 or more.")
    if not 0 <= valid_fraction < 1:
        raise UserError(
            f"valid_fraction: {valid_fraction} is not a share of the patients; give at least 0 and "
            "less than 1."
        )
    if seed < 0:
        raise UserError(f"seed: {seed} is negative; give 0 or more.")


def _check_out(out: Path, root: Path) -> None:
    """Raises a UserError if the result can certainly not be written to `out`."""
    if out.exists() and not out.is_dir():
        raise UserError(f"out: {out} is a file; give a folder that is absent or empty.")
    if out.resolve() == root.resolve():
        raise UserError(f"out: {out} is the folder of the data set itself; give another one.")
    if out.exists() and any(out.iterdir()) and not (out / "header.json").is_file():
        raise _occupied(out)


def _occupied(out: Path) -> UserError:
    return UserError(
        f"out: {out} holds something else already; choose another folder or remove this one."
    )


def _request(data_set: Source, root: Path, resize: Resize, table: pd.DataFrame) -> str:
    """A hash of all that decides about the result."""
    rows = hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()
    fields = [data_set.name, str(root.resolve()), resize.size, resize.describe(), rows]
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()


def _is_complete(out: Path, request: str) -> bool:
    """Whether `out` is the result of the same request; a UserError if it is anything else."""
    if not out.exists() or not any(out.iterdir()):
        return False
    if read_header(out).get("request") != request:
        raise _occupied(out)
    return True


def _read(
    data_set: Source, resize: Resize, writer: PreparedWriter, workers: int
) -> Iterator[Chunk]:
    """Reads the rows that are left, with a progress bar on a terminal."""
    paths = writer.table["Path"].tolist()
    chunks = split_rows(paths[writer.rows_done :], resize.size)
    workers = workers if data_set.parallel else 1
    with (
        tqdm(
            total=len(paths), initial=writer.rows_done, desc="prepare", unit="image", disable=None
        ) as bar,
        closing(read_chunks(data_set.reader, resize, chunks, workers)) as reading,
    ):
        for chunk in reading:
            yield chunk
            bar.update(chunk.rows)


def _refuse_failures(failures: Mapping[str, str]) -> None:
    """Raises a UserError that names the first image that could not be read, if there is one."""
    for path, reason in failures.items():
        raise UserError(
            f"strict: {path} cannot be read ({reason}); repair it, or run without --strict to list "
            "all such images in failures.csv."
        )


def _summary(table: pd.DataFrame) -> str:
    """Such as `850 images (720 train, 130 valid) of 208 patients`."""
    counts = Counter(table["split"])
    splits = ", ".join(f"{counts[split]} {split}" for split in SPLITS if counts[split])
    return f"{len(table)} images ({splits}) of {table['patient'].nunique()} patients"


def _report(out: Path, writer: PreparedWriter) -> None:
    """Prints what was made and what was not."""
    kept = writer.table.drop(index=list(writer.failures))
    print(f"wrote {_summary(kept)}, {writer.size} x {writer.size} px, to {out}")
    where = f", see {out / 'failures.csv'}" if writer.failures else ""
    print(f"{len(writer.failures)} failures{where}")
    for split in ("train", "valid"):
        if not (kept["split"] == split).any():
            print(f"no image is in {split}; --valid_fraction and --seed decide about it")
