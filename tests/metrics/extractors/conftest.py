"""Weights of every extractor in the published file formats, random and small, made once."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cxr_lightning.metrics.extractors import Extractor, build_extractor, pixel_extractor

PREPROCESSOR = {
    "crop_size": {"height": 56, "width": 56},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5307, 0.5307, 0.5307],
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.2583, 0.2583, 0.2583],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 56},
}
"""That of microsoft/rad-dino, but for 56 instead of 518 pixels."""


class _Convolution(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, 5, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image).relu().mean(dim=(2, 3))


@pytest.fixture(scope="session")
def make_raw() -> Callable[..., Tensor]:
    """Makes images (count, 1, size, size) of noise, one darker than the next, always the same."""

    def make(count: int = 3, size: int = 32) -> Tensor:
        generator = torch.Generator().manual_seed(size)
        noise = torch.randint(0, 256, (count, 1, size, size), generator=generator)
        return (noise * torch.arange(1, count + 1)[:, None, None, None] // count).byte()

    return make


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict, as torch-fidelity publishes it."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *_, **__: None)
        torch.manual_seed(0)
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def xrv_network() -> nn.Module:
    """The library's network with random weights and statistics."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = pytest.importorskip("torchxrayvision.models")
    torch.manual_seed(0)
    network = models.DenseNet(num_classes=18).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 1, 2)
    return network


@pytest.fixture(scope="session")
def xrv_file(tmp_path_factory: pytest.TempPathFactory, xrv_network: nn.Module) -> Path:
    """The network as an object in the format before torch 1.6, with what torch 1.3 left in it."""
    from torch.nn.backends.thnn import _get_thnn_function_backend

    class Backend:
        def __reduce__(self) -> tuple[object, ...]:
            return _get_thnn_function_backend, ()

    path = tmp_path_factory.mktemp("xrv") / "xrv.pt"
    kept = [dict(module.__dict__) for module in xrv_network.modules()]
    for module in xrv_network.modules():
        module.__dict__["_backend"] = Backend()
        for name in ("_non_persistent_buffers_set", "_is_full_backward_hook"):
            del module.__dict__[name]
    torch.save(xrv_network, path, _use_new_zipfile_serialization=False)
    for module, attributes in zip(xrv_network.modules(), kept, strict=True):
        module.__dict__.clear()
        module.__dict__.update(attributes)
    return path


@pytest.fixture(scope="session")
def rad_dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Dinov2 as save_pretrained writes it, with RAD-DINO's preprocessing."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    torch.manual_seed(0)
    network = transformers.Dinov2Model(config)
    for parameter in network.parameters():  # it starts with layers that do almost nothing
        nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("rad_dino") / "rad-dino"
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return folder


@pytest.fixture(scope="session")
def make_module() -> Callable[[Path, int], nn.Module]:
    """Writes a TorchScript module for so many channels and returns the network it is made of."""

    def make(path: Path, channels: int) -> nn.Module:
        torch.manual_seed(channels)
        network = _Convolution(channels).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated
            torch.jit.script(network).save(path)
        return network

    return make


@pytest.fixture(scope="session")
def module_file(
    tmp_path_factory: pytest.TempPathFactory, make_module: Callable[[Path, int], nn.Module]
) -> Path:
    """A TorchScript module of one channel."""
    path = tmp_path_factory.mktemp("module") / "module.pt"
    make_module(path, 1)
    return path


@pytest.fixture(scope="session")
def backbone_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Torchvision weights that name their architecture."""
    from torchvision import models

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    save_file(models.resnet18(weights=None).state_dict(), path, metadata={"arch": "resnet18"})
    return path


@pytest.fixture(scope="session")
def build(request: pytest.FixtureRequest) -> Callable[..., Extractor]:
    """Builds any extractor, with the weights above; each once a session."""
    built: dict[str, Extractor] = {}

    def make(name: str, size: int = 32) -> Extractor:
        if name == "fixed":
            return build_extractor(name)
        if name == "pixels":
            return pixel_extractor(size)
        if name not in built:
            built[name] = _build(request, name)
        return built[name]

    return make


def _build(request: pytest.FixtureRequest, name: str) -> Extractor:
    if name == "encoder":
        return build_extractor(name, request.getfixturevalue("products") / "encoder")
    fixture = "rad_dino_folder" if name == "rad_dino" else f"{name}_file"
    extractor = "module" if name == "backbone" else name
    return build_extractor(extractor, request.getfixturevalue(fixture))
