"""Reading a synthetic data set: from `cxr generate` or any other tool."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image

from cxr_lightning.data.resize import Resize, UnreadableImageError, read_grey
from cxr_lightning.data.sources.dicom_files import is_dicom, read_dicom, require_pydicom
from cxr_lightning.data.sources.files import LayoutReader
from cxr_lightning.data.sources.folder import (
    DEFAULTS,
    images_below,
    read_list,
    table_of_classes,
)
from cxr_lightning.data.sources.tables import PROBLEM, parse_numbers, shown_path
from cxr_lightning.data.vocabulary import (
    CONDITIONS,
    HealthCondition,
    find_observation,
    parse_condition,
)
from cxr_lightning.errors import UserError
from cxr_lightning.files import create_array
from cxr_lightning.progress import progress_bar
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS

MANIFEST_FORMAT = 1
MAX_UNREADABLE = 0.01
MIN_PER_CONDITION = 2
READERS = 4
"""Threads that decode; Pillow lets others run meanwhile."""

BLOCK = 1024
COLOUR_SAMPLE = 16


@dataclass(frozen=True)
class SyntheticSet:
    """A synthetic data set.

    Attributes:
        images: Raw images of the size of the real ones; a memory map.
        sha256: Of their pixels.
        table: The columns of a prepared table; what nobody stated is blank or not annotated.
        requested: Name of the condition that each image was made for; None without a manifest.
        manifest: As `cxr generate` wrote it; empty for another tool's folder.
        failures: Paths that could not be read, and why.
        notes: What was done to the images on the way, in words.
    """

    images: UInt8[np.ndarray, "n h w"]
    sha256: str
    table: pd.DataFrame
    requested: Shaped[np.ndarray, " n"] | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def patients(self) -> Shaped[np.ndarray, " n"]:
        """Patient of each image; an image of no stated patient is one of its own."""
        return self.table["patient"].astype(str).to_numpy(dtype=str)

    @property
    def product_sha256(self) -> str | None:
        """SHA-256 of the generator product that made the images; None where nobody says."""
        sha256: str | None = self.manifest.get("product", {}).get("sha256")
        return sha256

    @property
    def confirmed_by(self) -> str | None:
        """SHA-256 of the classifier that chose the images; None where none did."""
        reject: dict[str, Any] | None = self.manifest.get("reject")
        return None if reject is None else str(reject["classifier"])

    @property
    def labelled(self) -> bool:
        """Whether any observation of any image is stated."""
        labels = self.table[list(OBSERVATIONS)].to_numpy(dtype=float)
        return bool((np.isfinite(labels) & (labels != NOT_ANNOTATED)).any())

    def matches(self, condition: HealthCondition) -> Bool[np.ndarray, " n"]:
        """Images made for this condition, or, without a manifest, labelled with it."""
        if self.requested is None:
            return condition.matches(self.table)
        same = [n for n in set(self.requested) if parse_condition(str(n)).means(condition)]
        matches: Bool[np.ndarray, " n"] = np.isin(self.requested, same)
        return matches

    def conditions(self) -> list[HealthCondition]:
        """The conditions of the set, in the order of the manifest or of the observations."""
        if self.requested is None:
            found = [c for c in CONDITIONS.values() if self.matches(c).sum() >= MIN_PER_CONDITION]
            names = [c.name for c in found]
            return [c for c in found if c.name != "no_finding" or "healthy" not in names]
        return [parse_condition(str(name)) for name in dict.fromkeys(self.requested)]


def read_synthetic(place: Path, size: int, array: Path) -> SyntheticSet:
    """Reads a synthetic data set, and brings larger images to the size of the real ones.

    Args:
        place: A folder that `cxr generate` made, in any of its formats; a folder with one CSV file
            (`Path` and any of CheXpert's columns; DICOM files too); a folder of images, in
            sub-folders by class or not at all labelled; or a CSV file whose paths start from its
            folder.
        size: Side of the real images, in pixels. Larger ones are resized as `cxr prepare` does.
        array: File that the images are written to; memory does not grow with their number.

    Raises:
        UserError: If nothing is there, an image is smaller than `size`, or more than 1 % of the
            images cannot be read.
    """
    if not place.exists():
        raise UserError(f"synthetic: no folder {place}; make it with 'cxr generate --out DIR'.")
    root = place if place.is_dir() else place.parent
    manifest = read_manifest(place)
    try:
        table = _read_table(place)
    except UserError as error:
        raise UserError(_own(str(error))) from error
    failures = dict(zip(*_columns(table[table[PROBLEM] != ""]), strict=True))
    table = table[table[PROBLEM] == ""].drop(columns=PROBLEM).reset_index(drop=True)
    requested = _requested(manifest, table) if manifest else None
    images, kept, unread, notes = _read_images(root, [*table["Path"]], size, array)
    failures |= unread
    if len(failures) > MAX_UNREADABLE * (len(table) + len(failures) - len(unread)):
        path, reason = next(iter(failures.items()))
        raise UserError(
            f"synthetic: {len(failures)} images in {place} cannot be read or used (first: {path}: "
            f"{reason}); make the set again."
        )
    return SyntheticSet(
        images=images,
        sha256=_sha256(images),
        table=table.iloc[kept].reset_index(drop=True),
        requested=None if requested is None else requested[kept],
        manifest=manifest,
        failures=failures,
        notes=notes,
    )


def _own(message: str) -> str:
    """A message of the data sources, about the argument `synthetic`."""
    for name in ("synthetic: ", "root: ", "csv: "):
        message = message.removeprefix(name)
    return "synthetic: " + message.replace(" with --csv FILE", " as --synthetic FILE")


def _columns(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    return [*table["Path"].astype(str)], [*table[PROBLEM].astype(str)]


def read_manifest(place: Path) -> dict[str, Any]:
    """What `cxr generate` wrote of a set; empty for another tool's.

    Raises:
        UserError: If it cannot be read, or is of something else.
    """
    file = place / "manifest.json"
    if not file.is_file():
        return {}
    try:
        manifest: dict[str, Any] = json.loads(file.read_text())
        known = manifest["format"] == MANIFEST_FORMAT and manifest["kind"] == "synthetic"
        complete = known and all({"path", "condition"} <= set(i) for i in manifest["images"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"synthetic: {file} cannot be read ({error!r}); make it again.") from error
    if not complete:
        raise UserError(
            f"synthetic: {file} is no manifest of a synthetic data set in format "
            f"{MANIFEST_FORMAT}; give a folder made by 'cxr generate', or one with train.csv alone."
        )
    return manifest


def _read_table(place: Path) -> pd.DataFrame:
    """The table of a folder or CSV file; no label where nothing states one."""
    if place.is_file():
        return read_list(place, {})
    files = [place / "train.csv"] if (place / "train.csv").is_file() else [*place.glob("*.csv")]
    if len(files) > 1:
        listed = ", ".join(sorted(file.name for file in files))
        raise UserError(
            f"synthetic: {place} holds several CSV files ({listed}); give one of them instead."
        )
    if files:
        return read_list(files[0], {})
    paths = [path.relative_to(place) for path in images_below(place)]
    if not paths:
        raise UserError(f"synthetic: {place} holds no image; make some with 'cxr generate'.")
    if any(find_observation(part) for path in paths for part in path.parts[:-1]):
        return table_of_classes(place, {})
    names, problems = zip(*map(shown_path, paths), strict=True)
    stated = {"Age": "", "AP/PA": "", "study": "study1", "split": "", **DEFAULTS}
    return parse_numbers(
        pd.DataFrame({"Path": names, "patient": names, PROBLEM: problems}).assign(**stated)
    )


def _requested(manifest: dict[str, Any], table: pd.DataFrame) -> Shaped[np.ndarray, " n"] | None:
    """Condition of each row from the manifest, whose paths start from the folder.

    None where images were asked for by prompts or drawn from a table: their labels say it.
    """
    conditions = {image["path"]: image["condition"] for image in manifest["images"]}
    paths = [path.split("/", 1)[-1] if path not in conditions else path for path in table["Path"]]
    missing = [path for path in paths if path not in conditions]
    if missing or len(paths) != len(conditions):
        first = missing[0] if missing else next(iter(conditions.keys() - set(paths)), paths[0])
        raise UserError(
            f"synthetic: train.csv and manifest.json do not list the same images (first: {first}); "
            "make the set again."
        )
    if None in conditions.values():
        return None
    return np.array([conditions[path] for path in paths])


def _read_images(
    root: Path, paths: list[str], size: int, array: Path
) -> tuple[UInt8[np.ndarray, "k size size"], list[int], dict[str, str], list[str]]:
    """The images that can be read, which they are, why others cannot, and notes."""
    reader, read = LayoutReader((root,)), partial(_read_image, root, size)
    if any(map(is_dicom, paths)):
        require_pydicom("synthetic")
    images = create_array(array, np.uint8, (max(len(paths), 1), size, size))
    kept: list[int] = []
    failures: dict[str, str] = {}
    resized = 0
    bar = progress_bar(total=len(paths), desc="read synthetic images")
    with ThreadPoolExecutor(READERS) as pool, bar:
        for start in range(0, len(paths), BLOCK):
            found = pool.map(read, paths[start : start + BLOCK])
            for index, (pixels, changed, reason) in enumerate(found, start):
                if pixels is None:
                    failures[paths[index]] = reason
                    continue
                images[len(kept)] = pixels
                resized += changed
                kept.append(index)
            bar.update(len(paths[start : start + BLOCK]))
    notes = [f"{resized} of {len(kept)} images resized to {size} pixels"] if resized else []
    coloured = sum(_is_coloured(reader, paths[i]) for i in kept[:COLOUR_SAMPLE])
    if coloured:
        notes.append("colour images turned to grey (luma), as 'cxr prepare' does")
    return images[: len(kept)], kept, failures, notes


def _read_image(
    root: Path, size: int, path: str
) -> tuple[UInt8[np.ndarray, "size size"] | None, bool, str]:
    """An image, whether its size was changed, and why it cannot be read."""
    try:
        file = LayoutReader((root,)).locate(path)
        decode = read_dicom if is_dicom(file) else read_grey
        pixels, width, height = decode(file, Resize(size))
    except UnreadableImageError as error:
        return None, False, str(error)
    if max(width, height) < size:
        raise UserError(
            f"synthetic: {path} has {width} x {height} pixels but the real images have {size} x "
            f"{size}; prepare the real images with --size {max(width, height)}, since enlarged "
            "images would be judged by their blur."
        )
    return pixels, (width, height) != (size, size), ""


def _is_coloured(reader: LayoutReader, path: str) -> bool:
    """Whether the channels of a readable image differ."""
    if is_dicom(path):
        return False
    with Image.open(reader.locate(path)) as image:
        if image.mode not in ("RGB", "RGBA", "P", "CMYK", "YCbCr"):
            return False
        pixels = np.asarray(image.convert("RGB"), dtype=np.int16)
    return bool(np.ptp(pixels, axis=2).max() > COLOUR_TOLERANCE)


COLOUR_TOLERANCE = 8
"""Grey levels between channels that JPEG coding of a grey image may leave."""


def _sha256(images: UInt8[np.ndarray, "n h w"]) -> str:
    digest = hashlib.sha256(str(images.shape).encode())
    for block in _blocks(images):
        digest.update(block.tobytes())
    return digest.hexdigest()


def _blocks(images: UInt8[np.ndarray, "n h w"]) -> Iterator[UInt8[np.ndarray, "b h w"]]:
    for start in range(0, len(images), BLOCK):
        yield images[start : start + BLOCK]
