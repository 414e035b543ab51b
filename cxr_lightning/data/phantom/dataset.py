"""Write phantoms as a data set in CheXpert's layout, with reports and the full truth beside it."""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from cxr_lightning.data.phantom.anatomy import (
    Acquisition,
    Anatomy,
    heart_to_thorax,
    sample_acquisition,
    sample_anatomy,
)
from cxr_lightning.data.phantom.findings import (
    OBSERVATIONS,
    Findings,
    labels,
    report,
    sample_findings,
    truth,
)
from cxr_lightning.data.phantom.radiograph import MIN_SIZE, render

Row = dict[str, str | float]

COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *OBSERVATIONS)
"""The 19 columns of CheXpert's train.csv and valid.csv, in order."""
TRUTH_COLUMNS = (
    "view",
    "effusion_side",
    "effusion_size",
    "pneumonia_side",
    "pneumonia_lobe",
    "pneumothorax_side",
    "pneumothorax_size",
    "cardiomegaly",
    "cardiothoracic_ratio",
    "devices",
)
"""The columns of truth.csv after Path."""
FIRST_VALID_PATIENT = 64541
"""Number of the first patient of CheXpert's valid set; train patients are numbered below it."""
MAX_STUDIES = 3
JPEG_QUALITY = 92


def write_phantom(
    root: Path,
    *,
    patients: int = 400,
    valid_patients: int | None = None,
    size: int = 128,
    seed: int = 0,
    workers: int = 1,
    progress: bool = True,
) -> None:
    """Write a phantom data set in the layout of CheXpert-v1.0-small.

    Besides `train/`, `valid/`, `train.csv` and `valid.csv` there are `reports.csv` (Path, report)
    and `truth.csv` (Path and what is really shown). Train labels have CheXpert's 1 / 0 / -1 /
    blank, valid labels are the truth as 0 / 1. Each image depends on (seed, patient, study) alone.
    All is written to a temporary folder beside `root`, which is renamed at the end.

    Args:
        root: Folder to make; it must not exist, or be empty.
        patients: Patients in the train set, 2 to 64540, with 1 to 3 studies each.
        valid_patients: Further patients in the valid set; None: an eighth, at least 2.
        size: Side of the images in pixels, at least 16.
        seed: Seed of the population, at least 0.
        workers: Processes that render.
        progress: Print a line of progress to stderr.

    Raises:
        ValueError: If a number is out of range.
        FileExistsError: If `root` exists and is not an empty folder.
    """
    root = Path(root).resolve()
    valid_patients = max(2, patients // 8) if valid_patients is None else valid_patients
    _check_numbers(patients, valid_patients, size, seed, workers)
    _check_root(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        numbers = [*range(1, patients + 1)]
        numbers += range(FIRST_VALID_PATIENT, FIRST_VALID_PATIENT + valid_patients)
        write = partial(_write_patient, staging, root.name, size, seed)
        rows = _collect(_map(write, numbers, workers), len(numbers), progress)
        _write_tables(staging, pd.DataFrame(rows))
        staging.chmod(0o755)
        staging.replace(root)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_numbers(patients: int, valid_patients: int, size: int, seed: int, workers: int) -> None:
    most = FIRST_VALID_PATIENT - 1
    bounds = {
        "patients": (patients, 2, most),
        "valid_patients": (valid_patients, 1, most),
        "size": (size, MIN_SIZE, 4096),
        "seed": (seed, 0, 2**63 - 1),
        "workers": (workers, 1, 1024),
    }
    for name, (value, low, high) in bounds.items():
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}; use a number from {low} to {high}")


def _check_root(root: Path) -> None:
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise FileExistsError(
            f"root is {root}, which exists and is not an empty folder; remove it or name another"
        )


def _map(
    write: Callable[[int], list[Row]], numbers: list[int], workers: int
) -> Iterator[list[Row]]:
    """Map in order, in this process or in `workers` others."""
    if workers == 1:
        yield from map(write, numbers)
        return
    # spawn: forking a process whose libraries run threads can hang
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(write, numbers, chunksize=4)


def _collect(parts: Iterator[list[Row]], total: int, progress: bool) -> list[Row]:
    rows: list[Row] = []
    for done, part in enumerate(parts, 1):
        rows += part
        if progress and (done % 20 == 0 or done == total):
            end = "\n" if done == total else ""
            print(f"\rphantom: {done}/{total} patients", end=end, file=sys.stderr, flush=True)
    return rows


def _write_patient(folder: Path, name: str, size: int, seed: int, number: int) -> list[Row]:
    """Write all studies of one patient into `folder`; their rows for all tables."""
    split = "train" if number < FIRST_VALID_PATIENT else "valid"
    rng = np.random.default_rng([seed, number])
    patient = sample_anatomy(rng)
    rows: list[Row] = []
    for study in range(1, int(rng.integers(1, MAX_STUDIES + 1)) + 1):
        stream = np.random.default_rng([seed, number, study])
        acquisition = sample_acquisition(stream)
        findings = sample_findings(stream, acquisition.view == "AP")
        observed = labels(findings, stream) if split == "train" else truth(findings)
        path = f"{split}/patient{number:05d}/study{study}/view1_frontal.jpg"
        image = render(patient, findings, size=size, rng=stream, acquisition=acquisition)
        (folder / path).parent.mkdir(parents=True)
        Image.fromarray(image).save(folder / path, quality=JPEG_QUALITY)
        header: Row = {"split": split, "Path": f"{name}/{path}", "Sex": patient.sex}
        header |= {"Age": patient.age, "Frontal/Lateral": "Frontal", "AP/PA": acquisition.view}
        shown = _truth_row(patient, acquisition, findings)
        rows.append(header | observed | {"report": report(findings)} | shown)
    return rows


def _truth_row(patient: Anatomy, acquisition: Acquisition, findings: Findings) -> Row:
    """What the image shows, under the names of `TRUTH_COLUMNS`; empty where absent."""
    effusion, pneumonia, air = findings.effusion, findings.pneumonia, findings.pneumothorax
    ratio = heart_to_thorax(patient, acquisition, findings.cardiomegaly)
    values = (
        acquisition.view,
        effusion.side if effusion else "",
        effusion.size if effusion else "",
        pneumonia.side if pneumonia else "",
        pneumonia.lobe if pneumonia else "",
        air.side if air else "",
        air.size if air else "",
        int(findings.cardiomegaly),
        round(ratio, 4),
        "; ".join(sorted(findings.devices)),
    )
    return dict(zip(TRUTH_COLUMNS, values, strict=True))


def _write_tables(folder: Path, table: pd.DataFrame) -> None:
    for split in ("train", "valid"):
        rows = table[table["split"] == split]
        rows.to_csv(folder / f"{split}.csv", columns=list(COLUMNS), index=False)
    table.to_csv(folder / "reports.csv", columns=["Path", "report"], index=False)
    table.to_csv(folder / "truth.csv", columns=["Path", *TRUTH_COLUMNS], index=False)
