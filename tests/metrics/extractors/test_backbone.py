"""The module extractor with torchvision weights."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms.v2 import functional as transforms

from cxr_lightning.errors import UserError
from cxr_lightning.metrics.extractors import build_extractor


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return tmp_path / "weights.safetensors"


@pytest.mark.parametrize(
    ("arch", "features"), [("resnet18", 512), ("resnet50", 2048), ("densenet121", 1024)]
)
def test_equals_torchvision(
    arch: str, features: int, weights: Path, make_raw: Callable[..., Tensor]
) -> None:
    torch.manual_seed(0)
    network = models.get_model(arch, weights=None).eval()
    save_file(network.state_dict(), weights, metadata={"arch": arch})
    extractor, raw = build_extractor("module", weights), make_raw(2, 300)
    image = transforms.resize(raw.expand(-1, 3, -1, -1) / 255, [224, 224], antialias=True)
    image = transforms.normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    seen: list[Tensor] = []
    head = network.classifier if arch == "densenet121" else network.fc
    head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        network(image)
    assert extractor.num_features == features
    scale = float(seen[0].std())
    torch.testing.assert_close(extractor(raw), seen[0], rtol=1e-4, atol=1e-4 * scale)
    assert extractor.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_architecture_beside_the_file_and_no_classifier(
    weights: Path, make_raw: Callable[..., Tensor]
) -> None:
    state = models.resnet18(weights=None).state_dict()
    save_file({k: v for k, v in state.items() if not k.startswith("fc.")}, weights)
    (weights.parent / "config.json").write_text(json.dumps({"arch": "resnet18"}))
    assert build_extractor("module", weights)(make_raw()).shape == (3, 512)


def test_architecture_is_not_named(weights: Path) -> None:
    save_file(nn.Linear(2, 2).state_dict(), weights)
    with pytest.raises(UserError, match=r"^extractor: the architecture of .* is None; name one of"):
        build_extractor("module", weights)
    save_file(nn.Linear(2, 2).state_dict(), weights, metadata={"arch": "vit_b_16"})
    with pytest.raises(UserError, match=r"is 'vit_b_16'; name one of resnet18, resnet50, .*\.$"):
        build_extractor("module", weights)


def test_weights_of_another_network(weights: Path) -> None:
    save_file(nn.Linear(2, 2).state_dict(), weights, metadata={"arch": "resnet18"})
    with pytest.raises(UserError, match="does not hold the weights of torchvision's resnet18"):
        build_extractor("module", weights)


def test_damaged_file(weights: Path, backbone_file: Path) -> None:
    for content in (b"", b"junk", backbone_file.read_bytes()[:-100]):
        weights.write_bytes(content)
        with pytest.raises(UserError, match="^extractor: .* does not hold safetensors weights"):
            build_extractor("module", weights)


def test_damaged_config(weights: Path) -> None:
    save_file(nn.Linear(2, 2).state_dict(), weights)
    (weights.parent / "config.json").write_text("[]")
    with pytest.raises(UserError, match="^extractor: "):
        build_extractor("module", weights)
