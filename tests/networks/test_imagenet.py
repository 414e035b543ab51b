"""ImageNet weights in one-channel backbones: what the original gives of grey images."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from cxr_lightning.errors import UserError
from cxr_lightning.networks.encoder import Encoder
from cxr_lightning.networks.imagenet import MEAN, STD, load_imagenet


def original(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = models.get_model(name, weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return network.eval()


def stem(network: nn.Module, name: str) -> nn.Sequential:
    if name == "densenet121":
        return nn.Sequential(network.features.conv0, network.features.norm0)
    return nn.Sequential(network.conv1, network.bn1)


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_stem_gives_what_the_original_gives_of_a_grey_image(name: str, tmp_path: Path) -> None:
    source = original(name)
    state = source.state_dict()
    if name == "densenet121":  # names as in torchvision's own file
        state = {
            k.replace("norm1", "norm.1").replace("conv2", "conv.2"): v for k, v in state.items()
        }
    torch.save(state, tmp_path / "weights.pth")
    encoder = Encoder(image_size=32, backbone=name, dim=8).eval()  # type: ignore[arg-type]
    load_imagenet(encoder.backbone, name, tmp_path / "weights.pth")
    image = torch.rand(2, 1, 32, 32) * 2 - 1
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (MEAN, STD))
    coloured = ((image + 1) / 2 - mean) / std
    with torch.no_grad():
        found, expected = stem(encoder.backbone, name)(image), stem(source, name)(coloured)
    inner = (..., slice(2, -2), slice(2, -2))  # a 7 x 7 kernel of stride 2 reaches the border there
    torch.testing.assert_close(found[inner], expected[inner], rtol=1e-4, atol=1e-4)
    kept = {k: v for k, v in source.state_dict().items() if "conv2.weight" in k}
    for key, tensor in kept.items():
        assert torch.equal(encoder.backbone.state_dict()[key], tensor)


def test_reads_safetensors(tmp_path: Path) -> None:
    source = original("resnet18")
    save_file(
        {k: v.contiguous() for k, v in source.state_dict().items()}, tmp_path / "w.safetensors"
    )
    encoder = Encoder(image_size=32, dim=8)
    load_imagenet(encoder.backbone, "resnet18", tmp_path / "w.safetensors")
    weight = encoder.backbone.state_dict()["layer4.1.conv2.weight"]
    assert torch.equal(weight, source.state_dict()["layer4.1.conv2.weight"])


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('executed')",)


def test_wrong_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    encoder = Encoder(image_size=32, dim=8)
    torch.save(Evil(), tmp_path / "evil.pth")
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "part.pth")
    (tmp_path / "text.safetensors").write_text("no weights")
    for file, reason in (
        ("none.pth", "no file"),
        ("evil.pth", "cannot be read"),
        ("text.safetensors", "cannot be read"),
        ("part.pth", "does not hold the weights of torchvision's resnet18"),
    ):
        with pytest.raises(UserError, match=reason) as error:
            load_imagenet(encoder.backbone, "resnet18", tmp_path / file)
        assert str(error.value).startswith("model.imagenet: ")
    with pytest.raises(UserError, match="'small' has no ImageNet weights"):
        load_imagenet(Encoder(backbone="small").backbone, "small", tmp_path / "part.pth")
