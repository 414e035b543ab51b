"""Writers of synthetic images: pixels and what is said of them to the bytes of a file."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from cxr_lightning.data.writers.facts import ImageFacts
from cxr_lightning.data.writers.jpeg import encode_jpeg
from cxr_lightning.data.writers.png import encode_png
from cxr_lightning.data.writers.secondary_capture import encode_dicom

ImageFormat = Literal["png", "jpeg", "dicom"]


class FileFormat(NamedTuple):
    """A kind of image file.

    Attributes:
        suffix: Of the file's name.
        encode: Gives the bytes of a file; the same pixels and facts give the same bytes.
    """

    suffix: str
    encode: Callable[[UInt8[np.ndarray, "h w"], ImageFacts], bytes]


FORMATS: dict[ImageFormat, FileFormat] = {
    "png": FileFormat(".png", encode_png),
    "jpeg": FileFormat(".jpg", encode_jpeg),
    "dicom": FileFormat(".dcm", encode_dicom),
}

__all__ = ["FORMATS", "FileFormat", "ImageFacts", "ImageFormat"]
