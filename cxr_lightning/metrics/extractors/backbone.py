"""Weights of a torchvision classifier in a .safetensors file, for the module extractor."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from cxr_lightning.errors import UserError
from cxr_lightning.files import sha256_file
from cxr_lightning.metrics.extractors.base import Extractor, Recipe, reading

CLASSIFIERS = {"resnet18": "fc", "resnet50": "fc", "densenet121": "classifier"}
"""Architectures, each with the name of the layer that makes classes of pooled features."""

SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, as torchvision documents
PREPROCESSING = f"grey three times, antialiased bilinear to {SIZE} px, ImageNet mean and deviation"


class _Backbone(nn.Module):
    """Pooled features of raw radiographs by a network without its classifier."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, raw: UInt8[Tensor, "b 1 h w"]) -> Float32[Tensor, "b f"]:
        image = F.interpolate(raw.float() / 255, (SIZE, SIZE), mode="bilinear", antialias=True)
        mean = torch.tensor(MEAN, device=raw.device)[:, None, None]
        std = torch.tensor(STD, device=raw.device)[:, None, None]
        features: Tensor = self.network((image - mean) / std)
        return features


def backbone_recipe(path: Path) -> Recipe:
    """A torchvision network with ImageNet preprocessing; its pooled features.

    Args:
        path: Its state dict, with or without classifier; the architecture stands in the file's
            metadata as `arch`, or in a config.json beside it.

    Raises:
        UserError: If the architecture is not named or not known, or the file is damaged.
    """
    with reading(path, "safetensors weights", "write it with safetensors.torch.save_file"):
        arch = _read_arch(path)
    if arch not in CLASSIFIERS:
        raise UserError(
            f"extractor: the architecture of {str(path)!r} is {arch!r}; name one of "
            f"{', '.join(CLASSIFIERS)} as 'arch' in the file's metadata or in a config.json beside "
            "it."
        )
    sha256 = sha256_file(path)
    return Recipe("module", path.stem, sha256, partial(_load, path, sha256, arch))


def _read_arch(path: Path) -> Any:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    config = path.with_name("config.json")
    if "arch" not in metadata and config.is_file():
        metadata = json.loads(config.read_text())
    return metadata.get("arch")


def _load(path: Path, sha256: str, arch: str) -> Extractor:
    from torchvision import models

    network = models.get_model(arch, weights=None)
    head = CLASSIFIERS[arch]
    features: int = getattr(network, head).in_features
    setattr(network, head, nn.Identity())
    with reading(path, f"the weights of torchvision's {arch}", "name the right 'arch'"):
        state = load_file(path)
        network.load_state_dict({k: v for k, v in state.items() if not k.startswith(f"{head}.")})
    return Extractor("module", _Backbone(network), features, sha256, PREPROCESSING)
