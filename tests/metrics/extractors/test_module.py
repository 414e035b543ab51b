"""The module extractor with TorchScript."""

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cxr_lightning.errors import UserError
from cxr_lightning.metrics.extractors import build_extractor


@pytest.mark.parametrize(("channels", "words"), [(1, "one channel"), (3, "three times")])
def test_equals_the_network_that_it_is_made_of(
    tmp_path: Path,
    channels: int,
    words: str,
    make_module: Callable[[Path, int], nn.Module],
    make_raw: Callable[..., Tensor],
) -> None:
    network = make_module(tmp_path / "a.ts", channels)
    extractor, raw = build_extractor("module", tmp_path / "a.ts"), make_raw()
    with torch.no_grad():
        expected = network(torch.cat([raw / 255] * channels, 1))
    torch.testing.assert_close(extractor(raw), expected)
    assert extractor.num_features == 5
    assert extractor.preprocessing == f"grey in [0, 1], {words}"
    assert extractor.sha256 == hashlib.sha256((tmp_path / "a.ts").read_bytes()).hexdigest()


class _Fixed224(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(224 * 224, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image.flatten(1))


class _Brightness(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.mean(dim=(2, 3))


class _Map(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image


class _Tuple(nn.Module):
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return image, image


class _TwoChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image).mean(dim=(2, 3))


def _script(network: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        torch.jit.script(network).save(path)


def test_network_of_one_size_only(tmp_path: Path, make_raw: Callable[..., Tensor]) -> None:
    _script(_Fixed224(), tmp_path / "a.pt")
    assert build_extractor("module", tmp_path / "a.pt")(make_raw(2, 224)).shape == (2, 2)


def test_one_channel_comes_first(tmp_path: Path, make_raw: Callable[..., Tensor]) -> None:
    _script(_Brightness(), tmp_path / "a.pt")
    extractor = build_extractor("module", tmp_path / "a.pt")
    assert extractor.preprocessing == "grey in [0, 1], one channel"
    assert extractor(make_raw()).shape == (3, 1)


@pytest.mark.parametrize("network", [_Map(), _Tuple(), _TwoChannels()])
def test_network_that_gives_no_features(tmp_path: Path, network: nn.Module) -> None:
    _script(network, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"^extractor: .*a\.pt' does not hold a TorchScript .*\.$"):
        build_extractor("module", tmp_path / "a.pt")


def test_no_torchscript(tmp_path: Path, module_file: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(module_file.read_bytes()[:-200])
    (tmp_path / "c.pt").write_bytes(b"")
    for name in ("a.pt", "b.pt", "c.pt"):
        with pytest.raises(UserError, match="does not hold a TorchScript module"):
            build_extractor("module", tmp_path / name)


def test_missing_file(tmp_path: Path, products: Path) -> None:
    with pytest.raises(UserError, match="^extractor: module needs a file; give module=FILE"):
        build_extractor("module")
    with pytest.raises(UserError, match="^extractor: no file at .*absent"):
        build_extractor("module", tmp_path / "absent.pt")
    with pytest.raises(UserError, match=f"no module; give encoder={products}/encoder"):
        build_extractor("module", products / "encoder")
