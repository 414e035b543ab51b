"""DICOM files: one file to one grey square, and the few facts of its header.

Worker processes run this module; it is free of torch and pandas, and imports pydicom where it is
needed. Of several frames the first is read.
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

from PIL import Image

from cxr_lightning.data.resize import Reading, Resize, UnreadableImageError
from cxr_lightning.data.sources.dicom_grey import (
    check_size,
    grey_of_colour,
    grey_of_monochrome,
    is_monochrome,
    square,
    text_of,
)
from cxr_lightning.data.sources.files import find_file, layout_path
from cxr_lightning.errors import UserError

SUFFIXES = ("", ".dcm", ".dicom")
"""What a path in a list may lack."""

DICOM_SUFFIXES = {".dcm", ".dicom", ".dcim"}

FRONTAL_POSITIONS = ("AP", "PA")
LATERAL_POSITIONS = ("LL", "RL", "LAT", "LLAT", "RLAT")
"""Values of View Position; those with the word LATERAL are lateral as well."""

MEANINGS = {"ANTERO-POSTERIOR": "AP", "POSTERO-ANTERIOR": "PA"}
"""What View Code Sequence says where View Position is blank (context group 4010)."""

SEXES = {"M": "Male", "F": "Female"}

DAYS = {"Y": 365.25, "M": 365.25 / 12, "W": 7.0, "D": 1.0}
MAX_AGE = 120.0
"""Older is a mistake, and unknown: such ages (up to 155 years) stand in headers of NIH's images."""

JP2_BEGINNING = b"\0\0\0\x0cjP  "

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
        view: Frontal, Lateral, or blank where View Position, or else View Code Sequence, says
            neither.
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


def read_headers(dicoms: DicomReader, paths: list[str]) -> list[tuple[Header, str]]:
    """The header of each file; a blank one and the reason where it cannot be read."""
    found = []
    for path in paths:
        try:
            found.append((dicoms.header(path), ""))
        except UnreadableImageError as error:
            found.append((Header(), str(error)))
    return found


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
        check_size(int(header.Rows), int(header.Columns))
        _check_boxes(file, header)
        to_grey = grey_of_monochrome if is_monochrome(header) else grey_of_colour
        grey = square(to_grey(header, pixel_array(file, index=0)), header)
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
            [
                *("PatientID", "StudyInstanceUID", "PatientSex", "PatientAge"),
                *("ViewPosition", "ViewCodeSequence"),
            ],
        )
        position = text_of(elements, "ViewPosition").upper()
        for code in elements.get("ViewCodeSequence") or [] if not position else []:
            meaning = text_of(code, "CodeMeaning").upper()
            position = MEANINGS.get(meaning, meaning)
        lateral = position in LATERAL_POSITIONS or "LATERAL" in position
        frontal = position in FRONTAL_POSITIONS
        return Header(
            patient=text_of(elements, "PatientID"),
            study=text_of(elements, "StudyInstanceUID"),
            sex=SEXES.get(text_of(elements, "PatientSex").upper(), "Unknown"),
            age=parse_age(text_of(elements, "PatientAge")),
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
