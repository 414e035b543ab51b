"""DICOM: a Secondary Capture image (PS3.3 A.8.1) that says in every way that it is synthetic.

Secondary Capture and not a radiography object (CR, DX): those state how an X-ray was acquired, and
nothing was. Modality is OT for the same reason: it names what produced the data (C.7.3.1.1.1), and
CR, DX or RG would put the image among acquired radiographs. Synthetic Data (0008,001C) is YES
(C.12.1), Conversion Type SYN (C.8.6.1), Image Type DERIVED, SECONDARY, with SYNTHETIC as value 4
(C.7.6.1.1.2: value 3 belongs to the IOD, which defines none; what follows to the implementation).

There is no date, time, random number or name of the machine in it, so that a request gives the same
bytes on any day.
"""

import hashlib
import json
import uuid
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import UInt8

from cxr_lightning import __version__
from cxr_lightning.data.writers.facts import ImageFacts
from cxr_lightning.types import OBSERVATIONS

NAMESPACE = uuid.UUID("12ad998c-a9c7-4d3f-9a0a-22d5aaecdf3c")
"""Of the UIDs made here: a random number, once and for all."""

SOFTWARE = "cxr_lightning"
NO_PATIENT = "Synthetic image: no patient was imaged"

SEXES = {"Male": "M", "Female": "F"}

VIEWS = {
    "AP": ("399348003", "antero-posterior"),
    "PA": ("272479007", "postero-anterior"),
}
"""SNOMED CT codes of CID 4010 (PS3.16)."""


def encode_dicom(pixels: UInt8[np.ndarray, "h w"], facts: ImageFacts) -> bytes:
    """A DICOM file: 8-bit MONOCHROME2, explicit VR little endian.

    Its UIDs depend on (product, seed, index), and on the pixels and what was asked for: two images
    that differ never share one (PS3.5 chapter 9), however alike their requests are.
    """
    from pydicom import dcmwrite
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    identity = _identity(pixels, facts)
    data = Dataset()
    for keyword, value in _elements(facts, identity).items():
        setattr(data, keyword, value)
    data.SOPClassUID = SecondaryCaptureImageStorage
    if facts.row["AP/PA"] in VIEWS:
        data.ViewCodeSequence = [_view_code(facts.row["AP/PA"])]
    data.Rows, data.Columns = pixels.shape
    stored = pixels.tobytes()
    data.PixelData = stored + b"\0" * (len(stored) % 2)
    data["PixelData"].VR = "OB"

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(make_uid("implementation", SOFTWARE))
    meta.ImplementationVersionName = SOFTWARE.upper()
    data.file_meta = meta
    file = BytesIO()
    dcmwrite(file, data, enforce_file_format=True)
    return file.getvalue()


def make_uid(kind: str, identity: str) -> str:
    """A UID derived from a UUID (PS3.5 B.2): the same arguments give the same."""
    return f"2.25.{uuid.uuid5(NAMESPACE, f'{kind}/{identity}').int}"


def _identity(pixels: UInt8[np.ndarray, "h w"], facts: ImageFacts) -> str:
    """Hash of all that the file says."""
    stated = [facts.product, facts.seed, facts.index, facts.row, pixels.shape]
    digest = hashlib.sha256(json.dumps(stated, sort_keys=True).encode())
    digest.update(pixels.tobytes())
    return digest.hexdigest()


def _elements(facts: ImageFacts, identity: str) -> dict[str, Any]:
    """Value by keyword, module by module; empty where a type 2 attribute is unknown."""
    row, number = facts.row, facts.index + 1
    patient = {  # C.7.1.1
        "PatientName": f"Synthetic^{number:05d}",
        "PatientID": f"SYNTHETIC-{identity[:12]}-{number:05d}",
        "PatientBirthDate": "",
        "PatientSex": SEXES.get(row["Sex"], ""),
        "PatientComments": NO_PATIENT,
        "PatientIdentityRemoved": "YES",
        "DeidentificationMethod": NO_PATIENT,
    }
    study = {  # C.7.2.1
        "StudyInstanceUID": make_uid("study", identity),
        "StudyDate": "",
        "StudyTime": "",
        "ReferringPhysicianName": "",
        "StudyID": str(number),
        "AccessionNumber": "",
        "StudyDescription": "Synthetic chest radiograph",
    }
    if row["Age"] != "":  # C.7.2.2
        study["PatientAge"] = f"{row['Age']:03d}Y"
    series = {  # C.7.3.1
        "Modality": "OT",
        "SeriesInstanceUID": make_uid("series", identity),
        "SeriesNumber": 1,
        "SeriesDescription": "Synthetic chest radiograph",
        "BodyPartExamined": "CHEST",
    }
    if row["AP/PA"] in VIEWS:  # C.8.1.1: not of this IOD, but what readers of radiographs look for
        series["ViewPosition"] = row["AP/PA"]
    equipment = {  # C.7.5.1, C.8.6.1
        "Manufacturer": SOFTWARE,
        "ManufacturerModelName": f"Generator product {facts.product[:12]}",
        "SoftwareVersions": __version__,
        "ConversionType": "SYN",
        "SecondaryCaptureDeviceManufacturer": SOFTWARE,
        "SecondaryCaptureDeviceSoftwareVersions": __version__,
    }
    image = {  # C.7.6.1, C.7.6.3, C.11.2
        "InstanceNumber": 1,
        "PatientOrientation": "",  # that of the training images, which nothing states
        "ImageType": ["DERIVED", "SECONDARY", "OTHER", "SYNTHETIC"],
        "DerivationDescription": f"Drawn by a generative model (SHA-256 {facts.product})",
        "ImageComments": _describe(facts),
        "BurnedInAnnotation": "NO",
        "RecognizableVisualFeatures": "NO",
        "LossyImageCompression": "00",
        "PresentationLUTShape": "IDENTITY",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "WindowCenter": 128,  # shows every stored value as it is (C.11.2.1.2.1)
        "WindowWidth": 256,
    }
    common = {  # C.12.1
        "SpecificCharacterSet": "ISO_IR 192",
        "SOPInstanceUID": make_uid("instance", identity),
        "SyntheticData": "YES",
        "ContentQualification": "RESEARCH",
    }
    return patient | study | series | equipment | image | common


def _describe(facts: ImageFacts) -> str:
    """What was asked for, in words."""
    stated = [f"{o} = {facts.row[o]:g}" for o in OBSERVATIONS if facts.row[o] != ""]
    return f"Synthetic, seed {facts.seed}, image {facts.index}; {'; '.join(stated)}".rstrip("; ")


def _view_code(view: str) -> Any:
    """The item of View Code Sequence (C.8.6.2)."""
    from pydicom.dataset import Dataset

    code = Dataset()
    code.CodeValue, code.CodeMeaning = VIEWS[view]
    code.CodingSchemeDesignator = "SCT"
    return code
