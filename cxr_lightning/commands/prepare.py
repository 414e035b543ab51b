"""`cxr prepare`: from a data set on disk to a prepared data set."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

import pandas as pd

from cxr_lightning.commands.describe import format_table
from cxr_lightning.data.description import count_conditions
from cxr_lightning.data.prepared import open_prepared, read_failures, read_header
from cxr_lightning.data.prepared_writer import PreparedWriter, open_writer
from cxr_lightning.data.resize import Aspect, Resize
from cxr_lightning.data.sources.base import Source
from cxr_lightning.data.sources.medmnist import Flag, NativeSize
from cxr_lightning.data.sources.reading import Chunk, read_chunks, split_rows
from cxr_lightning.data.sources.registry import Options, SourceName, open_source
from cxr_lightning.data.sources.tables import PROBLEM
from cxr_lightning.data.split import SPLITS, assign_splits
from cxr_lightning.errors import UserError
from cxr_lightning.files import usable_cores
from cxr_lightning.progress import progress_bar
from cxr_lightning.ranges import check_range

MIN_SIZE, MAX_SIZE = 8, 4096


def prepare(
    source: SourceName,
    root: Path,
    out: Path,
    size: int = 64,
    workers: int | None = None,
    views: Literal["frontal", "all"] = "frontal",
    aspect: Aspect = "pad",
    valid_fraction: float = 0.1,
    seed: int = 0,
    strict: bool = False,
    origin: str | None = None,
    labels: str | None = None,
    csv: Path | None = None,
    columns: dict[str, str] | None = None,
    flag: Flag = Options.flag,
    download_size: NativeSize | None = None,
    patients: int = Options.patients,
    parts: list[str] | None = None,
) -> None:
    """Reads a data set once and writes the prepared data set that everything else reads.

    The result is a folder with all images as one uint8 array, a table with the labels as they are
    (uncertain, blank and not annotated stay what they are), and a list of the images that could not
    be read and the rows that could not be used. The same command goes on where a killed one
    stopped, and does nothing where all is done. `cxr prepare --describe PREPARED` says what is in
    one.

    Args:
        source: What lies at root: `chexpert` (CheXpert, or any data set in its layout),
            `chexpert_plus`, `mimic_cxr` (MIMIC-CXR-JPG), `nih14` (NIH ChestX-ray14), `rsna`
            (RSNA Pneumonia 2018), `vindr` (VinDr-CXR), `medmnist`, `folder` (images and a CSV file,
            or sub-folders as classes), `dicom` (DICOM files, and a CSV file if there is one),
            `mixture` (several prepared data sets), `phantom` (simulated radiographs, made on the
            way).
        root: Folder of the data set. medmnist: holds `<flag>.npz`, or receives it. phantom:
            receives the simulated data set if it is empty or absent. mixture: holds the prepared
            data sets as sub-folders.
        out: Folder to write: absent, empty, or of this very request, unfinished or done.
        size: Side of the square images, in pixels.
        workers: Processes that read images; default: one a core.
        views: `frontal` leaves out lateral views; `all` keeps them, for an encoder or an
            evaluation: a condition does not state them, so a generator would mix the two.
        aspect: `pad` keeps the whole image on black, `crop` the central square.
        valid_fraction: Share of the patients in the validation split where the data set has none.
        seed: Seed of that split, and of the phantom.
        strict: Exit with code 2 if an image could not be read or a row not be used; the data set
            of the others is written all the same.
        origin: Collection that the images were taken from, such as `NIH ChestX-ray14`, where the
            source does not say it: a mixture refuses two sets of one origin.
        labels: Whose labels to take. chexpert: `chexpert`, `chexbert`, `visualchexbert`.
            chexpert_plus: `report`, `findings`, `impression`. mimic_cxr: `chexpert`, `negbio`.
            Default: the first.
        csv: folder, dicom: the CSV file; default: the only one in root, if there is one.
        columns: folder, dicom: our name of a column (or class) to yours, such as
            `{"Path": "file", "Pleural Effusion": "effusion"}`.
        flag: medmnist: which set.
        download_size: medmnist: side of the original images; default: the smallest that is no
            smaller than size.
        patients: phantom: number of simulated patients.
        parts: mixture: names of the prepared data sets; default: all in root.

    Raises:
        UserError: If an argument or the data set is wrong, no image can be read, the disk has no
            room, or, with strict, anything was left out.
    """
    root, out = root.absolute(), out.absolute()
    check_range("size", size, MIN_SIZE, MAX_SIZE)
    if workers is not None:
        check_range("workers", workers, 1)
    check_range("valid_fraction", valid_fraction, 0, 1, below=True)
    check_range("seed", seed, 0)
    _check_out(out, root)
    cores = workers or usable_cores()
    resize = Resize(size, aspect)
    options = Options(
        resize=resize,
        labels=labels,
        csv=csv,
        columns=columns or {},
        parts=parts,
        out=out,
        flag=flag,
        download_size=download_size,
        patients=patients,
        seed=seed,
        workers=cores,
    )
    data_set = open_source(source, root, options)
    table = data_set.table()
    _require_usable(table, root)
    usable = table[PROBLEM] == ""
    _say_stand_ins(table[usable])
    table.loc[usable, "split"] = assign_splits(table[usable], valid_fraction, seed)
    if views == "frontal":
        table = _leave_out_laterals(table, root)
        _require_usable(table, root)
    request = _request(data_set, root, resize, table, origin)
    if _is_complete(out, request):
        failed = read_failures(out, "out")
        print(f"{out} is complete already: {_summary(open_prepared(out, 'out').table)}.")
        if len(failed):
            print(f"{len(failed)} failures; prepare into a new folder to read what was repaired.")
    else:
        with open_writer(out, table, size, request) as writer:
            _write(data_set, resize, writer, cores)
            origins = tuple(dict.fromkeys([*data_set.origins, *([origin] if origin else [])]))
            writer.finish(source, origins, resize, request)
        failed = writer.failed()
        _report(out, writer)
    if strict and len(failed):
        path, reason = failed.iloc[0]
        raise UserError(
            f"strict: {len(failed)} of {len(table)} images were left out ({path or 'first'}: "
            f"{reason}); {out} holds the others, and its failures.csv lists these."
        )


def _write(data_set: Source, resize: Resize, writer: PreparedWriter, workers: int) -> None:
    """Reads and writes the rows that are left."""
    for chunk in _read(data_set, resize, writer, workers):
        writer.append(chunk)
    if writer.count == 0:
        path, reason = writer.failed().iloc[-1]
        raise UserError(
            f"root: none of the {len(writer.table)} images can be read ({path}: {reason}); check "
            "the folder."
        )


def _say_stand_ins(table: pd.DataFrame) -> None:
    """Says where no image shares its patient with another, as where none is stated."""
    if len(table) > 1 and table["patient"].is_unique:
        print(f"Each of the {len(table)} images counts as a patient of its own.")


def _require_usable(table: pd.DataFrame, root: Path) -> None:
    """Raises a UserError if every row has a problem."""
    if (table[PROBLEM] != "").all():
        raise UserError(
            f"root: none of the {len(table)} rows in {root} can be used "
            f"({table[PROBLEM].iloc[0]}); correct them."
        )


def _leave_out_laterals(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    """The rows that are not lateral views; prints how many are, and how many may be."""
    view = table["Frontal/Lateral"].str.lower()
    lateral = view == "lateral"
    if lateral.all():
        raise UserError(f"views: {root} has lateral views only; use --views all.")
    if lateral.any():
        print(f"{lateral.sum()} lateral views are left out (--views all keeps them).")
    if (view == "").any():
        print(f"{(view == '').sum()} images of unstated view are kept: they count as frontal.")
    return table[~lateral].reset_index(drop=True)


def _check_out(out: Path, root: Path) -> None:
    """Raises a UserError if the result can certainly not be written to `out`."""
    if out.exists() and not out.is_dir():
        raise UserError(f"out: {out} is a file; give a folder that is absent or empty.")
    if out.resolve() in (root.resolve(), *root.resolve().parents):
        raise UserError(f"out: {out} is, or holds, the folder of the data set; give another one.")
    if out.is_symlink():
        raise UserError(f"out: {out} is a link; give the folder that it means.")
    if out.exists() and any(out.iterdir()) and not (out / "header.json").is_file():
        raise _occupied(out)


def _occupied(out: Path) -> UserError:
    return UserError(
        f"out: {out} holds something else already; choose another folder or remove this one."
    )


def _request(
    data_set: Source, root: Path, resize: Resize, table: pd.DataFrame, origin: str | None
) -> str:
    """A hash of all that decides about the result."""
    rows = hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()
    fields = [data_set.name, str(root.resolve()), resize.size, resize.describe(), rows, origin]
    fields += data_set.inputs
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()


def _is_complete(out: Path, request: str) -> bool:
    """Whether `out` is the result of the same request; a UserError if it is anything else."""
    if not out.exists() or not any(out.iterdir()):
        return False
    if read_header(out, "out")["request"] != request:
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
        progress_bar(
            total=len(paths), initial=writer.rows_done, desc="prepare", unit="image"
        ) as bar,
        closing(read_chunks(data_set.reader, resize, chunks, workers)) as reading,
    ):
        for chunk in reading:
            yield chunk
            bar.update(chunk.rows)


def _summary(table: pd.DataFrame) -> str:
    """Such as `850 images (720 train, 130 valid) of 208 patients`."""
    counts = Counter(table["split"])
    splits = ", ".join(f"{counts[split]} {split}" for split in SPLITS if counts[split])
    return f"{len(table)} images ({splits}) of {table['patient'].nunique()} patients"


def _report(out: Path, writer: PreparedWriter) -> None:
    """Prints what was made and what was not."""
    kept, failed = writer.kept(), writer.failed()
    print(f"wrote {_summary(kept)}, {writer.size} x {writer.size} px, to {out}")
    where = f", see {out / 'failures.csv'}" if len(failed) else ""
    print(f"{len(failed)} failures{where}")
    counts = count_conditions(kept)
    print(f"health conditions:\n{format_table(counts[counts['images'] > 0])}")
    for split in ("train", "valid"):
        if not (kept["split"] == split).any():
            print(f"no image is in {split}; --valid_fraction and --seed decide about it")
