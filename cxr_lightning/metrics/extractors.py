"""Feature extractors of the Fréchet distance: named, frozen, with the hash of their weights.

To add one, write a function from the weights' path to an `Extractor` and enter it in `EXTRACTORS`.
"""

import hashlib
import pickle
import shlex
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from cxr_lightning.artifacts import check_product, load_network
from cxr_lightning.data.transforms import to_model
from cxr_lightning.errors import UserError
from cxr_lightning.files import sha256_file
from cxr_lightning.networks.encoder import Encoder
from cxr_lightning.networks.frozen import Frozen

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
FIXED_SEED = 20220103


class Extractor(Frozen[nn.Module]):
    """A frozen network that turns raw radiographs into feature vectors.

    Attributes:
        name: Its name in `EXTRACTORS`.
        num_features: Length of a feature vector.
        sha256: Of its weights.
    """

    def __init__(self, name: str, network: nn.Module, num_features: int, sha256: str) -> None:
        """Freezes `network`, a module from raw images (b, 1, h, w) to (b, num_features)."""
        super().__init__(network)
        self.name = name
        self.num_features = num_features
        self.sha256 = sha256

    @torch.no_grad()
    def forward(self, raw: UInt8[Tensor, "b 1 h w"]) -> Float32[Tensor, "b f"]:
        """Features of raw radiographs, in fp32 also under autocast."""
        with torch.autocast(raw.device.type, enabled=False):
            features: Tensor = self.network(raw)
        return features.float()


def build_extractor(name: str, weights: Path | None = None) -> Extractor:
    """Builds an extractor by name.

    Args:
        name: One of `extractor_names()`.
        weights: `inception`: its .pth file (default: where torch.hub keeps it); `encoder`: an
            encoder product; `fixed`: none.

    Raises:
        UserError: If the name is unknown, or the weights are missing or not usable.
    """
    if name not in EXTRACTORS:
        raise UserError(
            f"extractor: {name!r} is not an extractor; use one of {', '.join(EXTRACTORS)}."
        )
    return EXTRACTORS[name](weights)


def extractor_names() -> tuple[str, ...]:
    """Names of all extractors."""
    return tuple(EXTRACTORS)


class FixedNetwork(nn.Module):
    """A small convolution network of fixed random weights, for smoke tests only.

    It needs no download and is the same on every machine; its distances order gross differences
    (noise, blur, contrast) but follow no reader's judgement, so they are no result to publish.
    """

    num_features = 64

    def __init__(self) -> None:
        """Draws the weights from a CPU generator, uniform as He et al. 2015 (arXiv 1502.01852)."""
        super().__init__()
        generator = torch.Generator("cpu").manual_seed(FIXED_SEED)
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


class _EncoderFeatures(nn.Module):
    """Embedding of raw radiographs by the project's encoder."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, raw: UInt8[Tensor, "b 1 h w"]) -> Float32[Tensor, "b f"]:
        embedding: Tensor = self.encoder(to_model(raw))
        return embedding


class _ThreeChannels(nn.Module):
    """Gives a colour network the grey image three times."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, raw: UInt8[Tensor, "b 1 h w"]) -> Float32[Tensor, "b f"]:
        features: Tensor = self.network(raw.expand(-1, 3, -1, -1))
        return features


def _build_fixed(weights: Path | None) -> Extractor:
    if weights is not None:
        raise UserError(
            f"extractor_weights: {str(weights)!r} does not belong to the fixed extractor, which "
            "has none; leave the argument out."
        )
    network = FixedNetwork()
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} ".encode() + tensor.numpy().tobytes())
    return Extractor("fixed", network, network.num_features, digest.hexdigest())


def _build_encoder(weights: Path | None) -> Extractor:
    if weights is None:
        raise UserError(
            "extractor_weights: the encoder extractor needs an encoder product; give its folder, "
            "made by 'cxr fit --config configs/moco.yaml'."
        )
    manifest = check_product(weights, "encoder", "extractor_weights")
    encoder = load_network(Encoder, weights)
    return Extractor("encoder", _EncoderFeatures(encoder), encoder.dim, manifest["sha256"])


def _build_inception(weights: Path | None) -> Extractor:
    """Inception-v3 of the FID paper (Heusel et al. 2017, arXiv 1706.08500), 2048 pooled features.

    torchmetrics' form: antialiased bilinear resize to 299 pixels.
    """
    path = weights or Path(torch.hub.get_dir()) / "checkpoints" / Path(INCEPTION_URL).name
    if not path.is_file():
        fetch = f"curl -L --create-dirs -o {shlex.quote(str(path))} {INCEPTION_URL}"
        raise UserError(
            f"extractor_weights: no Inception weights at {str(path)!r}; fetch them with "
            f"'{fetch}', or use --extractor fixed for a smoke test."
        )
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        # torch-fidelity unpickles without restriction; this refuses a file that holds code.
        torch.load(path, map_location="meta", weights_only=True)
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))
    except ModuleNotFoundError as error:
        raise UserError(
            "extractor: inception needs the package torch-fidelity; install it with "
            "'pip install cxr_lightning[inception]', or use --extractor fixed for a smoke test."
        ) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError, AttributeError) as error:
        raise UserError(
            f"extractor_weights: {str(path)!r} does not hold the Inception weights; fetch them "
            f"anew from {INCEPTION_URL}."
        ) from error
    return Extractor("inception", _ThreeChannels(network), 2048, sha256_file(path))


EXTRACTORS: dict[str, Callable[[Path | None], Extractor]] = {
    "inception": _build_inception,
    "encoder": _build_encoder,
    "fixed": _build_fixed,
}
