"""The pixel extractor: the image itself, so that a distance is a grey-value difference."""

import hashlib

from jaxtyping import Float32, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from cxr_lightning.metrics.extractors.base import Extractor

MAX_SIDE = 64


class _Pixels(nn.Module):
    """Averages images to `side` pixels and flattens them."""

    def __init__(self, size: int, side: int) -> None:
        super().__init__()
        self.size = size
        self.side = side

    def forward(self, raw: UInt8[Tensor, "b 1 h w"]) -> Float32[Tensor, "b f"]:
        if raw.shape[-2:] != (self.size, self.size):
            raise ValueError(
                f"`raw` must have {self.size} x {self.size} pixels, got {tuple(raw.shape[-2:])}"
            )
        # floats before any difference is taken: uint8 wraps modulo 256
        image = F.adaptive_avg_pool2d(raw.float() / 255, self.side)
        return image.flatten(1) / self.side


def pixel_extractor(size: int) -> Extractor:
    """Pixels of a small version of the image, as features.

    The Euclidean distance of two feature vectors is the root mean square difference of the pixels,
    from 0 (equal) to 1 (black and white).

    Args:
        size: Height and width of the images; more than 64 are averaged down to 64.
    """
    side = min(size, MAX_SIDE)
    preprocessing = f"grey in [0, 1], average to {side} px, divided by {side}"
    sha256 = hashlib.sha256(f"pixels: {preprocessing}".encode()).hexdigest()
    return Extractor("pixels", _Pixels(size, side), side**2, sha256, preprocessing)
