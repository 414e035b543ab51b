"""The encoder: unit embeddings, one preprocessing, gradients to the image, a product."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from cxr_lightning.networks.encoder import Encoder

FEATURES = {"small": 32, "resnet18": 512, "resnet50": 2048, "densenet121": 1024}


@pytest.mark.parametrize("backbone", list(FEATURES))
def test_shapes_and_unit_norm(backbone) -> None:  # type: ignore[no-untyped-def]
    encoder = Encoder(image_size=32, width=4, backbone=backbone, dim=16).eval()
    image = torch.rand(2, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        assert encoder.features(image).shape == (2, FEATURES[backbone])
        embedding = encoder(image)
    assert encoder.feature_dim == FEATURES[backbone]
    assert embedding.shape == (2, 16)
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))


def test_unknown_backbone_is_refused() -> None:
    with pytest.raises(Exception, match="backbone"):  # ValueError; by type under the shape checks
        Encoder(backbone="vit")  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "side"), [(32, 4), (64, 4)])
def test_small_backbone_suits_its_image_size(size: int, side: int) -> None:
    encoder = Encoder(image_size=size, width=4, backbone="small")
    maps = encoder.backbone[:-2](torch.zeros(1, 1, size, size))  # type: ignore[index]
    assert maps.shape[-2:] == (side, side)


def test_preprocessing_resizes_once_and_passes_gradients() -> None:
    encoder = Encoder(image_size=32, width=4, backbone="small").eval()
    image = (torch.rand(2, 1, 70, 50) * 2 - 1).requires_grad_()
    small = encoder.preprocess(image)
    assert small.shape == (2, 1, 32, 32)
    assert encoder.preprocess(small) is small
    expected = F.interpolate(image, (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(small, expected)
    torch.testing.assert_close(encoder(image), encoder(small))
    encoder(image).square()[:, 0].sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0


def test_embedding_is_unit_float32_under_autocast() -> None:
    torch.manual_seed(0)
    encoder = Encoder(image_size=32, width=8, backbone="small", dim=64).eval()
    image = torch.rand(4, 1, 32, 32) * 2 - 1
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = encoder(image)
    assert half.dtype == torch.float32
    # bfloat16 normalisation would leave norms off by up to 2**-9
    torch.testing.assert_close(half.norm(dim=1), torch.ones(4), rtol=0, atol=1e-6)
    with torch.no_grad():
        cosine = (half * encoder(image)).sum(dim=1)
    assert (1 - cosine).max() < 1e-3


def test_product_round_trip(tmp_path: Path) -> None:
    encoder = Encoder(image_size=32, width=4, backbone="small", dim=16).eval()
    encoder.save_pretrained(tmp_path)
    again = Encoder.from_pretrained(tmp_path, strict=True)
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again(image), encoder(image), rtol=0, atol=1e-6)
    assert (again.image_size, again.dim, again.feature_dim) == (32, 16, 32)
