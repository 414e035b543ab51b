"""The folder of an unfinished evaluation: finished axes are kept, so that a killed run goes on."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cxr_lightning.artifacts import product_sha256
from cxr_lightning.evaluation.records import AxisResult
from cxr_lightning.files import hold, replace_folder, write_whole

GRID_COLUMNS = 4
KEPT = ("grids", "pairs", "classifier", "metrics.json")
"""What an evaluation consists of; the rest of the folder goes when it is finished."""


class Work:
    """Results of axes on disk, for one request.

    Args:
        folder: Beside the evaluation's own folder.

    Attributes:
        lock: Keeps others out; to be closed.

    Raises:
        UserError: If another process is at work in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = hold(
            folder / "lock",
            f"out: another 'cxr evaluate' is at work in {folder}; wait for it, or give another "
            "folder.",
        )
        for name in ("axes", "grids", "pairs"):
            (folder / name).mkdir(exist_ok=True)

    def accept(self, request: dict[str, Any]) -> None:
        """Keeps what is there if it belongs to the same request, and else begins anew."""
        file = self.folder / "request.json"
        text = json.dumps(request, indent=1, sort_keys=True)
        if file.is_file() and file.read_text() == text:
            return
        for name in ("axes", "grids", "pairs"):
            shutil.rmtree(self.folder / name)
            (self.folder / name).mkdir()
        file.write_text(text)

    def discard(self) -> None:
        """Removes the folder, unless an earlier run finished something in it."""
        kept = (self.folder / name for name in ("axes", "classifier", "utility"))
        if not any(folder.is_dir() and any(folder.iterdir()) for folder in kept):
            shutil.rmtree(self.folder)

    def axis(self, name: str) -> dict[str, Any] | None:
        """What a finished axis brought, as `save_axis` wrote it; None if it is not finished."""
        file = self.folder / "axes" / f"{name}.json"
        if not file.is_file():
            return None
        content: dict[str, Any] = json.loads(file.read_text())
        return content

    def save_axis(self, name: str, result: AxisResult) -> dict[str, Any]:
        """Writes an axis: first its pictures, then its numbers, so that it is whole or absent."""
        for key, images in result.grids.items():
            kind = "pairs" if key.startswith("pair_") else "grids"
            self.save_grid(kind, key, images)
        content = {
            "records": [record.as_json() for record in result.records],
            "skipped": [skipped.as_json() for skipped in result.skipped],
            "curves": result.curves,
            "pairs": result.pairs,
        }
        file = self.folder / "axes" / f"{name}.json"
        write_whole(file, json.dumps(content, allow_nan=False).encode())
        return content

    def save_grid(self, kind: str, name: str, images: UInt8[np.ndarray, "k h w"]) -> None:
        """Writes images side by side as one PNG file."""
        make_grid(images).save(self.folder / kind / f"{name}.png")

    def finish(self, out: Path, metrics: dict[str, Any]) -> None:
        """Writes metrics.json and puts the folder in the place of an earlier evaluation.

        What else lies in that one, such as a report, stays. A classifier that an earlier,
        unfinished request left here does not go along.
        """
        classifier = self.folder / "classifier"
        if classifier.is_dir() and product_sha256(classifier) != metrics.get("classifier"):
            shutil.rmtree(classifier)
        text = json.dumps(metrics, indent=1, allow_nan=False)
        (self.folder / "metrics.json").write_text(text + "\n")
        passing = {path.name for path in self.folder.iterdir()} - {*KEPT}
        replace_folder(self.folder, out, keep=lambda name: name not in {*KEPT, *passing})
        for path in map(out.joinpath, passing):  # only now: a killed run would need them
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def make_grid(images: UInt8[np.ndarray, "k h w"]) -> Image.Image:
    """Images side by side, four a row, one black pixel apart."""
    count, height, width = images.shape
    columns = min(count, GRID_COLUMNS)
    rows = -(-count // columns)
    sheet = np.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1), dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        sheet[top : top + height, left : left + width] = image
    return Image.fromarray(sheet)
