"""The inception extractor."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cxr_lightning.errors import UserError
from cxr_lightning.metrics.extractors import build_extractor


def test_equals_torchmetrics_on_three_grey_channels(
    inception_file: Path, make_raw: Callable[..., Tensor]
) -> None:
    from torchmetrics.image.fid import NoTrainInceptionV3

    extractor = build_extractor("inception", inception_file)
    reference = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(inception_file))
    raw = make_raw(2, 48)
    features = extractor(raw)
    assert features.shape == (2, 2048)
    assert torch.equal(features, reference(torch.cat([raw, raw, raw], 1)))
    assert extractor.sha256 == hashlib.sha256(inception_file.read_bytes()).hexdigest()


def test_missing_weights_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"^extractor: .*'curl -L .*6726825d\.pth'.*\.$"):
        build_extractor("inception")
    with pytest.raises(UserError, match=r"no Inception weights at .*absent\.pth"):
        build_extractor("inception", tmp_path / "absent.pth")


class _Attack:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("attacked"),)


def test_weights_that_hold_code_do_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": _Attack()}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="does not hold the Inception weights"):
        build_extractor("inception", tmp_path / "weights.pth")
    assert not Path("attacked").exists()


@pytest.mark.parametrize("content", [b"", b"not a file of torch", pickle.dumps([1, 2], protocol=2)])
def test_broken_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(UserError, match="does not hold the Inception weights"):
        build_extractor("inception", tmp_path / "weights.pth")


def test_truncated_file(tmp_path: Path, inception_file: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(inception_file.read_bytes()[:-100_000])
    with pytest.raises(UserError, match="does not hold the Inception weights"):
        build_extractor("inception", tmp_path / "weights.pth")


def test_state_dict_of_something_else(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match="does not hold the Inception weights"):
        build_extractor("inception", tmp_path / "weights.pth")
