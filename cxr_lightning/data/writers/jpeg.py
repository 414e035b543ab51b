"""JPEG, as CheXpert's files are; says in its comment and its EXIF that the image is synthetic."""

from io import BytesIO

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image

from cxr_lightning.data.writers.facts import ImageFacts

QUALITY = 95
"""A grey value is off by about 1 after decoding."""


def encode_jpeg(pixels: UInt8[np.ndarray, "h w"], facts: ImageFacts) -> bytes:
    """An 8-bit grey JPEG file."""
    texts = facts.texts()
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "Synthetic chest radiograph; no patient was imaged"
    exif[ExifTags.Base.Software] = texts["Software"]
    comment = "; ".join(f"{name}: {value}" for name, value in texts.items())
    file = BytesIO()
    Image.fromarray(pixels).save(
        file, format="JPEG", quality=QUALITY, comment=comment.encode(), exif=exif
    )
    return file.getvalue()
