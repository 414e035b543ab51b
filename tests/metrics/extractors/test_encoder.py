"""The encoder extractor."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cxr_lightning.artifacts import product_sha256
from cxr_lightning.data.transforms import to_model
from cxr_lightning.errors import UserError
from cxr_lightning.metrics.extractors import build_extractor
from cxr_lightning.networks.encoder import Encoder


def test_gives_the_embedding_and_the_products_hash(
    products: Path, make_raw: Callable[..., Tensor]
) -> None:
    extractor = build_extractor("encoder", products / "encoder")
    encoder = Encoder.from_pretrained(products / "encoder").eval()
    raw = make_raw(3, 40)
    with torch.no_grad():
        assert torch.equal(extractor(raw), encoder(to_model(raw)))
    assert extractor.num_features == 8
    assert extractor.sha256 == product_sha256(products / "encoder")
    assert extractor.preprocessing == "grey in [-1, 1], antialiased bilinear to 32 px"


def test_missing_product(tmp_path: Path, products: Path) -> None:
    with pytest.raises(UserError, match="^extractor: the encoder extractor needs an encoder"):
        build_extractor("encoder")
    with pytest.raises(UserError, match="^extractor: no product at"):
        build_extractor("encoder", tmp_path / "absent")
    with pytest.raises(UserError, match="^extractor: .* is a product of kind 'autoencoder'"):
        build_extractor("encoder", products / "autoencoder")
