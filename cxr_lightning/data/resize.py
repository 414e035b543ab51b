"""One image file to one grey square: the only change of size before training.

Grey: luma (ITU-R 601) of colour images; transparent pixels lie on black; 16-bit values are divided
by 257, so that the full range of the type stays the full range (no stretch to the image's own
extremes). The EXIF orientation is honoured, as every viewer does. Size: the aspect ratio is kept,
and the image is scaled with Pillow's antialiased bicubic filter (the choice of clean-fid, Parmar et
al. 2022, arXiv 2104.11222), in 8 bits, then padded with black (or cropped) to a centred square.
JPEG files are decoded at a reduced DCT scale (1/2, 1/4, 1/8) where that is still no smaller than
the result.
"""

import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin
from PIL.JpegImagePlugin import JpegImageFile

Aspect = Literal["pad", "crop"]

FILTER = Image.Resampling.BICUBIC

DECODER_ERRORS = (
    OSError,  # missing, unknown format, truncated
    MemoryError,  # a length that cannot be
    SyntaxError,  # broken PNG chunk
    RuntimeError,  # of AVIF; also NotImplementedError, of DDS
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What Pillow raises for a file that it cannot decode."""


class UnreadableImageError(Exception):
    """An image that cannot be read; the message is the reason that `failures.csv` states."""


class Reading(NamedTuple):
    """One image as it was read.

    Attributes:
        image: 8-bit grey, resized where that was asked for.
        width: Of the original as it is seen, in pixels.
        height: The same.
    """

    image: UInt8[np.ndarray, "h w"]
    width: int
    height: int


@dataclass(frozen=True)
class Resize:
    """The one resize.

    Attributes:
        size: Side of the square, in pixels.
        aspect: `pad`: the whole image, its longer side scaled to `size`, on black. `crop`: the
            central square, the shorter side scaled to `size`.
    """

    size: int
    aspect: Aspect = "pad"

    def describe(self) -> dict[str, Any]:
        """What the header of a prepared data set states."""
        return {
            "filter": FILTER.name.lower(),
            "antialias": True,
            "aspect": self.aspect,
            "jpeg_dct_scaling": True,
            "sixteen_bit": "value / 257",
        }

    def scaled(self, width: int | float, height: int | float) -> tuple[int, int]:
        """Width and height of the scaled image, before padding or cropping; at least 1 pixel."""
        side = max(width, height) if self.aspect == "pad" else min(width, height)
        return (
            max(1, round(width * self.size / side)),
            max(1, round(height * self.size / side)),
        )

    def __call__(self, grey: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "size size"]:
        """Scales a grey image and pads or crops it to the square."""
        return self.picture(Image.fromarray(grey))

    def picture(
        self, image: Image.Image, extent: tuple[float, float] | None = None
    ) -> UInt8[np.ndarray, "size size"]:
        """The same of a picture in mode L.

        Args:
            image: The picture.
            extent: Width and height that it covers from the left upper corner, where its last
                column and row lie partly outside; default: all.
        """
        width, height = extent or image.size
        if self.aspect == "crop":
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            box = (left, top, left + side, top + side)
            return np.asarray(image.resize((self.size, self.size), FILTER, box))
        scaled = image.resize(self.scaled(width, height), FILTER, (0, 0, width, height))
        square = Image.new("L", (self.size, self.size))
        square.paste(scaled, ((self.size - scaled.width) // 2, (self.size - scaled.height) // 2))
        return np.asarray(square)


def read_grey(file: Path, resize: Resize | None = None) -> Reading:
    """Decodes an image file to 8-bit grey and, where `resize` is given, resizes it.

    Any format that Pillow reads; of several frames, the first.

    Raises:
        UnreadableImageError: If the file is missing, empty, truncated, no image, of a type without
            a stated range of grey values, or larger than Pillow's limit against decompression
            bombs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata: the pixels decide
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                    ImageOps.exif_transpose(image, in_place=True)
                width, height = image.size
                extent = _reduce(image, resize) if resize else None
                grey = to_grey(image)
                pixels = resize.picture(grey, extent) if resize else np.asarray(grey)
    except FileNotFoundError as error:
        raise UnreadableImageError("no such file") from error
    except DECODER_ERRORS as error:
        raise UnreadableImageError(f"{type(error).__name__}: {error}") from error
    return Reading(pixels, width, height)


def _reduce(image: Image.Image, resize: Resize) -> tuple[float, float] | None:
    """Chooses a JPEG's DCT scale; the width and height that the smaller image covers, if any.

    A picture that was turned is decoded already, and has no scale to choose.
    """
    if not isinstance(image, JpegImageFile) or image.tile == []:
        return None
    drafted = image.draft("L", resize.scaled(*image.size))
    return drafted[1][2:] if drafted else None


def is_white_zero(image: Image.Image) -> bool:
    """Whether 0 is white in a TIFF of 16 bits, which Pillow leaves as it is."""
    tags = getattr(image, "tag_v2", {})
    return image.format == "TIFF" and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0


def to_grey(image: Image.Image) -> Image.Image:
    """A picture of any mode in mode L, which is 8-bit grey."""
    if image.mode == "L" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        grey = np.round(np.asarray(image) / 257).astype(np.uint8)
        return Image.fromarray(255 - grey if is_white_zero(image) else grey)
    if image.mode in ("I", "F"):
        raise UnreadableImageError(
            f"grey values of mode {image.mode} have no stated range; save it with 8 or 16 bits"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image.convert("L")
