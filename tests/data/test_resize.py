import numpy as np
import pytest
from PIL import Image

from cxr_lightning.data import resize as module
from cxr_lightning.data.resize import Resize, UnreadableImageError


def read_grey(file, resize=None):
    return module.read_grey(file, resize).image


def gradient(height, width, seed=0):
    """Smooth and asymmetric: brighter to the right, and more so to the bottom."""
    y, x = np.mgrid[0:height, 0:width]
    return (40 + 120 * x / width + 60 * y / height).astype(np.uint8)


def save(tmp_path, array, name="image.png", **options):
    file = tmp_path / name
    Image.fromarray(array).save(file, **options)
    return file


def test_same_size_is_identity():
    image = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    assert np.array_equal(Resize(32)(image), image)
    assert np.array_equal(Resize(32, "crop")(image), image)


@pytest.mark.parametrize("aspect", ["pad", "crop"])
def test_orientation_is_kept(aspect):
    image = np.zeros((80, 80), dtype=np.uint8)
    image[:40, :40] = 255
    small = Resize(16, aspect)(image)
    assert small[2, 2] == 255
    assert small[2, 13] == small[13, 2] == small[13, 13] == 0


@pytest.mark.parametrize(("height", "width"), [(40, 80), (80, 40)])
def test_pad_centres_the_whole_image_on_black(height, width):
    small = Resize(16)(np.full((height, width), 200, dtype=np.uint8))
    if height > width:
        small = small.T
    assert (small[4:12] == 200).all()
    assert (small[:4] == 0).all()
    assert (small[12:] == 0).all()


def test_crop_takes_the_centre():
    image = np.zeros((40, 120), dtype=np.uint8)
    image[:, 40:80] = 200
    assert (Resize(20, "crop")(image)[:, 2:-2] == 200).all()  # the filter sees the neighbours


def test_resize_is_antialiased():
    stripes = np.zeros((256, 256), dtype=np.uint8)
    stripes[:, ::2] = 255
    inner = Resize(32)(stripes)[:, 2:-2].astype(int)
    # Without a low-pass all columns would hit the same phase: 0 or 255.
    assert abs(inner - 127.5).max() < 10


def test_extreme_aspect_keeps_one_pixel():
    assert Resize(8)(np.full((1, 1000), 90, dtype=np.uint8)).max() == 90


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK"])
def test_modes_give_the_same_grey(tmp_path, mode):
    grey = gradient(20, 30)
    file = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    Image.fromarray(grey).convert("RGB" if mode == "CMYK" else "L").convert(mode).save(file)
    assert abs(read_grey(file).astype(int) - grey).max() <= 1  # rounding of the CMYK conversion


def test_colour_is_luma(tmp_path):
    file = save(tmp_path, np.full((4, 4, 3), (255, 0, 0), dtype=np.uint8))
    assert (read_grey(file) == 76).all()  # 0.299 x 255


def test_transparent_pixels_are_black(tmp_path):
    image = np.full((4, 4, 4), 255, dtype=np.uint8)
    image[:2, :, 3] = 0
    grey = read_grey(save(tmp_path, image))
    assert (grey[:2] == 0).all()
    assert (grey[2:] == 255).all()


def test_bilevel_is_black_and_white(tmp_path):
    file = tmp_path / "image.png"
    Image.fromarray(gradient(8, 8) > 100).save(file)
    assert set(np.unique(read_grey(file))) == {0, 255}


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_keeps_its_range(tmp_path, suffix):
    values = np.array([[0, 257, 25700], [32896, 65535, 4095]], dtype=np.uint16)
    grey = read_grey(save(tmp_path, values, f"image.{suffix}"))
    assert grey.tolist() == [[0, 1, 100], [128, 255, 16]]


def test_sixteen_bit_tiff_whose_zero_is_white(tmp_path):
    file = save(tmp_path, np.array([[0, 257, 65535]], dtype=np.uint16), "plain.tiff")
    with Image.open(file) as image:
        image.save(tmp_path / "white.tiff", tiffinfo={262: 0})
    with Image.open(tmp_path / "white.tiff") as image:
        assert image.tag_v2[262] == 0
    assert read_grey(tmp_path / "white.tiff").tolist() == [[255, 254, 0]]


def test_float_image_has_no_stated_range(tmp_path):
    file = save(tmp_path, np.ones((4, 4), dtype=np.float32), "image.tiff")
    with pytest.raises(UnreadableImageError, match="mode F"):
        read_grey(file)


def test_exif_orientation_is_honoured(tmp_path):
    image = gradient(20, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # the viewer turns it by 90 degrees clockwise
    file = save(tmp_path, image, "turned.png", exif=exif)
    assert np.array_equal(read_grey(file), np.rot90(image, -1))


@pytest.mark.parametrize("aspect", ["pad", "crop"])
@pytest.mark.parametrize("shape", [(320, 390), (601, 203), (64, 64)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_dct_scaling_keeps_the_picture(tmp_path, aspect, shape, mode):
    file = tmp_path / "image.jpg"
    Image.fromarray(gradient(*shape)).convert(mode).save(file, quality=95)
    resize = Resize(64, aspect)
    difference = read_grey(file, resize).astype(int) - resize(read_grey(file))
    # Both are low-pass filters of a smooth image: only rounding of the JPEG is left.
    assert abs(difference).max() <= 6
    assert abs(difference).mean() < 0.5


def test_dct_scaling_is_used(tmp_path, monkeypatch):
    file = save(tmp_path, gradient(400, 400), "image.jpg")
    shapes = []
    plain = Resize.picture
    monkeypatch.setattr(
        Resize,
        "picture",
        lambda self, image, *rest: shapes.append(image.size) or plain(self, image, *rest),
    )
    read_grey(file, Resize(64))
    assert shapes == [(100, 100)]


def test_exif_orientation_of_a_reduced_jpeg(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = gradient(200, 400)
    file = save(tmp_path, image, "turned.jpg", exif=exif, quality=95)
    difference = read_grey(file, Resize(32)).astype(int) - Resize(32)(np.rot90(image, -1).copy())
    assert abs(difference).max() <= 6  # JPEG at quality 95


def test_missing_file(tmp_path):
    with pytest.raises(UnreadableImageError, match="no such file"):
        read_grey(tmp_path / "absent.png")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_file(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    file = save(tmp_path, noise, f"image.{suffix}")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UnreadableImageError):
        read_grey(file)


@pytest.mark.parametrize("content", [b"", b"this is no image", b"\x89PNG\r\n\x1a\n\x00\x00"])
def test_no_image(tmp_path, content):
    file = tmp_path / "image.png"
    file.write_bytes(content)
    with pytest.raises(UnreadableImageError):
        read_grey(file)


def test_broken_png_checksum(tmp_path):
    file = save(tmp_path, gradient(50, 50))
    content = bytearray(file.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 0xFF
    file.write_bytes(bytes(content))
    with pytest.raises(UnreadableImageError):
        read_grey(file)


def test_folder_instead_of_a_file(tmp_path):
    with pytest.raises(UnreadableImageError):
        read_grey(tmp_path)


@pytest.mark.parametrize("limit", [1000, 700])  # 1,600 pixels: above the limit, above twice of it
def test_decompression_bomb(tmp_path, monkeypatch, limit):
    file = save(tmp_path, gradient(40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UnreadableImageError, match="DecompressionBomb"):
        read_grey(file)


def test_size_of_the_original(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, exif in (("a.jpg", None), ("b.png", None), ("c.jpg", turned), ("d.png", turned)):
        options = {} if exif is None else {"exif": exif}
        file = save(tmp_path, gradient(300, 500), name, **options)
        for resize in (None, Resize(32), Resize(32, "crop")):
            reading = module.read_grey(file, resize)
            expected = (500, 300) if exif is None else (300, 500)
            assert (reading.width, reading.height) == expected
