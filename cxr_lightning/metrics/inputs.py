"""What an evaluation looks at: a synthetic folder, real rows of the same conditions, networks."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int, Shaped, UInt8
from PIL import Image
from tqdm import tqdm

from cxr_lightning.data.prepared import PreparedDataset
from cxr_lightning.data.vocabulary import CONDITIONS, HealthCondition, parse_condition
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.errors import UserError
from cxr_lightning.metrics.extractors import Extractor
from cxr_lightning.networks.encoder import Encoder
from cxr_lightning.types import OBSERVATIONS

RealSplit = Literal["all", "train", "valid", "test"]
MAX_UNREADABLE = 0.01


@dataclass(frozen=True)
class SyntheticSet:
    """A synthetic data set, read into memory.

    Attributes:
        images: Raw images.
        patients: Patient of each image, from its path.
        requested: Name of the condition that each image was made for; None without a manifest.
        table: The rows of `train.csv`; empty with a manifest.
        manifest: As `cxr generate` wrote it; empty for another tool's folder.
        failures: Paths that could not be read, and why.
    """

    images: UInt8[np.ndarray, "n h w"]
    patients: Shaped[np.ndarray, " n"]
    requested: Shaped[np.ndarray, " n"] | None
    table: pd.DataFrame
    manifest: dict[str, Any]
    failures: dict[str, str]

    def matches(self, condition: HealthCondition) -> Bool[np.ndarray, " n"]:
        """Images made for this condition, or, without a manifest, labelled with it."""
        if self.requested is None:
            return condition.matches(self.table)
        matches: Bool[np.ndarray, " n"] = self.requested == condition.name
        return matches

    def conditions(self) -> list[HealthCondition]:
        """The conditions of the set, in the order of the manifest or of the observations."""
        if self.requested is None:
            found = [c for c in CONDITIONS.values() if self.matches(c).sum() >= 2]
            names = [c.name for c in found]
            return [c for c in found if c.name != "no_finding" or "healthy" not in names]
        return [parse_condition(str(name)) for name in dict.fromkeys(self.requested)]


@dataclass(frozen=True)
class EvaluationInputs:
    """All that an axis of the evaluation may use; every part is checked before.

    Attributes:
        real: The prepared data set.
        synthetic: The synthetic data set, of the same image size.
        conditions: What to evaluate.
        extractor: For the fidelity metrics.
        encoder: For the representation score, or None.
        encoder_sha256: Of the encoder product; empty without one.
        encoder_is_parent: Whether the generator was fine-tuned with this encoder.
        generator: For the representation score, or None.
        split: Split of the real images for the fidelity metrics.
        reconstructions: Held-out images a condition to reconstruct, at most.
        bootstrap: Draws of each interval; 0 = no intervals.
        batch_size: Images that a network sees at once.
        seed: Of every random choice.
        device: Where the networks run.
    """

    real: PreparedDataset
    synthetic: SyntheticSet
    conditions: list[HealthCondition]
    extractor: Extractor
    encoder: Encoder | None
    encoder_sha256: str
    encoder_is_parent: bool
    generator: Generator | None
    split: RealSplit
    reconstructions: int
    bootstrap: int
    batch_size: int
    seed: int
    device: torch.device

    def real_rows(
        self, condition: HealthCondition, split: RealSplit | None = None
    ) -> Int[np.ndarray, " n"]:
        """Rows of the prepared table that show a condition, in a split (default: `self.split`)."""
        rows = np.flatnonzero(condition.matches(self.real.table))
        return np.intersect1d(rows, self.split_rows(split or self.split))

    def split_rows(self, split: RealSplit) -> Int[np.ndarray, " n"]:
        """Rows of the prepared table in a split."""
        if split == "all":
            return np.arange(len(self.real.table))
        return np.flatnonzero(self.real.table["split"] == split)

    @property
    def real_patients(self) -> Shaped[np.ndarray, " n"]:
        """Patient of each row of the prepared table."""
        return self.real.table["patient"].astype(str).to_numpy(dtype=str)


@dataclass
class _Reading:
    """Images read so far."""

    images: list[UInt8[np.ndarray, "h w"]] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def read_synthetic(folder: Path, size: int) -> SyntheticSet:
    """Reads a synthetic data set: `cxr generate`'s, or any folder with `train.csv` and images.

    Args:
        folder: With `train.csv` (CheXpert columns, `Path` below this folder) and its PNG or JPEG
            files; with `manifest.json` where `cxr generate` made it.
        size: Side that every image must have, in pixels.

    Raises:
        UserError: If files or columns are missing, an image has another size, or more than
            1 % of the images cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"synthetic: no folder {folder}; make it with 'cxr generate --out DIR'.")
    manifest = _read_manifest(folder)
    table = pd.DataFrame() if manifest else _read_table(folder)
    paths = [i["path"] for i in manifest["images"]] if manifest else [*table["Path"].astype(str)]
    if not paths:
        raise UserError(f"synthetic: {folder} lists no image; make some with 'cxr generate'.")
    reading = _Reading()
    for index, path in enumerate(tqdm(paths, "read synthetic images", disable=None)):
        _read_image(folder, path, index, size, reading)
    if len(reading.failures) > MAX_UNREADABLE * len(paths):
        path, reason = next(iter(reading.failures.items()))
        raise UserError(
            f"synthetic: {len(reading.failures)} of {len(paths)} images in {folder} cannot be read "
            f"(first: {path}: {reason}); make the set again."
        )
    requested = np.array([i["condition"] for i in manifest["images"]]) if manifest else None
    return SyntheticSet(
        images=np.stack(reading.images),
        patients=np.array([_patient(paths[i]) for i in reading.kept]),
        requested=None if requested is None else requested[reading.kept],
        table=table.iloc[[] if manifest else reading.kept].reset_index(drop=True),
        manifest=manifest,
        failures=reading.failures,
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / "manifest.json"
    if not file.is_file():
        return {}
    try:
        manifest: dict[str, Any] = json.loads(file.read_text())
        known = manifest["format"] == 1 and manifest["kind"] == "synthetic"
        complete = known and all({"path", "condition"} <= set(i) for i in manifest["images"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"synthetic: {file} cannot be read ({error!r}); make it again.") from error
    if not complete:
        raise UserError(
            f"synthetic: {file} is no manifest of a synthetic data set in format 1; give a folder "
            "made by 'cxr generate', or one with train.csv alone."
        )
    return manifest


def _read_table(folder: Path) -> pd.DataFrame:
    file = folder / "train.csv"
    if not file.is_file():
        raise UserError(
            f"synthetic: {folder} has neither manifest.json nor train.csv; give a folder made by "
            "'cxr generate', or one in CheXpert layout."
        )
    try:
        table = pd.read_csv(file, dtype={"Path": str})
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"synthetic: {file} is no CSV file ({error}); write it again.") from error
    missing = [column for column in ("Path", *OBSERVATIONS) if column not in table]
    if missing:
        raise UserError(
            f"synthetic: {file} lacks the columns {', '.join(missing)}; write all CheXpert columns."
        )
    return table


def _read_image(folder: Path, path: str, index: int, size: int, reading: _Reading) -> None:
    file = folder / path
    if not file.is_file():
        file = folder.joinpath(*Path(path).parts[1:])
    try:
        with Image.open(file) as image:
            if image.mode not in ("L", "RGB", "RGBA", "P", "1"):
                raise ValueError(f"mode {image.mode}, not 8 bit")
            pixels = np.asarray(image.convert("L"))
    except (OSError, ValueError, SyntaxError) as error:
        reading.failures[path] = str(error).replace(str(file), path)
        return
    if pixels.shape != (size, size):
        height, width = pixels.shape
        raise UserError(
            f"synthetic: {path} has {width} x {height} pixels but the real images have {size} x "
            f"{size}; prepare the real images with --size {height} or generate at their size."
        )
    reading.images.append(pixels)
    reading.kept.append(index)


def _patient(path: str) -> str:
    """The patient folder of a CheXpert path; any other path stands for itself."""
    found = re.search(r"(?:^|/)(patient[^/]+)/", path)
    return found[1] if found else path
