"""The encoder extractor: the embedding of the project's own MoCo encoder."""

from functools import partial
from pathlib import Path

from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from cxr_lightning.artifacts import check_product, load_network, run_name
from cxr_lightning.data.transforms import to_model
from cxr_lightning.errors import UserError
from cxr_lightning.metrics.extractors.base import Extractor, Recipe
from cxr_lightning.networks.encoder import Encoder


class _Embedding(nn.Module):
    """Embedding of raw radiographs by the project's encoder."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, raw: UInt8[Tensor, "b 1 h w"]) -> Float32[Tensor, "b f"]:
        embedding: Tensor = self.encoder(to_model(raw))
        return embedding


def encoder_recipe(weights: Path | None) -> Recipe:
    """The encoder extractor.

    Args:
        weights: An encoder product.

    Raises:
        UserError: If there is none, or it is not whole.
    """
    if weights is None:
        raise UserError(
            "extractor: the encoder extractor needs an encoder product; give its folder, made by "
            "'cxr fit --config configs/moco.yaml'."
        )
    sha256: str = check_product(weights, "encoder", "extractor")["sha256"]
    return Recipe("encoder", run_name(weights), sha256, partial(_load, weights, sha256))


def _load(folder: Path, sha256: str) -> Extractor:
    encoder = load_network(Encoder, folder)
    preprocessing = f"grey in [-1, 1], antialiased bilinear to {encoder.image_size} px"
    return Extractor("encoder", _Embedding(encoder), encoder.dim, sha256, preprocessing)
