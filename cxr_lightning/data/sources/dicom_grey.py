"""Grey values of DICOM pixels as they are meant to be seen.

The order of the steps is that of the standard (PS3.3 C.11): modality (rescale or table), then VOI
(table or window), then polarity. As a grey value is changed without regard to its neighbours, the
steps are worked out once for every value that the pixels can have, and looked up.

Without a VOI the full range of the stored bits becomes 0 to 255: there is no stretch to the
image's own extremes. The photometric interpretation alone states the polarity: MONOCHROME1 is
inverted once, after the window, and its Presentation LUT Shape INVERSE says the same again. Padding
values are grey values like others. Colour becomes luma. Where pixels are more than 1 % from square,
the filter of `Resize` adds rows or columns until they are.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

from cxr_lightning.data.resize import FILTER, UnreadableImageError

COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
"""Photometric interpretations that pydicom gives as RGB."""

MAX_BITS = 16
MAX_ASPECT = 4.0
SQUARE_TOLERANCE = 0.01


def text_of(elements: Any, keyword: str) -> str:
    """The value of an element as one line of text; blank if it is absent or empty."""
    value = elements.get(keyword)
    return "" if value is None else " ".join(str(value).replace("\0", " ").split())


def check_size(height: int, width: int) -> None:
    """Refuses no pixels, and more than Pillow's limit against decompression bombs.

    Raises:
        UnreadableImageError: If there are so few or so many.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if height < 1 or width < 1:
        raise UnreadableImageError(f"{width} x {height} pixels are no image")
    if limit is not None and height * width > limit:
        raise UnreadableImageError(f"{width} x {height} pixels are above the limit of {limit}")


def is_monochrome(header: Any) -> bool:
    """Whether grey values are stored.

    Raises:
        UnreadableImageError: If they are neither grey values nor colours.
    """
    photometric = str(header.PhotometricInterpretation)
    if photometric in ("MONOCHROME1", "MONOCHROME2"):
        return True
    if photometric in COLOURS:
        return False
    raise UnreadableImageError(f"pixels of type {photometric!r} are not read; save it in grey")


def grey_of_colour(header: Any, pixels: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "h w"]:
    """Luma (ITU-R 601) of 8-bit colours; pydicom has made YBR to RGB.

    Raises:
        UnreadableImageError: If they are not of 8 bits.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or header.BitsStored != 8:
        raise UnreadableImageError(f"colours of {header.BitsStored} bits, where 8 are read")
    return np.asarray(Image.fromarray(pixels).convert("L"))


def grey_of_monochrome(header: Any, pixels: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "h w"]:
    """Grey values as they are meant to be seen, bright = dense in a radiograph.

    Raises:
        UnreadableImageError: If the header gives them no meaning.
    """
    if pixels.ndim != 2 or pixels.dtype.kind not in "iu":
        raise UnreadableImageError(f"{pixels.ndim} axes of {pixels.dtype} are no grey image")
    low, high = _stored_range(header)
    shown = np.round(255.0 * _shown(header, low, high)).astype(np.uint8)
    if header.PhotometricInterpretation == "MONOCHROME1":
        shown = 255 - shown
    return shown[np.clip(pixels.astype(np.int32), low, high) - low]


def _stored_range(header: Any) -> tuple[int, int]:
    """The lowest and the highest value that the stored bits can have."""
    bits, signed = int(header.BitsStored), int(header.PixelRepresentation)
    if not 1 <= bits <= min(MAX_BITS, int(header.BitsAllocated)) or signed not in (0, 1):
        raise UnreadableImageError(
            f"{bits} of {header.BitsAllocated} bits are no grey values (1 to {MAX_BITS} are read)"
        )
    if int(header.get("HighBit", bits - 1)) != bits - 1:
        raise UnreadableImageError(f"High Bit {header.HighBit} does not belong to {bits} bits")
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def _shown(header: Any, low: int, high: int) -> Float[np.ndarray, " values"]:
    """How bright each stored value is to be shown, in [0, 1], before the polarity."""
    values, bottom, top = _apply_modality(header, np.arange(low, high + 1, dtype=np.float64))
    if header.get("VOILUTSequence"):
        looked_up, most = _look_up(values, header.VOILUTSequence[0])
        return looked_up / most
    if header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
        function = text_of(header, "VOILUTFunction").upper() or "LINEAR"
        center, width = _first(header, "WindowCenter"), _first(header, "WindowWidth")
        return window(values, center, width, function)
    return (values - bottom) / (top - bottom)


def _apply_modality(
    header: Any, stored: Float[np.ndarray, " values"]
) -> tuple[Float[np.ndarray, " values"], float, float]:
    """Values after the modality table or rescale, and their full range (PS3.3 C.11.1)."""
    if header.get("ModalityLUTSequence"):
        values, most = _look_up(stored, header.ModalityLUTSequence[0])
        return values, 0.0, most
    slope, intercept = _first(header, "RescaleSlope", 1.0), _first(header, "RescaleIntercept", 0.0)
    values = stored * slope + intercept
    bottom, top = float(values.min()), float(values.max())
    if not bottom < top < float("inf"):
        raise UnreadableImageError(f"a rescale by {slope:g} and {intercept:g} gives one grey value")
    return values, bottom, top


def _look_up(
    values: Float[np.ndarray, " values"], item: Any
) -> tuple[Float[np.ndarray, " values"], float]:
    """Values through a table of PS3.3 C.11.1.1 or C.11.2.1.1, and the most that it can give.

    pydicom's `apply_voi_lut` is not used: where entries have 8 bits, it cuts the indices to 8 bits.
    """
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count = count or 2**16
    table = item.LUTData
    if isinstance(table, bytes):
        order = "<" if item.original_encoding[1] else ">"
        table = np.frombuffer(table[: len(table) // 2 * 2], dtype=f"{order}u2").astype("<u2")
        # Entries of 8 bits lie two in a word, or one; the length tells which.
        table = table.view("u1") if bits <= 8 and len(table) < count else table
    table = np.atleast_1d(np.asarray(table))
    if not 1 <= bits <= MAX_BITS or len(table) < count or table.dtype.kind not in "iu":
        raise UnreadableImageError(f"a table of {len(table)} entries states {count} of {bits} bits")
    most = 2**bits - 1
    index = np.clip(np.round(values) - first, 0, count - 1).astype(np.int64)
    return np.clip(table[index].astype(np.float64), 0, most), float(most)


def window(
    values: Float[np.ndarray, " values"], center: float, width: float, function: str = "LINEAR"
) -> Float[np.ndarray, " values"]:
    """Brightness in [0, 1] through a window (PS3.3 C.11.2.1.2.1 and C.11.2.1.3).

    Raises:
        UnreadableImageError: If there is no such function, or no such window.
    """
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise UnreadableImageError(f"VOI LUT Function {function!r} is unknown")
    if width <= 0 or (function == "LINEAR" and width < 1):
        raise UnreadableImageError(f"a window of the width {width:g} is none")
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return 1.0 / (1.0 + np.exp(-4.0 * (values - center) / width))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1.0
    if width == 0:
        return (values > center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0.0, 1.0)


def _first(header: Any, keyword: str, default: float | None = None) -> float:
    """The first number of an element."""
    value = header.get(keyword)
    if value is None and default is not None:
        return default
    number = float(np.ravel(np.asarray(value, dtype=np.float64))[0])
    if not np.isfinite(number):
        raise UnreadableImageError(f"{keyword} is {number}")
    return number


def square(grey: UInt8[np.ndarray, "h w"], header: Any) -> UInt8[np.ndarray, "h2 w2"]:
    """The image with square pixels: the side along which they are longer gets more of them.

    Raises:
        UnreadableImageError: If they are far from square, or would be too many.
    """
    aspect = _pixel_aspect(header)
    if abs(aspect - 1.0) <= SQUARE_TOLERANCE:
        return grey
    if not 1.0 / MAX_ASPECT <= aspect <= MAX_ASPECT:
        raise UnreadableImageError(f"pixels that are {aspect:g} times as high as wide")
    height, width = grey.shape
    height, width = round(height * max(1.0, aspect)), round(width * max(1.0, 1.0 / aspect))
    check_size(height, width)
    return np.asarray(Image.fromarray(grey).resize((width, height), FILTER))


def _pixel_aspect(header: Any) -> float:
    """Height of a pixel by its width; 1 where the header does not state both."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        if keyword in header and header[keyword].VM == 2:
            high, wide = (float(number) for number in header[keyword].value)
            if high > 0 and wide > 0:
                return high / wide
    return 1.0
