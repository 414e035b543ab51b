"""The two forms of an image: raw (uint8, 0 to 255) and model (float, -1 to 1)."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def to_model(raw: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Raw grey values 0 to 255 to model range [-1, 1]."""
    return raw.float() / 127.5 - 1.0


def to_image(x: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Model range [-1, 1] to raw grey values: clamped, scaled, rounded (not truncated)."""
    return ((x.float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
