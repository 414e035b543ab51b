"""What holds for every extractor: frozen, fp32, any image size, each image for itself."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cxr_lightning.errors import UserError
from cxr_lightning.metrics.extractors import Extractor
from cxr_lightning.metrics.extractors.base import reading

NAMES = ("inception", "xrv", "rad_dino", "encoder", "module", "backbone", "fixed", "pixels")


@pytest.mark.parametrize("name", NAMES)
def test_always_eval_and_without_gradient(
    name: str, build: Callable[..., Extractor], make_raw: Callable[..., Tensor]
) -> None:
    extractor = build(name)
    before = {key: value.clone() for key, value in extractor.network.state_dict().items()}
    nn.ModuleList([extractor]).train()
    assert not any(module.training for module in extractor.modules())
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    assert not extractor(make_raw()).requires_grad
    after = extractor.network.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("name", NAMES)
def test_fp32_under_autocast(
    name: str, build: Callable[..., Extractor], make_raw: Callable[..., Tensor]
) -> None:
    extractor, raw = build(name), make_raw(2)
    expected = extractor(raw)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = extractor(raw)
    assert features.dtype == torch.float32
    assert torch.equal(features, expected)


@pytest.mark.parametrize("size", [28, 33, 64, 224])
@pytest.mark.parametrize("name", NAMES)
def test_any_size_and_each_image_for_itself(
    name: str, size: int, build: Callable[..., Extractor], make_raw: Callable[..., Tensor]
) -> None:
    extractor, raw = build(name, size), make_raw(2, size)
    features = extractor(raw)
    assert features.shape == (2, extractor.num_features)
    assert features.isfinite().all()
    assert not torch.allclose(features[0], features[1])
    alone = extractor(raw[1:])
    torch.testing.assert_close(features[1:], alone, rtol=1e-4, atol=1e-4 * float(alone.std()))


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_is(name: str, build: Callable[..., Extractor]) -> None:
    extractor = build(name)
    assert extractor.name == {"backbone": "module"}.get(name, name)
    assert len(bytes.fromhex(extractor.sha256)) == 32
    assert extractor.preprocessing.startswith("grey")


def test_reading_passes_users_errors_on() -> None:
    with pytest.raises(UserError, match="as it was"), reading(Path("a"), "b", "c"):
        raise UserError("as it was")
    sentence = r"^extractor: 'a' does not hold b; c\.$"
    with pytest.raises(UserError, match=sentence), reading(Path("a"), "b", "c"):
        raise LookupError
