"""Extractors: frozen, fp32, hashed, and clear about missing weights."""

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cxr_lightning.artifacts import product_sha256, save_product
from cxr_lightning.data.transforms import to_model
from cxr_lightning.errors import UserError
from cxr_lightning.metrics.extractors import build_extractor, extractor_names
from cxr_lightning.networks.encoder import Encoder


def _raw(count: int = 3, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 1, size, size), generator=generator, dtype=torch.uint8)


@pytest.fixture
def encoder_product(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_product(
        tmp_path / "encoder", "encoder", {"encoder": Encoder(width=4, backbone="small", dim=8)}, {}
    )
    return tmp_path / "encoder"


@pytest.fixture
def inception_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights in the file format of the published ones."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

    with monkeypatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *_, **__: None)
        torch.manual_seed(0)
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    return tmp_path / "inception.pth"


def test_fixed_is_the_same_on_every_machine() -> None:
    # Pinned, so that a change of the weights is noticed: values are not comparable across it.
    extractor = build_extractor("fixed")
    sha256 = "c0219246848a74944fc9a46b0a0a97206cbf63dec6e8ca61df7c2b159f038347"
    assert extractor.sha256 == sha256
    assert extractor.num_features == 64
    torch.manual_seed(5)  # the global generator plays no part
    assert torch.equal(extractor(_raw()), build_extractor("fixed")(_raw()))


def test_frozen_always_eval_and_no_gradient(encoder_product: Path) -> None:
    extractor = build_extractor("encoder", encoder_product)
    nn.ModuleList([extractor]).train()
    assert not any(module.training for module in extractor.modules())
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    before = {k: v.clone() for k, v in extractor.network.state_dict().items()}
    assert not extractor(_raw()).requires_grad
    after = extractor.network.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_fp32_under_autocast(encoder_product: Path) -> None:
    for extractor in (build_extractor("fixed"), build_extractor("encoder", encoder_product)):
        expected = extractor(_raw())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = extractor(_raw())
        assert features.dtype == torch.float32
        assert torch.equal(features, expected)


def test_encoder_gives_its_embedding_and_hash(encoder_product: Path) -> None:
    extractor = build_extractor("encoder", encoder_product)
    encoder = Encoder.from_pretrained(encoder_product).eval()
    with torch.no_grad():
        assert torch.equal(extractor(_raw()), encoder(to_model(_raw())))
    assert extractor.num_features == 8
    assert extractor.sha256 == product_sha256(encoder_product)


def test_inception_grey_to_three_channels(inception_file: Path) -> None:
    from torchmetrics.image.fid import NoTrainInceptionV3

    extractor = build_extractor("inception", inception_file)
    reference = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(inception_file))
    raw = _raw(2, 48)
    features = extractor(raw)
    assert features.shape == (2, 2048)
    assert torch.equal(features, reference(torch.cat([raw, raw, raw], 1)))
    assert extractor.sha256 == hashlib.sha256(inception_file.read_bytes()).hexdigest()


def test_missing_inception_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"^extractor_weights: .*'curl -L .*6726825d\.pth'.*\.$"):
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
def test_broken_inception_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(UserError, match="does not hold the Inception weights"):
        build_extractor("inception", tmp_path / "weights.pth")


def test_inception_without_its_package(
    inception_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(UserError, match=r"pip install cxr_lightning\[inception\]"):
        build_extractor("inception", inception_file)


def test_state_dict_of_something_else(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match="does not hold the Inception weights"):
        build_extractor("inception", tmp_path / "weights.pth")


def test_user_mistakes(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"extractor: 'raddino' is not an extractor; use one of inc"
    ):
        build_extractor("raddino")
    with pytest.raises(UserError, match="encoder extractor needs an encoder product"):
        build_extractor("encoder")
    with pytest.raises(UserError, match="extractor_weights: no product at"):
        build_extractor("encoder", tmp_path / "absent")
    with pytest.raises(UserError, match="leave the argument out"):
        build_extractor("fixed", tmp_path)
    assert extractor_names() == ("inception", "encoder", "fixed")
