"""Pixels of DICOM files against plain loops over the formulas of the standard."""

import math
import os
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_writer import elements_of, full_range, ramp, write_dicom
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
)

from cxr_lightning.data.resize import Resize, UnreadableImageError
from cxr_lightning.data.sources.dicom_files import Header, read_dicom, read_header
from cxr_lightning.data.sources.dicom_grey import window


@pytest.fixture
def file(tmp_path):
    return tmp_path / "image.dcm"


def through_window(pixels, center, width, function="LINEAR", slope=1.0, intercept=0.0):
    """Grey values through a window, by the letter of PS3.3 C.11.2.1.2.1 and C.11.2.1.3."""
    grey = np.zeros(pixels.shape, dtype=np.uint8)
    for place, stored in np.ndenumerate(pixels):
        x = int(stored) * slope + intercept
        if function == "LINEAR":
            if x <= center - 0.5 - (width - 1) / 2:
                y = 0
            elif x > center - 0.5 + (width - 1) / 2:
                y = 255
            else:
                y = ((x - (center - 0.5)) / (width - 1) + 0.5) * 255
        elif function == "LINEAR_EXACT":
            if x <= center - width / 2:
                y = 0
            elif x > center + width / 2:
                y = 255
            else:
                y = ((x - center) / width + 0.5) * 255
        else:
            y = 255 / (1 + math.exp(min(700, -4 * (x - center) / width)))
        grey[place] = round(y)
    return grey


SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    ("bits", "signed"), [(8, False), (12, False), (16, False), (12, True), (16, True), (8, True)]
)
def test_without_a_window_the_range_of_the_bits_is_kept(file, syntax, bits, signed):
    pixels = ramp(bits, signed) // 2  # no stretch to the image's own extremes
    reading = read_dicom(write_dicom(file, pixels, bits, syntax))
    assert np.array_equal(reading.image, full_range(pixels, bits, signed))
    assert reading.image.max() < 200
    assert (reading.width, reading.height) == (7, 5)


def test_sixteen_bits_are_as_in_png_files(file):
    pixels = ramp(16, shape=(40, 50))
    grey = np.round(pixels / 257).astype(np.uint8)
    assert np.array_equal(read_dicom(write_dicom(file, pixels)).image, grey)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
@pytest.mark.parametrize(("center", "width"), [(1000, 1500), (2047.5, 1), (40.25, 800.5)])
def test_window(file, function, center, width):
    pixels = ramp(12, shape=(30, 40))
    write_dicom(file, pixels, 12, WindowCenter=center, WindowWidth=width, VOILUTFunction=function)
    expected = through_window(pixels, center, width, function or "LINEAR")
    assert np.array_equal(read_dicom(file).image, expected)


def test_window_after_rescale_of_signed_values(file):
    pixels = ramp(12, signed=True)
    rescale = {"RescaleSlope": "0.5", "RescaleIntercept": "-100"}
    write_dicom(file, pixels, 12, WindowCenter="300", WindowWidth="700", **rescale)
    expected = through_window(pixels, 300, 700, slope=0.5, intercept=-100)
    assert np.array_equal(read_dicom(file).image, expected)


def test_rescale_alone_keeps_the_range_and_a_negative_slope_inverts(file):
    pixels = ramp(12)
    write_dicom(file, pixels, 12, RescaleSlope="3", RescaleIntercept="-1024")
    assert np.array_equal(read_dicom(file).image, full_range(pixels, 12))
    write_dicom(file, pixels, 12, RescaleSlope="-1", RescaleIntercept="4095")
    assert np.array_equal(read_dicom(file).image, full_range(4095 - pixels, 12))


def test_of_several_windows_the_first_counts(file):
    pixels = ramp(12)
    write_dicom(file, pixels, 12, WindowCenter=[900, 2000], WindowWidth=[300, 4000])
    assert np.array_equal(read_dicom(file).image, through_window(pixels, 900, 300))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_agrees_with_pydicom(function):
    values = np.arange(4096)
    data = elements_of(
        values.reshape(64, 64).astype("u2"),
        12,
        WindowCenter=1100,
        WindowWidth=900,
        VOILUTFunction=function,
    )
    theirs = apply_voi_lut(values, data) / 4095
    assert np.allclose(window(values.astype(float), 1100.0, 900.0, function), theirs, atol=1e-12)


def table_item(entries, first, bits, packing="OW"):
    """An item of a Modality or VOI LUT Sequence."""
    kind = {"US": int, "OW": "<u2", "bytes": "<u1"}[packing]
    data = np.asarray(entries).astype(kind)
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(data) % 2**16, first, bits])
    value = data.tolist() if packing == "US" else data.tobytes()
    item.add_new("LUTData", "US" if packing == "US" else "OW", value)
    return item


def through_table(values, entries, first):
    return [
        [int(entries[min(max(int(v) - first, 0), len(entries) - 1)]) for v in row] for row in values
    ]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(
    ("bits", "packing"), [(8, "bytes"), (8, "OW"), (8, "US"), (10, "US"), (12, "OW"), (16, "OW")]
)
@pytest.mark.parametrize(("signed", "first"), [(False, 100), (True, -1500)])
def test_voi_table(file, syntax, bits, packing, signed, first):
    pixels = ramp(12, signed, shape=(20, 30))
    entries = (np.linspace(0, 1, 3000) ** 2 * (2**bits - 1)).round().astype(int)
    item = table_item(entries, first, bits, packing)
    # a window beside the table is an alternative to it
    write_dicom(file, pixels, 12, syntax, VOILUTSequence=[item], WindowCenter=5, WindowWidth=10)
    grey = [
        [round(v * 255 / (2**bits - 1)) for v in row]
        for row in through_table(pixels, entries, first)
    ]
    assert np.array_equal(read_dicom(file).image, grey)


def test_modality_table_then_window(file):
    pixels = ramp(12, shape=(20, 30))
    entries = np.linspace(65535, 0, 4096).round().astype(int)
    item = table_item(entries, 0, 16)
    write_dicom(file, pixels, 12, ModalityLUTSequence=[item])
    grey = [[round(v / 257) for v in row] for row in through_table(pixels, entries, 0)]
    assert np.array_equal(read_dicom(file).image, grey)
    write_dicom(file, pixels, 12, ModalityLUTSequence=[item], WindowCenter=30000, WindowWidth=20000)
    looked_up = np.array(through_table(pixels, entries, 0))
    assert np.array_equal(read_dicom(file).image, through_window(looked_up, 30000, 20000))
    data = pydicom.dcmread(file)
    assert np.array_equal(apply_modality_lut(data.pixel_array, data), looked_up)


@pytest.mark.parametrize("shape", [None, "INVERSE", "IDENTITY"])
def test_monochrome1_is_inverted_once_after_the_window(file, shape):
    pixels = ramp(12)
    write_dicom(
        file,
        pixels,
        12,
        PhotometricInterpretation="MONOCHROME1",
        PresentationLUTShape=shape,
        WindowCenter=1000,
        WindowWidth=1500,
    )
    assert np.array_equal(read_dicom(file).image, 255 - through_window(pixels, 1000, 1500))


def test_orientation_is_kept(file):
    pixels = np.zeros((60, 80), dtype=np.uint16)
    pixels[:20, :30] = 4095
    reading = read_dicom(write_dicom(file, pixels, 12), Resize(16))
    assert reading.image.shape == (16, 16)
    assert (reading.width, reading.height) == (80, 60)
    assert reading.image[3, 1] == 255
    assert reading.image[3, 14] == reading.image[12, 1] == reading.image[12, 14] == 0


def encode(grey, kind, **options):
    stream = BytesIO()
    Image.fromarray(grey).save(stream, kind, **options)
    return stream.getvalue()


def smooth(height=40, width=56):
    y, x = np.mgrid[0:height, 0:width]
    return (30 + 3 * x + y).astype(np.uint8)


def test_jpeg(file):
    grey = smooth()
    encoded = encode(grey, "JPEG", quality=95)
    write_dicom(file, grey, syntax=JPEGBaseline8Bit, encoded=encoded)
    assert np.array_equal(read_dicom(file).image, np.asarray(Image.open(BytesIO(encoded))))


def test_jpeg_2000_of_12_bits(file):
    pixels = ramp(12, shape=(32, 32))
    encoded = encode(pixels, "JPEG2000", no_jp2=True, irreversible=False)
    write_dicom(file, pixels, 16, syntax=JPEG2000Lossless, encoded=encoded)
    assert np.array_equal(read_dicom(file).image, full_range(pixels, 16))


@pytest.mark.parametrize("kind", [{}, {"no_jp2": True}])
def test_jpeg_2000_with_and_without_boxes(file, kind):
    encoded = encode(smooth(), "JPEG2000", irreversible=False, **kind)
    write_dicom(file, smooth(), syntax=JPEG2000Lossless, encoded=encoded)
    assert np.array_equal(read_dicom(file).image, smooth())


def test_damaged_boxes_of_jpeg_2000_do_not_hang(file):
    encoded = bytearray(encode(smooth(), "JPEG2000"))
    encoded[12:16] = bytes(4)
    write_dicom(file, smooth(), syntax=JPEG2000Lossless, encoded=bytes(encoded))
    with pytest.raises(UnreadableImageError, match="a box of 0 bytes"):
        read_dicom(file)


def test_without_a_decoder_the_reason_says_what_is_missing(file):
    write_dicom(file, smooth(), syntax=JPEGLosslessSV1, encoded=b"\xff\xd8\xff\xc3\xff\xd9")
    with pytest.raises(UnreadableImageError, match="JPEG Lossless.*pylibjpeg"):
        read_dicom(file)


def test_first_of_several_frames(file):
    frames = np.stack([ramp(12), ramp(12)[::-1], 0 * ramp(12)])
    data = {"Rows": 5, "Columns": 7, "NumberOfFrames": 3}
    write_dicom(file, frames, 12, **data)
    assert np.array_equal(read_dicom(file).image, full_range(frames[0], 12))


def test_colour_is_luma(file):
    colours = np.zeros((4, 6, 3), dtype=np.uint8)
    colours[:2, :, 0], colours[2:, :, 1], colours[:, 0, 2] = 255, 255, 255
    rgb = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    write_dicom(file, colours, **rgb)
    expected = [
        [round(0.299 * r + 0.587 * g + 0.114 * b) for r, g, b in row] for row in colours.tolist()
    ]
    assert np.array_equal(read_dicom(file).image, expected)
    # YBR (ITU-R 601, PS3.3 C.7.6.3.1.2): the luma is the first of the three
    ybr = np.asarray(Image.fromarray(colours).convert("YCbCr"))
    write_dicom(file, ybr, **{**rgb, "PhotometricInterpretation": "YBR_FULL"})
    assert abs(read_dicom(file).image.astype(int) - ybr[..., 0]).max() <= 1


@pytest.mark.parametrize("keyword", ["PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"])
@pytest.mark.parametrize(
    ("spacing", "size"), [((2, 1), (7, 10)), ((1, 2), (14, 5)), ((100, 100.5), (7, 5))]
)
def test_pixels_are_made_square(file, keyword, spacing, size):
    value = [round(s) for s in spacing] if keyword == "PixelAspectRatio" else list(spacing)
    reading = read_dicom(write_dicom(file, ramp(8), **{keyword: value}))
    assert (reading.width, reading.height) == size == reading.image.shape[::-1]
    assert reading.image[0, 0] == 0  # the orientation is kept
    assert reading.image[-1, -1] == 255


@pytest.mark.parametrize("spacing", [[0, 0], [0.1, 0], 0.1, [0.1, 0.1, 7]])
def test_spacing_that_is_none_is_left_aside(file, spacing):
    write_dicom(file, ramp(8), PixelSpacing=spacing)
    assert read_dicom(file).image.shape == (5, 7)


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "type 'PALETTE COLOR' are not read"),
        ({"PhotometricInterpretation": None}, "PhotometricInterpretation"),
        ({"BitsStored": 9, "HighBit": 8}, "9"),
        ({"BitsStored": 0, "HighBit": 0}, "0"),
        ({"BitsStored": 7}, "High Bit 7 does not belong to 7 bits"),
        ({"BitsAllocated": 12}, "12"),
        ({"PixelRepresentation": 3}, "3"),
        ({"Rows": 0}, "7 x 0 pixels are no image"),
        ({"Rows": 60000, "Columns": 60000}, "60000 x 60000 pixels are above the limit"),
        ({"Rows": 6}, "ValueError"),  # fewer pixels than stated
        ({"WindowCenter": 5, "WindowWidth": 0}, "a window of the width 0"),
        ({"WindowCenter": 5, "WindowWidth": 0.5}, "a window of the width 0.5"),
        ({"WindowCenter": 5, "WindowWidth": 5, "VOILUTFunction": "CUBIC"}, "'CUBIC' is unknown"),
        ({"RescaleSlope": 0, "RescaleIntercept": 3}, "a rescale by 0 and 3"),
        ({"RescaleSlope": "1e307", "RescaleIntercept": 3}, "a rescale by 1e\\+307 and 3"),
        ({"PixelSpacing": [1, 9]}, "0.111111 times as high as wide"),
        ({"VOILUTSequence": [table_item(range(9), 0, 33)]}, "9 of 33 bits"),
        ({"VOILUTSequence": [Dataset()]}, "AttributeError"),
    ],
)
def test_headers_that_make_no_sense(file, elements, reason):
    with pytest.raises(UnreadableImageError, match=reason):
        read_dicom(write_dicom(file, ramp(8), **elements))


def test_deep_colours_and_deep_grey_are_refused(file):
    deep = np.zeros((4, 6, 3), dtype=np.uint16)
    write_dicom(
        file, deep, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0
    )
    with pytest.raises(UnreadableImageError, match="colours of 16 bits"):
        read_dicom(file)
    with pytest.raises(UnreadableImageError, match="32 of 32 bits"):
        read_dicom(write_dicom(file, np.zeros((4, 6), dtype=np.uint32)))


def test_no_pixels_no_file_no_dicom(tmp_path):
    with pytest.raises(UnreadableImageError, match="no such file"):
        read_dicom(tmp_path / "absent.dcm")
    (tmp_path / "text.dcm").write_text("no image " * 100)
    with pytest.raises(UnreadableImageError, match="no prefix 'DICM'"):
        read_dicom(tmp_path / "text.dcm")
    file = write_dicom(tmp_path / "a.dcm", ramp(8))
    data = pydicom.dcmread(file)
    del data.PixelData
    data.save_as(file)
    with pytest.raises(UnreadableImageError, match="(?i)pixel data"):
        read_dicom(file)
    del data.Rows  # as in a report
    data.save_as(file)
    with pytest.raises(UnreadableImageError, match="no image: its header states no size"):
        read_dicom(file)


def test_a_file_that_unpacks_to_any_size_is_not_unpacked(tmp_path):
    file = write_dicom(tmp_path / "a.dcm", ramp(8), syntax=DeflatedExplicitVRLittleEndian)
    with file.open("ab") as stream:
        stream.write(zlib.compress(b"\0" * 2**20))
    for read in (read_dicom, read_header):
        with pytest.raises(UnreadableImageError, match="deflated"):
            read(file)


def test_a_jpeg_larger_than_the_header_says_is_not_decoded(file, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64)
    encoded = encode(smooth(100, 100), "JPEG")
    write_dicom(file, smooth(40, 40), syntax=JPEGBaseline8Bit, encoded=encoded)
    with pytest.raises(UnreadableImageError, match="Unable to decode.*exceeds limit"):
        read_dicom(file)


def originals(tmp_path):
    """Files of several kinds, to be damaged."""
    grey, pixels = smooth(), ramp(12, shape=(24, 30))
    kinds = {
        "plain": (pixels, 12, {"WindowCenter": 900, "WindowWidth": 1000, "PatientAge": "045Y"}),
        "implicit": (pixels, 12, {"syntax": ImplicitVRLittleEndian, "PixelSpacing": [1, 2]}),
        "table": (pixels, 12, {"VOILUTSequence": [table_item(range(4096), 0, 12)]}),
        "jpeg": (grey, 8, {"syntax": JPEGBaseline8Bit, "encoded": encode(grey, "JPEG")}),
        "jpeg2000": (grey, 8, {"syntax": JPEG2000Lossless, "encoded": encode(grey, "JPEG2000")}),
    }
    files = [write_dicom(tmp_path / k, p, bits, **more) for k, (p, bits, more) in kinds.items()]
    shipped = ["MR_small_RLE.dcm", "SC_rgb_jpeg_gdcm.dcm", "examples_palette.dcm", "MR_small.dcm"]
    paths = [get_testdata_file(name, download=False) for name in shipped]
    return [file.read_bytes() for file in [*files, *(Path(path) for path in paths if path)]]


def damage(data, rng):
    """A broken copy."""
    data = bytearray(data)
    kind = rng.integers(7)
    if kind == 0:
        return bytes(data[: rng.integers(len(data))])
    if kind == 1:
        return rng.bytes(rng.integers(3000))
    if kind == 2:  # begins as a DICOM file does
        return bytes(128) + b"DICM" + rng.bytes(rng.integers(3000))
    if kind == 3:
        place = rng.integers(132, len(data))
        return bytes(data[:place]) + rng.bytes(rng.integers(1, 60)) + bytes(data[place:])
    # flipped bits: a few in the file, a few in the header, or many of them
    end, count = [(len(data), 20), (min(900, len(data)), 3), (min(2000, len(data)), 40)][kind - 4]
    for place in rng.integers(132, end, size=count):
        data[place] ^= 1 << rng.integers(8)
    return bytes(data)


def test_damaged_files_are_unreadable_and_nothing_else(tmp_path):
    rng = np.random.default_rng(0)
    whole = originals(tmp_path)
    file = tmp_path / "damaged.dcm"
    readable = 0
    for number in range(int(os.environ.get("CXR_FUZZ", "300"))):
        file.write_bytes(damage(whole[number % len(whole)], rng) if number else b"")
        for read in (read_dicom, read_header):
            with suppress(UnreadableImageError):
                readable += isinstance(read(file), Header)
    assert readable > 50  # the damage is not always at the front


SHIPPED = [
    ("CT_small.dcm", {}),
    ("MR_small_bigendian.dcm", {}),
    ("MR_small_RLE.dcm", {}),
    ("J2K_pixelrep_mismatch.dcm", {}),
    ("SC_rgb_small_odd.dcm", {}),
    ("SC_rgb_jpeg_dcmtk.dcm", {"sex": "Female", "age": 24.0}),
]


@pytest.mark.parametrize(("name", "facts"), SHIPPED)
def test_files_of_other_makers(name, facts):
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip("pydicom came without its test files")
    data = pydicom.dcmread(path)
    pixels = apply_modality_lut(data.pixel_array, data).astype(float)
    if data.SamplesPerPixel == 3:
        expected = np.asarray(Image.fromarray(data.pixel_array).convert("L"))
    elif "WindowWidth" in data:
        center, width = (np.ravel(data[k].value)[0] for k in ("WindowCenter", "WindowWidth"))
        expected = through_window(pixels, float(center), float(width))
    else:
        low = -(2 ** (data.BitsStored - 1)) * data.PixelRepresentation
        low = low * data.get("RescaleSlope", 1) + data.get("RescaleIntercept", 0)
        expected = np.round((pixels - low) * 255 / (2**data.BitsStored - 1))
    assert abs(read_dicom(Path(path)).image - expected.astype(float)).max() <= 1
    header = read_header(Path(path))
    assert {key: getattr(header, key) for key in facts} == facts
