"""Synthetic radiographs as a notebook wants them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from cxr_lightning.data.prompt import Prompt
from cxr_lightning.data.writers.png import png_bytes, synthetic_note
from cxr_lightning.types import Condition

COLUMNS = 8
"""Of the grid that a notebook shows."""

ROWS = 8
"""Of the grid that a notebook shows, at most."""


@dataclass(frozen=True, eq=False, repr=False)
class SyntheticImages(Sequence[Image.Image]):
    """Generated radiographs: a sequence of grey Pillow images, which a notebook shows as a grid.

    Attributes:
        pixels: All of them, raw: 0 to 255, bright = dense.
        condition: What each image was asked to show.
        numbers: Number of each image; with the seed it decides about the image's noise.
        seed: Seed of all of them.
        prompt: The prompt as it was understood; None where a condition was asked for.
        product_sha256: Hash of the product that made them; None of networks in training.
    """

    pixels: UInt8[np.ndarray, "n h w"]
    condition: Condition
    numbers: tuple[int, ...]
    seed: int
    prompt: Prompt | None = None
    product_sha256: str | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...

    @overload
    def __getitem__(self, index: slice) -> list[Image.Image]: ...

    def __getitem__(self, index: int | slice) -> Image.Image | list[Image.Image]:
        if isinstance(index, slice):
            return [Image.fromarray(pixels) for pixels in self.pixels[index]]
        return Image.fromarray(self.pixels[index])

    def grid(self, columns: int = COLUMNS, rows: int | None = None) -> Image.Image:
        """Images side by side, row by row; all, or the first `rows` rows of them."""
        from cxr_lightning.data.sheet import contact_sheet  # torchvision takes a while

        shown = None if rows is None else rows * columns
        images = torch.from_numpy(self.pixels[:shown])[:, None]
        return Image.fromarray(contact_sheet(images, columns))

    def save(self, folder: Path | str) -> list[Path]:
        """Writes PNG files that say in their metadata that they are synthetic.

        Args:
            folder: Where they go; made if absent. Files of the same names are replaced.

        Returns:
            Their paths, `00000.png` for image 0 and so on.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        files = [Path(folder) / f"{number:05d}.png" for number in self.numbers]
        for image, file in zip(self, files, strict=True):
            image.save(file, pnginfo=synthetic_note(self.product_sha256))
        return files

    def __repr__(self) -> str:
        height, width = self.pixels.shape[1:]
        made = f"{len(self)} synthetic radiographs of {width} x {height} pixels, seed {self.seed}"
        return made if self.prompt is None else f"{made}\n{self.prompt.describe()}"

    def _repr_png_(self) -> bytes:
        """What IPython shows."""
        return png_bytes(np.asarray(self.grid(rows=ROWS)), synthetic_note(self.product_sha256))
