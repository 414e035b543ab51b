"""ImageNet weights of torchvision for the one-channel backbones of the encoder."""

import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cxr_lightning.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What torchvision subtracts from and divides grey values (0 to 1) of each colour by."""

STEMS = {"resnet": ("conv1", "bn1"), "densenet": ("features.conv0", "features.norm0")}
"""First convolution and batch norm of each family of networks."""


def load_imagenet(backbone: nn.Module, name: str, path: Path) -> None:
    """Starts a backbone from torchvision's ImageNet weights.

    The stem is folded so that a radiograph x in [-1, 1] gives what the original network gives of
    the same radiograph shown three times with torchvision's normalisation, up to the border, where
    zero padding means another grey value: kernel = sum over colours of w_c / (2 s_c); the constant
    sum of w_c (1/2 - m_c) / s_c is taken out of the running mean of the batch norm behind it.

    Args:
        backbone: Of `Encoder`, changed in place.
        name: `resnet18`, `resnet50` or `densenet121`.
        path: State dict of that network as torchvision saves it, `.pth` or `.safetensors`; nothing
            in it is executed.

    Raises:
        UserError: If the backbone has no such weights, or the file is not theirs.
    """
    family = next((family for family in STEMS if name.startswith(family)), None)
    if family is None:
        raise UserError(
            f"model.imagenet: backbone {name!r} has no ImageNet weights; use resnet18, resnet50 or "
            "densenet121, or leave model.imagenet out."
        )
    state = {_modern(key): tensor for key, tensor in _read(path).items()}
    conv, norm = STEMS[family]
    try:
        kernel = state[f"{conv}.weight"].float()
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (MEAN, STD))
        constant = (kernel * (0.5 - mean) / std).sum(dim=(1, 2, 3))
        state[f"{conv}.weight"] = (0.5 * kernel / std).sum(dim=1, keepdim=True)
        state[f"{norm}.running_mean"] = state[f"{norm}.running_mean"] - constant
        kept = {k: v for k, v in state.items() if not k.startswith(("fc.", "classifier."))}
        backbone.load_state_dict(kept)
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"model.imagenet: {path} does not hold the weights of torchvision's {name} "
            f"({str(error).splitlines()[0]}); save torchvision.models.{name}(weights='DEFAULT')"
            ".state_dict() there."
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(
            f"model.imagenet: no file {path}; save torchvision's state dict there, or leave it out."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(
            f"model.imagenet: {path} cannot be read as weights "
            f"({str(error).splitlines()[0]}); give torchvision's .pth file or a .safetensors file."
        ) from error
    return state


def _modern(key: str) -> str:
    """Name of a weight today: torchvision's files of DenseNet still say `norm.1` for `norm1`."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key)
