"""Several prepared data sets as one, if they hold different people."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from cxr_lightning.data.description import find_near_constant
from cxr_lightning.data.prepared import EXTENT, PreparedDataset, hash_image, open_prepared
from cxr_lightning.data.resize import Reading, Resize, UnreadableImageError
from cxr_lightning.data.sources.base import Source, arrange
from cxr_lightning.data.sources.tables import PROBLEM
from cxr_lightning.errors import UserError


class MixtureSource(Source):
    """The rows of several prepared data sets, one set after the other.

    Paths, patients and studies get the name of their part in front; labels, splits and what was not
    annotated stay as they are. A model trained on a mixture can tell the part instead of the
    disease.

    Args:
        root: Folder whose sub-folders are prepared data sets.
        parts: Names of these sub-folders; default: all that are prepared data sets.
        resize: How images must have been prepared.
        out: Folder that the mixture goes to, which is no part.

    Raises:
        UserError: If there are fewer than two parts, they were prepared in different ways, or hold
            the same people as far as that is known: RSNA's images are NIH's, CheXpert Plus has
            CheXpert's, and two parts with an image of the same pixels overlap whatever their names.
            Parts whose origin is not stated are named, since nothing is known of them.
    """

    name: ClassVar[str] = "mixture"
    parallel: ClassVar[bool] = False  # a copy from one array to another

    def __init__(
        self, root: Path, parts: Sequence[str] | None, resize: Resize, out: Path | None = None
    ) -> None:
        """Opens the parts and compares them."""
        names = _find_parts(root, out) if parts is None else list(dict.fromkeys(parts))
        if len(names) < 2:
            raise UserError(
                f"parts: {root} with {', '.join(names) or 'no prepared data set'} is no mixture; "
                "name two or more of its sub-folders."
            )
        self.parts = {name: open_prepared(root / name, "parts") for name in names}
        for part in self.parts.values():
            _require_resize(part, resize)
        _refuse_common_origin(self.parts)
        _refuse_common_images(self.parts)
        unstated = [name for name, part in self.parts.items() if not _origins(part)]
        if unstated:
            print(
                f"origin unknown: {', '.join(unstated)}; make sure that no patient is in two parts "
                "(cxr prepare --origin states where images are from)."
            )
        self.origins = tuple(dict.fromkeys(o for p in self.parts.values() for o in _origins(p)))
        self.inputs = tuple(i for p in self.parts.values() for i in _inputs(p))
        self.reader = PreparedReader(self.parts)

    def table(self) -> pd.DataFrame:
        """See the base class."""
        tables = []
        for name, part in self.parts.items():
            own = {c: f"{name}/" + part.table[c] for c in ("Path", "patient", "study")}
            tables.append(part.table.drop(columns=list(EXTENT)).assign(**own, **{PROBLEM: ""}))
        table = pd.concat(tables, ignore_index=True)
        if "report" in table.columns:
            table["report"] = table["report"].fillna("")
        return arrange(table)


class PreparedReader:
    """Gives images of prepared data sets by `<part>/<Path>`, as they were prepared."""

    def __init__(self, parts: Mapping[str, PreparedDataset]) -> None:
        self.parts = parts
        self.extents = {name: part.table[list(EXTENT)].to_numpy() for name, part in parts.items()}
        self.rows = {
            f"{name}/{path}": (name, row)
            for name, part in parts.items()
            for row, path in enumerate(part.table["Path"])
        }

    def __call__(self, path: str, resize: Resize | None = None) -> Reading:
        """The image at `path`, which was resized before."""
        if path not in self.rows:
            raise UnreadableImageError("no such image")
        name, row = self.rows[path]
        width, height = self.extents[name][row].tolist()
        return Reading(np.array(self.parts[name].images[row]), width, height)


def _find_parts(root: Path, out: Path | None) -> list[str]:
    if not root.is_dir():
        raise UserError(f"root: there is no folder {root}; give the folder of the prepared sets.")
    folders = (file.parent for file in root.glob("*/header.json"))
    return sorted(f.name for f in folders if out is None or f.resolve() != out.resolve())


def _require_resize(part: PreparedDataset, resize: Resize) -> None:
    if part.size != resize.size or part.header["resize"] != resize.describe():
        raise UserError(
            f"parts: {part.root} was prepared with --size {part.size} and {part.header['resize']}, "
            f"not --size {resize.size} and {resize.describe()}; prepare it again in that way."
        )


def _origins(part: PreparedDataset) -> list[str]:
    return list(part.header["origins"])


def _inputs(part: PreparedDataset) -> tuple[str, str]:
    return part.sha256, part.labels_sha256


def _refuse_common_origin(parts: Mapping[str, PreparedDataset]) -> None:
    """Raises a UserError if two parts were taken from the same collection."""
    seen: dict[str, str] = {}
    for name, part in parts.items():
        for origin in _origins(part):
            if origin in seen:
                raise UserError(
                    f"parts: {seen[origin]} and {name} both hold images of {origin}, so the same "
                    "patients may be in two splits; leave one of them out."
                )
            seen[origin] = name


def _refuse_common_images(parts: Mapping[str, PreparedDataset]) -> None:
    """Raises a UserError if two parts have an image of the same pixels, a blank one aside."""
    seen: dict[bytes, tuple[str, int]] = {}
    for name, part in parts.items():
        blank = {*find_near_constant(part.images).tolist()}
        own = {
            hash_image(image): (name, row)
            for row, image in enumerate(part.images)
            if row not in blank
        }
        common = own.keys() & seen.keys()
        if common:
            (other, first), (_, second) = seen[min(common)], own[min(common)]
            raise UserError(
                f"parts: {len(common)} images are both in {other} and in {name}, such as "
                f"{parts[other].table['Path'].iloc[first]} and {part.table['Path'].iloc[second]}; "
                "leave one of the parts out."
            )
        seen |= own
