"""Image files by path: what worker processes run; light to import."""

import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cxr_lightning.data.resize import Reading, Resize, UnreadableImageError, read_grey

RELATIVE = r"^(?:.*/)?((?:train|valid|test)/.+)$"
"""A path in CheXpert's layout; the group begins with the split."""


@dataclass(frozen=True)
class FolderReader:
    """Reads images whose paths start from one of some folders.

    Attributes:
        folders: Where to look, in order.
        png: Whether the files are PNG where the paths say `.jpg`.
    """

    folders: tuple[Path, ...]
    png: bool = False

    def __call__(self, path: str, resize: Resize | None = None) -> Reading:
        """The image that `path` means; see `read_grey`."""
        if self.png and path.endswith(".jpg"):
            path = path.removesuffix(".jpg") + ".png"
        return read_grey(find_file(folder / path for folder in self.folders), resize)


@dataclass(frozen=True)
class LayoutReader:
    """Reads images in CheXpert's layout, wherever its parts lie.

    Attributes:
        folders: Where to look, in order: below each, for the path as it is, from the split on, and
            without `train/`.
    """

    folders: tuple[Path, ...]

    def __call__(self, path: str, resize: Resize | None = None) -> Reading:
        """The image that `path` means; see `read_grey`."""
        return read_grey(self.locate(path), resize)

    def locate(self, path: str) -> Path:
        """The file that `path` means.

        Raises:
            UnreadableImageError: If there is none.
        """
        relative = layout_path(path)
        tails = (relative, path, relative.removeprefix("train/"))
        return find_file(folder / tail for folder in self.folders for tail in tails)


def layout_path(path: str) -> str:
    """A path in CheXpert's layout from the split on; any other path as it is."""
    match = re.match(RELATIVE, path)
    return match.group(1) if match else path


def find_file(candidates: Iterable[Path]) -> Path:
    """The first of some paths that is a regular file: no folder, pipe or device.

    Raises:
        UnreadableImageError: If none is, or a path cannot be one (too long, a loop of links).
    """
    for file in candidates:
        try:
            mode = file.stat().st_mode
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:  # ValueError: a NUL character
            raise UnreadableImageError(f"{type(error).__name__}: {error}") from error
        if stat.S_ISREG(mode):
            return file
    raise UnreadableImageError("no such file")
