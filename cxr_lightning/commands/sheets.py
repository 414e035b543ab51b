"""Contact sheets of drawn images, and the single images with what each is."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from cxr_lightning import __version__
from cxr_lightning.data.resize import Resize, UnreadableImageError, read_grey
from cxr_lightning.data.sheet import contact_sheet
from cxr_lightning.data.transforms import to_image, to_model
from cxr_lightning.data.writers.png import png_bytes, synthetic_note
from cxr_lightning.errors import UserError
from cxr_lightning.files import atomic_folder, write_whole

FORMAT = 1
CONTENTS = "images.json"


def check_outputs(out: Path, singles: Path | None) -> None:
    """Raises an error if a sheet cannot be written there; an existing file is never replaced.

    Args:
        out: The sheet.
        singles: Folder of the single images.

    Raises:
        UserError: If one exists or cannot be written, or the sheet is no PNG file.
    """
    if out.suffix.lower() != ".png":
        raise UserError(f"out: {out} is no PNG file; give a name that ends in .png.")
    if out == singles:
        raise UserError(f"singles: {singles} is the sheet; give another name for the folder.")
    for name, path in (("out", out), ("singles", singles)):
        if path is None:
            continue
        if path.exists():
            raise UserError(f"{name}: {path} exists already; give another name or remove it.")
        try:
            place = next(folder for folder in path.absolute().parents if folder.exists())
            tempfile.TemporaryFile(dir=place).close()
        except OSError as error:
            raise UserError(
                f"{name}: {path} cannot be written ({error.strerror}); choose another folder."
            ) from error


def read_radiographs(files: Sequence[Path], size: int) -> Float[Tensor, "n 1 h w"]:
    """Given radiographs in model range, made square as `cxr prepare` does.

    Args:
        files: Pictures of any size.
        size: Height and width in pixels.

    Raises:
        UserError: If one cannot be read.
    """
    pictures = []
    for file in files:
        try:
            pictures.append(read_grey(file, Resize(size)).image)
        except UnreadableImageError as error:
            raise UserError(
                f"images: {file} cannot be read ({error}); give a picture such as PNG or JPEG."
            ) from error
    return to_model(torch.from_numpy(np.stack(pictures)).unsqueeze(1))


def write_sheet(
    out: Path,
    singles: Path | None,
    drawn: Float[Tensor, "rows columns 1 h w"],
    tiles: Sequence[dict[str, Any]],
    request: dict[str, Any],
    originals: Sequence[Float[Tensor, "rows 1 h w"]] = (),
) -> None:
    """Writes the sheet, and the single drawn images with what each is.

    Args:
        out: The sheet; what was asked for stands in the file as text.
        singles: Folder for the single images and `images.json`; None for none.
        drawn: The drawn images, model range.
        tiles: What each of them is, row by row.
        request: What was asked for, and `product_sha256`.
        originals: Given radiographs of each row: those that stand on the left and on the right.
    """
    sha256 = request["product_sha256"]
    facts = {"format": FORMAT, "version": __version__, **request}
    if singles is not None:
        names = [f"row{tile['row']:03d}_column{tile['column']:03d}.png" for tile in tiles]
        with atomic_folder(singles) as folder:
            for name, pixels in zip(names, to_image(drawn.flatten(0, 1)).numpy(), strict=True):
                write_png(folder / name, pixels[0], synthetic_note(sha256))
            images = [{"file": name} | tile for name, tile in zip(names, tiles, strict=True)]
            text = json.dumps(facts | {"images": images}, indent=1)
            (folder / CONTENTS).write_text(text + "\n")
    beside = [original.unsqueeze(1) for original in originals]
    rows = torch.cat([*beside[:1], drawn, *beside[1:]], dim=1)
    note = synthetic_note(sha256, "partly" if originals else "yes")
    note.add_text("Request", json.dumps(facts))
    write_png(out, contact_sheet(to_image(rows.flatten(0, 1)), rows.shape[1]), note)


def write_png(path: Path, pixels: UInt8[np.ndarray, "h w"], note: PngInfo) -> None:
    """Writes a picture that is either whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, png_bytes(pixels, note))
