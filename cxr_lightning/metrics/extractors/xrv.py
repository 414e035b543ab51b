"""The xrv extractor: the DenseNet-121 of TorchXRayVision, trained on seven chest X-ray sets."""

import shlex
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Float32, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from cxr_lightning.data.transforms import to_model
from cxr_lightning.errors import UserError
from cxr_lightning.files import sha256_file
from cxr_lightning.metrics.extractors.base import Extractor, Recipe, reading, require_package
from cxr_lightning.metrics.extractors.pickled import read_network

URL = (
    "https://github.com/mlmed/torchxrayvision/releases/download/v1/"
    "nih-pc-chex-mimic_ch-google-openi-kaggle-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt"
)
FOLDER = Path("~/.torchxrayvision/models_data")
SIZE = 224
PREPROCESSING = f"grey in [-1024, 1024], antialiased bilinear to {SIZE} px"
CLASSES = (
    "torchxrayvision.models.DenseNet",
    "torchxrayvision.models._DenseBlock",
    "torchxrayvision.models._DenseLayer",
    "torchxrayvision.models._Transition",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.batchnorm.BatchNorm2d",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.conv.Conv2d",
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.pooling.AvgPool2d",
    "torch.nn.modules.pooling.MaxPool2d",
)


class _Features(nn.Module):
    """Pooled features of raw radiographs, in the library's value range and size."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, raw: UInt8[Tensor, "b 1 h w"]) -> Float32[Tensor, "b f"]:
        image = F.interpolate(to_model(raw) * 1024, (SIZE, SIZE), mode="bilinear", antialias=True)
        features: Tensor = self.network.features2(image)
        return features


def xrv_recipe(weights: Path | None) -> Recipe:
    """DenseNet-121 `densenet121-res224-all` of TorchXRayVision, 1024 pooled features.

    Cohen et al. 2022, arXiv 2111.00595. The published file is a network pickled by torch < 1.4,
    which `torch.load(weights_only=True)` cannot read; `read_network` says how it is read safely. A
    file with the network's state dict does as well. The library's own download is never used.

    Args:
        weights: Its .pt file; default: where torchxrayvision keeps it.

    Raises:
        UserError: If the file or the package is missing.
    """
    path = weights or FOLDER.expanduser() / Path(URL).name
    if not path.is_file():
        raise UserError(
            f"extractor: no TorchXRayVision weights at {str(path)!r}; fetch them with "
            f"'curl -L --create-dirs -o {shlex.quote(str(path))} {URL}'."
        )
    require_package("torchxrayvision", "xrv", "torchxrayvision")
    sha256 = sha256_file(path)
    return Recipe("xrv", path.stem, sha256, partial(_load, path, sha256))


def _load(path: Path, sha256: str) -> Extractor:
    with warnings.catch_warnings():  # on import the library silences all warnings for good
        warnings.simplefilter("ignore")
        from torchxrayvision.models import DenseNet

    network = DenseNet(num_classes=18)
    with reading(path, "the TorchXRayVision weights", f"fetch them anew from {URL}"):
        state = read_network(path, CLASSES)
        state.pop("op_threshs", None)  # thresholds of the classifier
        network.load_state_dict(state)
    return Extractor("xrv", _Features(network), 1024, sha256, PREPROCESSING)
