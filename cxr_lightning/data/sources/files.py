"""Image files by path: what worker processes run; light to import."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from cxr_lightning.data.resize import Resize, UnreadableImageError, read_grey

RELATIVE = r"^(?:.*/)?((?:train|valid|test)/.+)$"
"""A path in CheXpert's layout; the group begins with the split."""


@dataclass(frozen=True)
class FolderReader:
    """Reads images whose paths start from one folder.

    Attributes:
        root: That folder.
    """

    root: Path

    def __call__(self, path: str, resize: Resize | None = None) -> UInt8[np.ndarray, "h w"]:
        """The image at `path`; see `read_grey`."""
        if not path:
            raise UnreadableImageError("no path")
        return read_grey(self.root / path, resize)


@dataclass(frozen=True)
class LayoutReader:
    """Reads images in CheXpert's layout, wherever its parts lie.

    Attributes:
        folders: Where to look, in order: below each, for the path as it is, from the split on, and
            without `train/`.
    """

    folders: tuple[Path, ...]

    def __call__(self, path: str, resize: Resize | None = None) -> UInt8[np.ndarray, "h w"]:
        """The image that `path` means; see `read_grey`."""
        return read_grey(self.locate(path), resize)

    def locate(self, path: str) -> Path:
        """The file that `path` means.

        Raises:
            UnreadableImageError: If there is none.
        """
        match = re.match(RELATIVE, path)
        relative = match.group(1) if match else path
        for folder in self.folders:
            for tail in (relative, path, relative.removeprefix("train/")):
                file = folder / tail
                if file.is_file():
                    return file
        raise UnreadableImageError("no such file")
