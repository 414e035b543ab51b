"""The fixed extractor: random weights without a file, for smoke tests."""

import hashlib
from pathlib import Path

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from cxr_lightning.data.transforms import to_model
from cxr_lightning.errors import UserError
from cxr_lightning.metrics.extractors.base import Extractor, Recipe

SEED = 20220103


class FixedNetwork(nn.Module):
    """A small convolution network of fixed random weights, for smoke tests only.

    It needs no download and is the same on every machine; its distances order gross differences
    (noise, blur, contrast) but follow no reader's judgement, so they are no result to publish.
    """

    num_features = 64

    def __init__(self) -> None:
        """Draws the weights from a CPU generator, uniform as He et al. 2015 (arXiv 1502.01852)."""
        super().__init__()
        generator = torch.Generator("cpu").manual_seed(SEED)
        self.layers = nn.Sequential()
        for inputs, outputs in ((1, 16), (16, 32), (32, self.num_features)):
            convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
            # rand is exact integer arithmetic, so the same bits on every CPU; randn is not.
            uniform = torch.rand(convolution.weight.shape, generator=generator) * 2 - 1
            bound = (6 / (9 * inputs)) ** 0.5
            convolution.weight.data.copy_(uniform * bound)
            self.layers.extend([convolution, nn.ReLU()])

    def forward(self, raw: UInt8[Tensor, "b 1 h w"]) -> Float32[Tensor, "b f"]:
        """Activations averaged over the image."""
        features: Tensor = self.layers(to_model(raw)).mean(dim=(2, 3))
        return features


def fixed_recipe(weights: Path | None) -> Recipe:
    """The fixed extractor, 64 features.

    Raises:
        UserError: If weights are given.
    """
    if weights is not None:
        raise UserError(
            f"extractor: {str(weights)!r} does not belong to the fixed extractor, which has no "
            "weights; leave the argument out."
        )
    network = FixedNetwork()
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} ".encode() + tensor.numpy().tobytes())
    sha256 = digest.hexdigest()
    extractor = Extractor("fixed", network, network.num_features, sha256, "grey in [-1, 1]")
    return Recipe("fixed", "", sha256, lambda: extractor)
