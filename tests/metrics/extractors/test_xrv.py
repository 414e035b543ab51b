"""The xrv extractor."""

import hashlib
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cxr_lightning.errors import UserError
from cxr_lightning.metrics.extractors import build_extractor
from cxr_lightning.metrics.extractors.xrv import URL


@pytest.mark.parametrize("size", [28, 224, 300])
def test_equals_the_librarys_own_way(
    size: int, xrv_file: Path, xrv_network: nn.Module, make_raw: Callable[..., Tensor]
) -> None:
    import torchxrayvision as xrv

    extractor, raw = build_extractor("xrv", xrv_file), make_raw(2, size)
    images = [xrv.utils.normalize(image[0].numpy(), 255)[None] for image in raw]
    xrv_network.input_resolution = 224  # as the library sets it with published weights
    with torch.no_grad():
        expected = xrv_network.features2(torch.stack([torch.from_numpy(i) for i in images]))
        logits = xrv_network(torch.stack([torch.from_numpy(i) for i in images]))
        torch.testing.assert_close(
            xrv_network.classifier(extractor(raw)), logits, rtol=1e-4, atol=1e-4
        )
    assert expected.std() > 0.01
    torch.testing.assert_close(extractor(raw), expected, rtol=1e-4, atol=1e-4)
    assert extractor.num_features == 1024
    assert extractor.sha256 == hashlib.sha256(xrv_file.read_bytes()).hexdigest()


def test_reads_a_state_dict_with_thresholds(
    tmp_path: Path, xrv_file: Path, xrv_network: nn.Module, make_raw: Callable[..., Tensor]
) -> None:
    state = {**xrv_network.state_dict(), "op_threshs": torch.rand(18)}
    torch.save(state, tmp_path / "state.pt")
    extractor = build_extractor("xrv", tmp_path / "state.pt")
    assert torch.equal(extractor(make_raw()), build_extractor("xrv", xrv_file)(make_raw()))


def test_default_file_and_address_are_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchxrayvision.models")
    asked: list[str] = []
    monkeypatch.setattr(models.utils, "download", lambda *args: asked.extend(args))
    monkeypatch.setattr(models.pathlib.Path, "mkdir", lambda *_, **__: None)
    monkeypatch.setenv("HOME", "/nowhere else")
    models.get_weights("densenet121-res224-all")
    url, path = asked
    assert url == URL
    with pytest.raises(UserError, match=r"^extractor: no TorchXRayVision weights at .*\.$") as info:
        build_extractor("xrv")
    command = f"curl -L --create-dirs -o {shlex.quote(path)} {url}"
    assert f"fetch them with '{command}'." in str(info.value)


def test_named_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no TorchXRayVision weights at .*absent\.pt"):
        build_extractor("xrv", tmp_path / "absent.pt")


@pytest.mark.parametrize("part", [0, 10, 20_000, -100])
def test_truncated_file(tmp_path: Path, xrv_file: Path, part: int) -> None:
    (tmp_path / "a.pt").write_bytes(xrv_file.read_bytes()[:part])
    with pytest.raises(UserError, match=r"^extractor: .* does not hold the TorchXRayVision .*\.$"):
        build_extractor("xrv", tmp_path / "a.pt")


def test_another_network(tmp_path: Path, xrv_file: Path) -> None:
    del xrv_file  # skips without the library
    torch.save(nn.Linear(2, 2), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="does not hold the TorchXRayVision weights"):
        build_extractor("xrv", tmp_path / "a.pt")


def test_warnings_are_not_silenced_for_good(xrv_file: Path) -> None:
    before = list(warnings.filters)
    build_extractor("xrv", xrv_file)
    assert warnings.filters == before
