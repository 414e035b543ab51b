"""The module extractor: any network that a user brings as a file."""

from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from cxr_lightning.errors import UserError
from cxr_lightning.files import sha256_file
from cxr_lightning.metrics.extractors.backbone import backbone_recipe
from cxr_lightning.metrics.extractors.base import Extractor, Recipe, reading
from cxr_lightning.networks.torchscript import load_torchscript

CONTRACT = (
    "a TorchScript module that maps images (b, 1, h, w) or (b, 3, h, w) in [0, 1] to features "
    "(b, f)"
)
TRIED_SIZES = (64, 224)


class _Module(nn.Module):
    """Gives a module the grey image in [0, 1], once or three times."""

    def __init__(self, module: nn.Module, channels: int) -> None:
        super().__init__()
        self.module = module
        self.channels = channels

    def forward(self, raw: UInt8[Tensor, "b 1 h w"]) -> Float[Tensor, "b f"]:
        features: Tensor = self.module((raw.float() / 255).expand(-1, self.channels, -1, -1))
        return features


def module_recipe(weights: Path | None) -> Recipe:
    """A TorchScript module, or torchvision weights as `backbone_recipe` describes them.

    TorchScript is a program in a language of its own: it cannot run Python, but it can read and
    write files, so give only modules whose origin you trust.

    Args:
        weights: A file of torch.jit.save (.pt, .ts), or a .safetensors file.

    Raises:
        UserError: If there is none.
    """
    if weights is None:
        raise UserError(
            "extractor: module needs a file; give module=FILE with a TorchScript module or "
            "torchvision weights in a .safetensors file."
        )
    if (weights / "manifest.json").is_file():
        raise UserError(
            f"extractor: {str(weights)!r} is a product and no module; give encoder={weights}."
        )
    if not weights.is_file():
        raise UserError(f"extractor: no file at {str(weights)!r}; give module=FILE.")
    if weights.suffix == ".safetensors":
        return backbone_recipe(weights)
    sha256 = sha256_file(weights)
    return Recipe("module", weights.stem, sha256, partial(_load, weights, sha256))


def _load(path: Path, sha256: str) -> Extractor:
    remedy = "write one with torch.jit.script(network).save(FILE)"
    with reading(path, CONTRACT, remedy):
        module = load_torchscript(path)
        channels, features = _probe(module)
    preprocessing = f"grey in [0, 1], {'three times' if channels == 3 else 'one channel'}"
    return Extractor("module", _Module(module, channels), features, sha256, preprocessing)


@torch.no_grad()
def _probe(module: Any) -> tuple[int, int]:
    """Channels that a module takes and features that it gives.

    Raises:
        ValueError: If it takes no images or gives no features.
    """
    for channels, size in product((1, 3), TRIED_SIZES):
        with suppress(RuntimeError):
            features = module(torch.zeros(2, channels, size, size))
            if isinstance(features, Tensor) and features.ndim == 2 and len(features) == 2:
                return channels, features.shape[1]
            raise ValueError(f"it gives {features}")
    raise ValueError("it takes neither one nor three channels")
