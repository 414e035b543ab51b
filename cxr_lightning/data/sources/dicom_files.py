"""DICOM files: one file to one grey square, and the few facts of its header.

Worker processes run this module; it is free of torch and pandas, and imports pydicom where it is
needed. The order of the steps is that of the standard (PS3.3 C.11): modality (rescale or table),
then VOI (table or window), then polarity. As a grey value is changed without regard to its
neighbours, the steps are worked out once for every value that the pixels can have, and looked up.

Without a VOI the full range of the stored bits becomes 0 to 255: there is no stretch to the
image's own extremes. The photometric interpretation alone states the polarity: MONOCHROME1 is
inverted once, after the window, and its Presentation LUT Shape INVERSE says the same again. Padding
values are grey values like others. Colour becomes luma; of several frames the first is read. Where
pixels are more than 1 % from square, the filter of `Resize` adds rows or columns until they are.
"""

import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

from cxr_lightning.data.resize import FILTER, Reading, Resize, UnreadableImageError
from cxr_lightning.data.sources.files import find_file, layout_path
from cxr_lightning.errors import UserError

SUFFIXES = ("", ".dcm", ".dicom")
"""What a path in a list may lack."""

DICOM_SUFFIXES = {".dcm", ".dicom", ".dcim"}

FRONTAL_POSITIONS = ("AP", "PA")
LATERAL_POSITIONS = ("LL", "RL", "LAT", "LLAT", "RLAT")
"""Values of View Position; those with the word LATERAL are lateral as well."""

SEXES = {"M": "Male", "F": "Female"}

DAYS = {"Y": 365.25, "M": 365.25 / 12, "W": 7.0, "D": 1.0}
MAX_AGE = 120.0
"""Older is a mistake, and unknown: such ages (up to 155 years) stand in headers of NIH's images."""

COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
"""Photometric interpretations that pydicom gives as RGB."""

JP2_BEGINNING = b"\0\0\0\x0cjP  "

MAX_BITS = 16
MAX_ASPECT = 4.0
SQUARE_TOLERANCE = 0.01

DAMAGE = (
    OSError,
    ArithmeticError,  # numbers as text: decimal.InvalidOperation, OverflowError
    AttributeError,  # an element is missing
    EOFError,
    LookupError,
    MemoryError,  # a length that cannot be
    RuntimeError,  # decoders; also NotImplementedError
    TypeError,  # an element of another kind
    ValueError,
    struct.error,
)
"""What pydicom, Pillow and numpy raise for damaged files, besides pydicom's own two exceptions:
pydicom checks little of what it reads, so that damage shows as almost any error."""


class Header(NamedTuple):
    """What the header says of patient and view, in the terms of a prepared table.

    Attributes:
        patient: Patient ID, or blank.
        study: Study Instance UID, or blank.
        sex: Male, Female or Unknown.
        age: In years; NaN where it is not stated or above `MAX_AGE`.
        view: Frontal, Lateral, or blank where View Position says neither.
        projection: AP, PA, or blank.
    """

    patient: str = ""
    study: str = ""
    sex: str = "Unknown"
    age: float = float("nan")
    view: str = ""
    projection: str = ""


@dataclass(frozen=True)
class DicomReader:
    """Reads DICOM files whose paths start from one folder, with or without their suffix.

    A path in CheXpert's layout may begin with the name of that folder, or any other.

    Attributes:
        root: That folder.
    """

    root: Path

    def __call__(self, path: str, resize: Resize | None = None) -> Reading:
        """The image at `path`; see `read_dicom`."""
        return read_dicom(self.locate(path), resize)

    def header(self, path: str) -> Header:
        """The header at `path`; see `read_header`."""
        return read_header(self.locate(path))

    def locate(self, path: str) -> Path:
        """The file that `path` means; see `find_file`."""
        tails = dict.fromkeys((path, layout_path(path)))
        return find_file(self.root / f"{tail}{suffix}" for tail in tails for suffix in SUFFIXES)


def is_dicom(path: str | Path) -> bool:
    """Whether the name is that of a DICOM file."""
    return Path(path).suffix.lower() in DICOM_SUFFIXES


def require_pydicom(argument: str = "source") -> None:
    """Raises a UserError about an argument if pydicom is not installed, or too old."""
    try:
        import_module("pydicom.pixels")
    except ImportError as error:
        raise UserError(
            f"{argument}: DICOM files need the package pydicom, 3 or later, which is not there; "
            "run pip install 'cxr_lightning[dicom]'."
        ) from error


def read_dicom(file: Path, resize: Resize | None = None) -> Reading:
    """Decodes the first frame of a DICOM file to 8-bit grey and, where asked for, resizes it.

    Raises:
        UnreadableImageError: If the file is missing, damaged, without pixels, in a transfer syntax
            for which no decoder is installed, larger than Pillow's limit against decompression
            bombs, or its grey values have no stated meaning.
    """
    with _reasons():
        from pydicom.pixels.utils import pixel_array

        header = _read_elements(file)
        if "Rows" not in header or "Columns" not in header:
            raise UnreadableImageError("no image: its header states no size")
        _check_size(int(header.Rows), int(header.Columns))
        _check_boxes(file, header)
        to_grey = _grey_of_monochrome if _is_monochrome(header) else _grey_of_colour
        grey = _square(to_grey(header, pixel_array(file, index=0)), header)
        height, width = grey.shape
        return Reading(resize(grey) if resize else grey, width, height)


def read_header(file: Path) -> Header:
    """Patient, study, sex, age and view.

    Raises:
        UnreadableImageError: If the file is missing or its header damaged.
    """
    with _reasons():
        elements = _read_elements(
            file,
            ["PatientID", "StudyInstanceUID", "PatientSex", "PatientAge", "ViewPosition"],
        )
        position = _text(elements, "ViewPosition").upper()
        lateral = position in LATERAL_POSITIONS or "LATERAL" in position
        frontal = position in FRONTAL_POSITIONS
        return Header(
            patient=_text(elements, "PatientID"),
            study=_text(elements, "StudyInstanceUID"),
            sex=SEXES.get(_text(elements, "PatientSex").upper(), "Unknown"),
            age=parse_age(_text(elements, "PatientAge")),
            view="Lateral" if lateral else "Frontal" if frontal else "",
            projection=position if frontal else "",
        )


def parse_age(text: str) -> float:
    """Years of a DICOM age such as `045Y`, `018M`, `012W`, `003D` or `45`; NaN for any other."""
    match = re.fullmatch(r"([0-9]{1,4})([YMWD]?)", text.strip().upper())
    if match is None:
        return float("nan")
    years = int(match.group(1)) * DAYS[match.group(2) or "Y"] / DAYS["Y"]
    return years if years <= MAX_AGE else float("nan")


@contextmanager
def _reasons() -> Iterator[None]:
    """Turns what a damaged file raises into an UnreadableImageError; warnings are not shown."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except FileNotFoundError as error:
        raise UnreadableImageError("no such file") from error
    except InvalidDicomError as error:
        raise UnreadableImageError("no DICOM file: it has no prefix 'DICM'") from error
    except (BytesLengthException, *DAMAGE) as error:
        reason = " ".join(str(error).split())
        raise UnreadableImageError(f"{type(error).__name__}: {reason}") from error


def _read_elements(file: Path, keywords: list[str] | None = None) -> Any:
    """The data set of a file up to its pixels, or some elements of it."""
    from pydicom import dcmread
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    syntax = read_file_meta_info(file).get("TransferSyntaxUID")
    if syntax == DeflatedExplicitVRLittleEndian:
        raise UnreadableImageError(
            "deflated: it might unpack to any size, and is not read; save it uncompressed"
        )
    return dcmread(file, stop_before_pixels=True, specific_tags=keywords)


def _text(elements: Any, keyword: str) -> str:
    """The value of an element as one line of text; blank if it is absent or empty."""
    value = elements.get(keyword)
    return "" if value is None else " ".join(str(value).replace("\0", " ").split())


def _check_size(height: int, width: int) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if height < 1 or width < 1:
        raise UnreadableImageError(f"{width} x {height} pixels are no image")
    if limit is not None and height * width > limit:
        raise UnreadableImageError(f"{width} x {height} pixels are above the limit of {limit}")


def _check_boxes(file: Path, header: Any) -> None:
    """Refuses JPEG 2000 in damaged boxes of the JP2 format: pydicom may walk them without end."""
    from pydicom import dcmread
    from pydicom.encaps import get_frame
    from pydicom.uid import JPEG2000TransferSyntaxes

    if header.file_meta.TransferSyntaxUID not in JPEG2000TransferSyntaxes:
        return
    data = dcmread(file)
    offsets = data.get("ExtendedOffsetTable"), data.get("ExtendedOffsetTableLengths")
    frame = get_frame(
        data.PixelData,
        0,
        number_of_frames=int(data.get("NumberOfFrames") or 1),
        extended_offsets=None if None in offsets else offsets,
    )
    offset = 12 if frame.startswith(JP2_BEGINNING) else len(frame)
    while offset < len(frame) and frame[offset + 4 : offset + 8] != b"jp2c":
        length = int.from_bytes(frame[offset : offset + 4])
        if length < 8:
            raise UnreadableImageError(f"JPEG 2000 with a box of {length} bytes")
        offset += length


def _is_monochrome(header: Any) -> bool:
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


def _grey_of_colour(header: Any, pixels: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "h w"]:
    """Luma (ITU-R 601) of 8-bit colours; pydicom has made YBR to RGB."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or header.BitsStored != 8:
        raise UnreadableImageError(f"colours of {header.BitsStored} bits, where 8 are read")
    return np.asarray(Image.fromarray(pixels).convert("L"))


def _grey_of_monochrome(header: Any, pixels: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "h w"]:
    """Grey values as they are meant to be seen, bright = dense in a radiograph."""
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
        function = _text(header, "VOILUTFunction").upper() or "LINEAR"
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


def _square(grey: UInt8[np.ndarray, "h w"], header: Any) -> UInt8[np.ndarray, "h2 w2"]:
    """The image with square pixels: the side along which they are longer gets more of them."""
    aspect = _pixel_aspect(header)
    if abs(aspect - 1.0) <= SQUARE_TOLERANCE:
        return grey
    if not 1.0 / MAX_ASPECT <= aspect <= MAX_ASPECT:
        raise UnreadableImageError(f"pixels that are {aspect:g} times as high as wide")
    height, width = grey.shape
    height, width = round(height * max(1.0, aspect)), round(width * max(1.0, 1.0 / aspect))
    _check_size(height, width)
    return np.asarray(Image.fromarray(grey).resize((width, height), FILTER))


def _pixel_aspect(header: Any) -> float:
    """Height of a pixel by its width; 1 where the header does not state both."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        if keyword in header and header[keyword].VM == 2:
            high, wide = (float(number) for number in header[keyword].value)
            if high > 0 and wide > 0:
                return high / wide
    return 1.0
