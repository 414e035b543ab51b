"""The inception extractor: what "FID" means without another word."""

import shlex
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from cxr_lightning.errors import UserError
from cxr_lightning.files import sha256_file
from cxr_lightning.metrics.extractors.base import (
    SMOKE_TEST,
    Extractor,
    Recipe,
    reading,
    require_package,
)

URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
PREPROCESSING = "grey three times, antialiased bilinear to 299 px, (x - 128) / 128"


class _ThreeChannels(nn.Module):
    """Gives a colour network the grey image three times."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, raw: UInt8[Tensor, "b 1 h w"]) -> Float32[Tensor, "b f"]:
        features: Tensor = self.network(raw.expand(-1, 3, -1, -1))
        return features


def inception_recipe(weights: Path | None) -> Recipe:
    """Inception-v3 of the FID paper (Heusel et al. 2017, arXiv 1706.08500), 2048 pooled features.

    torchmetrics' form: antialiased bilinear resize to 299 pixels.

    Args:
        weights: Its .pth file; default: where torch.hub keeps it.

    Raises:
        UserError: If the file or the package torch-fidelity is missing.
    """
    path = weights or Path(torch.hub.get_dir()) / "checkpoints" / Path(URL).name
    if not path.is_file():
        fetch = f"curl -L --create-dirs -o {shlex.quote(str(path))} {URL}"
        raise UserError(
            f"extractor: no Inception weights at {str(path)!r}; fetch them with '{fetch}', "
            f"{SMOKE_TEST}."
        )
    require_package("torch_fidelity", "inception", "torch-fidelity")
    sha256 = sha256_file(path)
    return Recipe("inception", path.stem, sha256, partial(_load, path, sha256))


def _load(path: Path, sha256: str) -> Extractor:
    from torchmetrics.image.fid import NoTrainInceptionV3

    with reading(path, "the Inception weights", f"fetch them anew from {URL}"):
        # torch-fidelity unpickles without restriction; this refuses a file that holds code.
        torch.load(path, map_location="meta", weights_only=True)
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))
    return Extractor("inception", _ThreeChannels(network), 2048, sha256, PREPROCESSING)
