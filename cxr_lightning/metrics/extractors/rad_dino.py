"""The rad_dino extractor: RAD-DINO, the feature space of the CheXGenBench leaderboard."""

import json
import math
import shlex
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from cxr_lightning.errors import UserError
from cxr_lightning.files import sha256_file
from cxr_lightning.metrics.extractors.base import Extractor, Recipe, reading, require_package

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
BICUBIC = 3  # PIL's number


class Preprocessing(NamedTuple):
    """What RAD-DINO's image processor does, as its preprocessor_config.json says.

    Attributes:
        edge: Pixels of the shortest edge after resizing.
        crop: Height and width of the centre crop.
        mean: Of each colour, in [0, 1].
        std: Of each colour.
    """

    edge: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        """What results say about it."""
        return (
            f"grey three times, antialiased bicubic to shortest edge {self.edge} px, 8 bit, centre "
            f"crop {self.crop} px, mean {self.mean[0]:g}, standard deviation {self.std[0]:g}"
        )


def read_preprocessing(path: Path) -> Preprocessing:
    """Reads a preprocessor_config.json and refuses every other preprocessing.

    Raises:
        ValueError, KeyError, TypeError: If it is damaged or does something else.
    """
    config = json.loads(path.read_text())
    steps = ("resize", "center_crop", "rescale", "normalize")
    edge, crop = config["size"]["shortest_edge"], config["crop_size"]
    if not all(config[f"do_{step}"] for step in steps):
        raise ValueError(f"a step of {steps} is switched off")
    if config["resample"] != BICUBIC or not math.isclose(config["rescale_factor"], 1 / 255):
        raise ValueError("resample and rescale_factor must be 3 and 1/255")
    if crop["height"] != crop["width"] or not 0 < crop["height"] <= edge:
        raise ValueError("the crop must be a square within the shortest edge")
    return Preprocessing(
        edge, crop["height"], tuple(config["image_mean"]), tuple(config["image_std"])
    )


def preprocess(raw: UInt8[Tensor, "b 1 h w"], how: Preprocessing) -> Float[Tensor, "b 3 s s"]:
    """Resizes, crops and standardises as the image processor does, on any device.

    PIL and torchvision resize the rows, then the columns, and round to 8 bits after each; so does
    this. They weigh with integers, so a pixel can differ from theirs by one or two grey values,
    as theirs do from each other.
    """
    height, width = raw.shape[-2:]
    short = min(height, width)
    size = (height * how.edge // short, width * how.edge // short)
    image = raw.float()
    for shape in ((height, size[1]), size):
        image = F.interpolate(image, shape, mode="bicubic", antialias=True).round().clamp(0, 255)
    top, left = (size[0] - how.crop) // 2, (size[1] - how.crop) // 2
    image = image[:, :, top : top + how.crop, left : left + how.crop] / 255
    mean = torch.tensor(how.mean, device=raw.device)[:, None, None]
    std = torch.tensor(how.std, device=raw.device)[:, None, None]
    return (image - mean) / std


class _Features(nn.Module):
    """CLS token of raw radiographs after the last layer norm."""

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        self.preprocessing = preprocessing

    def forward(self, raw: UInt8[Tensor, "b 1 h w"]) -> Float32[Tensor, "b f"]:
        features: Tensor = self.network(preprocess(raw, self.preprocessing)).pooler_output
        return features


def rad_dino_recipe(weights: Path | None) -> Recipe:
    """RAD-DINO, a DINOv2 ViT-B/14 on chest X-rays, 768 features (the CLS token).

    Pérez-García et al. 2025, Nature Machine Intelligence, doi 10.1038/s42256-024-00965-w.

    Args:
        weights: The folder that 'hf download microsoft/rad-dino --local-dir DIR' writes. Only
            model.safetensors is read, never a pickle.

    Raises:
        UserError: If the folder, files of it or the package transformers are missing.
    """
    if weights is None:
        raise UserError(
            "extractor: rad_dino needs the folder of its weights; fetch it with "
            "'hf download microsoft/rad-dino --local-dir DIR' and give rad_dino=DIR."
        )
    files = (CONFIG, PREPROCESSOR, WEIGHTS)
    missing = [name for name in files if not (weights / name).is_file()]
    if missing:
        raise UserError(
            f"extractor: the RAD-DINO folder {str(weights)!r} lacks {', '.join(missing)}; fetch it "
            f"with '{_fetch(weights)}'."
        )
    require_package("transformers", "rad_dino", "transformers")
    sha256 = sha256_file(weights / WEIGHTS)
    return Recipe("rad_dino", weights.name, sha256, partial(_load, weights, sha256))


def _load(folder: Path, sha256: str) -> Extractor:
    from transformers import Dinov2Model

    with reading(folder, "RAD-DINO", f"fetch it anew with '{_fetch(folder)}'"):
        preprocessing = read_preprocessing(folder / PREPROCESSOR)
        loaded: Any = Dinov2Model.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        network, report = loaded
        if report["missing_keys"]:  # transformers draws those at random
            raise ValueError(f"{WEIGHTS} lacks {report['missing_keys']}")
    dim = network.config.hidden_size
    features = _Features(network.float(), preprocessing)
    return Extractor("rad_dino", features, dim, sha256, str(preprocessing))


def _fetch(folder: Path) -> str:
    return f"hf download microsoft/rad-dino --local-dir {shlex.quote(str(folder))}"
