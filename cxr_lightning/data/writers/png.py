"""PNG: lossless; says in its text chunks that the image is synthetic."""

from io import BytesIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cxr_lightning.data.writers.facts import ImageFacts


def encode_png(pixels: UInt8[np.ndarray, "h w"], facts: ImageFacts) -> bytes:
    """An 8-bit grey PNG file."""
    note = PngInfo()
    for name, value in facts.texts().items():
        note.add_text(name, value)
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", pnginfo=note)
    return file.getvalue()
