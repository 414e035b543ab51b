"""Files of synthetic images: their pixels, and that each says that it is synthetic."""

import io
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from PIL import ExifTags, Image

from cxr_lightning.data.requests import ImageRequests
from cxr_lightning.data.sources.dicom_files import Header, read_dicom, read_header
from cxr_lightning.data.vocabulary import parse_condition
from cxr_lightning.data.writers import FORMATS, ImageFacts

PRODUCT = "ab" * 32
TYPE_1 = {  # of the mandatory modules of the Secondary Capture Image IOD, PS3.3 table A.8-1
    "StudyInstanceUID",
    "Modality",
    "SeriesInstanceUID",
    "ConversionType",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelData",
    "SOPClassUID",
    "SOPInstanceUID",
    "SpecificCharacterSet",  # 1C: the text is UTF-8
    "DeidentificationMethod",  # 1C: Patient Identity Removed is YES
    "WindowCenter",  # 1C: there is no VOI LUT Sequence
    "WindowWidth",  # 1C: there is a center
}
TYPE_2 = {
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyID",
    "SeriesNumber",
    "Manufacturer",
    "InstanceNumber",
    "PatientOrientation",  # 2C: there is no Image Orientation (Patient)
}


def facts(name: str = "pneumonia+edema", view: str | None = None, **row: object) -> ImageFacts:
    requests = ImageRequests.of_conditions([parse_condition(name)], 1, view)
    return ImageFacts(PRODUCT, 3, 4, requests.rows()[0] | row)


def noise(height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)


def strictly(content: bytes) -> pydicom.FileDataset:
    """A DICOM file read so that any value against the standard raises an error."""
    settings = pydicom.config.settings
    before = settings.reading_validation_mode
    settings.reading_validation_mode = pydicom.config.RAISE
    try:
        data = pydicom.dcmread(io.BytesIO(content), force=False)
        list(data.iterall())  # values are read when they are asked for
        return data
    finally:
        settings.reading_validation_mode = before


def test_png_holds_the_pixels_and_says_that_it_is_synthetic():
    picture = Image.open(io.BytesIO(FORMATS["png"].encode(noise(), facts())))
    assert (picture.format, picture.mode) == ("PNG", "L")
    assert np.array_equal(np.asarray(picture), noise())
    assert picture.text["Synthetic"] == "yes"
    assert picture.text["Product-SHA256"] == PRODUCT


def test_jpeg_holds_about_the_pixels_and_says_that_it_is_synthetic():
    smooth = np.add.outer(np.arange(32), 2 * np.arange(32)).astype(np.uint8)
    picture = Image.open(io.BytesIO(FORMATS["jpeg"].encode(smooth, facts())))
    assert (picture.format, picture.mode) == ("JPEG", "L")
    assert np.abs(np.asarray(picture).astype(int) - smooth).max() <= 3
    assert picture.info["comment"].startswith(b"Synthetic: yes; Software: cxr_lightning ")
    assert PRODUCT.encode() in picture.info["comment"]
    exif = picture.getexif()
    assert exif[ExifTags.Base.ImageDescription].startswith("Synthetic chest radiograph")
    assert exif[ExifTags.Base.Software].startswith("cxr_lightning ")


@pytest.mark.parametrize("shape", [(32, 32), (5, 7)])  # an odd number of bytes is padded
def test_dicom_holds_the_pixels(shape, tmp_path):
    content = FORMATS["dicom"].encode(noise(*shape), facts())
    assert np.array_equal(strictly(content).pixel_array, noise(*shape))
    (tmp_path / "image.dcm").write_bytes(content)
    assert np.array_equal(read_dicom(tmp_path / "image.dcm").image, noise(*shape))


def test_dicom_has_what_the_standard_asks_of_a_secondary_capture():
    data = strictly(FORMATS["dicom"].encode(noise(), facts()))
    assert [k for k in TYPE_1 if k not in data or data[k].is_empty] == []
    assert [k for k in TYPE_2 if k not in data] == []
    assert data.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage
    assert data.file_meta.MediaStorageSOPClassUID == data.SOPClassUID
    assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID
    assert data.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    assert (data.PhotometricInterpretation, data.BitsAllocated, data.BitsStored) == (
        "MONOCHROME2",
        8,
        8,
    )
    uids = [e.value for e in data.iterall() if e.VR == "UI" and str(e.value).startswith("2.25")]
    assert len(uids) == len(set(uids)) == 3
    assert all(pydicom.uid.UID(uid).is_valid for uid in uids)


def test_dicom_says_in_every_way_that_it_is_synthetic_and_names_nobody():
    data = strictly(FORMATS["dicom"].encode(noise(), facts()))
    assert data.SyntheticData == "YES"
    assert data.ConversionType == "SYN"
    assert data.Modality == "OT"
    assert data.ImageType == ["DERIVED", "SECONDARY", "OTHER", "SYNTHETIC"]
    texts = ("PatientName", "PatientID", "PatientComments", "SeriesDescription", "ImageComments")
    for keyword in texts:
        assert "synthetic" in str(data[keyword].value).lower(), keyword
    assert data.PatientIdentityRemoved == "YES"
    assert (data.BurnedInAnnotation, data.RecognizableVisualFeatures) == ("NO", "NO")
    assert (data.LossyImageCompression, data.PatientBirthDate) == ("00", "")
    assert PRODUCT in data.DerivationDescription
    assert "Pneumonia = 1" in data.ImageComments
    assert "No Finding = 0" in data.ImageComments


def test_dicom_has_no_date_or_time():
    data = strictly(FORMATS["dicom"].encode(noise(), facts()))
    assert [
        e.keyword for e in data.iterall() if e.VR in ("DA", "TM", "DT") and not e.is_empty
    ] == []


@pytest.mark.parametrize(
    ("row", "header"),
    [
        ({}, Header(sex="Unknown")),
        ({"Sex": "Female", "Age": 7}, Header(sex="Female", age=7.0)),
        ({"Sex": "Male", "Age": 100}, Header(sex="Male", age=100.0)),
    ],
)
def test_dicom_states_sex_and_age_where_they_were_asked_for(tmp_path, row, header):
    content = FORMATS["dicom"].encode(noise(), facts(**row))
    strictly(content)
    (tmp_path / "image.dcm").write_bytes(content)
    found = read_header(tmp_path / "image.dcm")
    assert found.sex == header.sex
    np.testing.assert_equal(found.age, header.age)
    assert found.view == found.projection == ""


@pytest.mark.parametrize(("view", "code"), [("AP", "399348003"), ("PA", "272479007")])
def test_dicom_states_the_view_where_it_was_asked_for(tmp_path, view, code):
    data = strictly(FORMATS["dicom"].encode(noise(), facts(view=view)))
    assert data.ViewPosition == view
    (item,) = data.ViewCodeSequence
    assert (item.CodeValue, item.CodingSchemeDesignator) == (code, "SCT")
    plain = strictly(FORMATS["dicom"].encode(noise(), facts()))
    assert "ViewPosition" not in plain
    assert "ViewCodeSequence" not in plain


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_image_gives_the_same_bytes(name):
    encode = FORMATS[name].encode
    assert encode(noise(), facts()) == encode(noise(), facts())


def test_images_that_differ_in_anything_share_no_uid():
    base = facts()
    files = [
        FORMATS["dicom"].encode(*arguments)
        for arguments in (
            (noise(), base),
            (noise() ^ 1, base),
            (noise(), replace(base, product="cd" * 32)),
            (noise(), replace(base, seed=4)),
            (noise(), replace(base, index=5)),
            (noise(), facts("healthy")),
        )
    ]
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID"):
        assert len({strictly(file)[keyword].value for file in files}) == len(files), keyword
