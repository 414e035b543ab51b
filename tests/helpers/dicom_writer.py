"""DICOM files for tests, as scanners and data sets have them."""

import math

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

RADIOGRAPH = "1.2.840.10008.5.1.4.1.1.1.1"


def elements_of(pixels, bits, **elements):
    """An image as a data set; `elements` are added, and left out where None."""
    height, width = pixels.shape[:2]
    signed = int(pixels.dtype.kind == "i")
    data = Dataset()
    standard = {
        "SOPClassUID": RADIOGRAPH,
        "SOPInstanceUID": "1.2.3",
        "Rows": height,
        "Columns": width,
        "BitsAllocated": 8 * pixels.dtype.itemsize,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": signed,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
    }
    for keyword, value in {**standard, **elements}.items():
        if value is not None:
            setattr(data, keyword, value)
    return data


def write_dicom(file, pixels, bits=None, syntax=ExplicitVRLittleEndian, encoded=None, **elements):
    """Writes an image as a DICOM file: as it is, or the `encoded` bytes of it."""
    data = elements_of(pixels, bits or 8 * pixels.dtype.itemsize, **elements)
    little = syntax != ExplicitVRBigEndian
    stored = pixels.astype(pixels.dtype.newbyteorder("<" if little else ">")).tobytes()
    data.PixelData = encapsulate([encoded]) if encoded else stored + b"\0" * (len(stored) % 2)
    data["PixelData"].VR = "OB" if encoded or pixels.dtype.itemsize == 1 else "OW"
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    file.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(
        file,
        data,
        enforce_file_format=True,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=little,
    )
    return file


def ramp(bits, signed=False, shape=(5, 7)):
    """An image that is not symmetric, from the lowest to the highest value of its bits."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    values = np.linspace(low, high, math.prod(shape)).round().astype(np.int64).reshape(shape)
    return values.astype(f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}")


def full_range(pixels, bits, signed=False):
    """Grey values without a window: the range of the stored bits becomes 0 to 255."""
    low = -(2 ** (bits - 1)) if signed else 0
    grey = [[round((int(v) - low) * 255 / (2**bits - 1)) for v in row] for row in pixels]
    return np.array(grey, dtype=np.uint8)


PERSON = {
    "PatientID": "P7",
    "StudyInstanceUID": "1.2.9",
    "PatientSex": "F",
    "PatientAge": "045Y",
    "ViewPosition": "PA",
}
