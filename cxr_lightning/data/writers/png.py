"""PNG: lossless; says in its text chunks that the image is synthetic."""

from io import BytesIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cxr_lightning.data.writers.facts import ImageFacts, Share, synthetic_texts


def encode_png(pixels: UInt8[np.ndarray, "h w"], facts: ImageFacts) -> bytes:
    """An 8-bit grey PNG file of one synthetic image."""
    return png_bytes(pixels, synthetic_note(facts.product))


def png_bytes(pixels: UInt8[np.ndarray, "h w"], note: PngInfo) -> bytes:
    """An 8-bit grey PNG file with text chunks."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", pnginfo=note)
    return file.getvalue()


def synthetic_note(product: str | None, share: Share = "yes") -> PngInfo:
    """The text chunks of a synthetic image; see `synthetic_texts`."""
    note = PngInfo()
    for name, value in synthetic_texts(product, share).items():
        note.add_text(name, value)
    return note
