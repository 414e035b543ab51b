"""The rad_dino extractor."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from cxr_lightning.errors import UserError
from cxr_lightning.metrics.extractors import build_extractor
from cxr_lightning.metrics.extractors.rad_dino import preprocess, read_preprocessing

transformers = pytest.importorskip("transformers")
LEVEL = 1 / 255 / 0.2583
"""One grey value after standardisation."""


@pytest.fixture
def folder(tmp_path: Path, rad_dino_folder: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(rad_dino_folder, tmp_path / "rad-dino"))


def _change(folder: Path, **changes: object) -> Path:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path


@pytest.mark.parametrize("backend", ["torchvision", "pil"])
@pytest.mark.parametrize(
    "shape", [(28, 28), (33, 33), (224, 224), (518, 518), (600, 700), (97, 60)]
)
def test_preprocesses_as_the_image_processor(
    backend: str, shape: tuple[int, int], folder: Path
) -> None:
    size = {"size": {"shortest_edge": 518}, "crop_size": {"height": 518, "width": 518}}
    path = _change(folder, **size)  # as published
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend=backend)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (1, 1, *shape), generator=generator, dtype=torch.uint8)
    smooth = F.interpolate(torch.rand(1, 1, 9, 9, generator=generator), shape, mode="bilinear")
    raw = torch.cat([noise, (smooth * 255).round().byte()])
    images = [Image.fromarray(image[0].numpy()).convert("RGB") for image in raw]
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    pixels = preprocess(raw, read_preprocessing(path))
    assert pixels.shape == expected.shape == (2, 3, 518, 518)
    levels = (pixels - expected).abs() / LEVEL
    assert levels.max() < 2.01
    assert (levels > 0.5).float().mean() < 0.02


def test_equals_the_librarys_own_way(
    rad_dino_folder: Path, make_raw: Callable[..., Tensor]
) -> None:
    extractor, raw = build_extractor("rad_dino", rad_dino_folder), make_raw(2, 64)
    processor = transformers.AutoImageProcessor.from_pretrained(rad_dino_folder, backend="pil")
    network = transformers.AutoModel.from_pretrained(rad_dino_folder).eval()
    images = [Image.fromarray(image[0].numpy()).convert("RGB") for image in raw]
    with torch.no_grad():
        output = network(**processor(images=images, return_tensors="pt"))
    features = extractor(raw)
    assert features.shape == (2, extractor.num_features) == (2, 24)
    for expected in (output.pooler_output, output.last_hidden_state[:, 0]):
        difference = torch.linalg.vector_norm(features - expected, dim=1)
        assert (difference < 1e-3 * torch.linalg.vector_norm(expected, dim=1)).all()
    weights = (rad_dino_folder / "model.safetensors").read_bytes()
    assert extractor.sha256 == hashlib.sha256(weights).hexdigest()


def test_exact_without_resizing(rad_dino_folder: Path, make_raw: Callable[..., Tensor]) -> None:
    raw = make_raw(2, 56)
    network = transformers.Dinov2Model.from_pretrained(rad_dino_folder).eval()
    pixels = (raw.expand(-1, 3, -1, -1) / 255 - 0.5307) / 0.2583
    with torch.no_grad():
        expected = network(pixels).pooler_output
    features = build_extractor("rad_dino", rad_dino_folder)(raw)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


def test_half_precision_weights_run_in_fp32(folder: Path, make_raw: Callable[..., Tensor]) -> None:
    state = {k: v.bfloat16() for k, v in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    extractor = build_extractor("rad_dino", folder)
    assert {parameter.dtype for parameter in extractor.parameters()} == {torch.float32}
    assert extractor(make_raw()).isfinite().all()


def test_missing_files_name_the_command(tmp_path: Path, folder: Path) -> None:
    fetch = r"'hf download microsoft/rad-dino --local-dir "
    with pytest.raises(UserError, match=rf"^extractor: rad_dino needs .*{fetch}DIR'.*\.$"):
        build_extractor("rad_dino")
    with pytest.raises(UserError, match=rf"lacks config.json, .*{fetch}{tmp_path}/absent'\.$"):
        build_extractor("rad_dino", tmp_path / "absent")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=rf"lacks model.safetensors; .*{fetch}{folder}'\.$"):
        build_extractor("rad_dino", folder)


def test_damaged_weights(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    for content in (b"", b"junk", whole[:-100]):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=r"^extractor: .* does not hold RAD-DINO; fetch it"):
            build_extractor("rad_dino", folder)


def test_lacking_weights_are_not_drawn_at_random(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["encoder.layer.1.norm1.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="does not hold RAD-DINO"):
        build_extractor("rad_dino", folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"resample": 2},
        {"do_center_crop": False},
        {"rescale_factor": 1.0},
        {"size": {"height": 56, "width": 56}},
        {"crop_size": {"height": 70, "width": 70}},
        {"crop_size": {"height": 56, "width": 42}},
    ],
)
def test_refuses_another_preprocessing(folder: Path, changes: dict[str, object]) -> None:
    _change(folder, **changes)
    with pytest.raises(UserError, match="does not hold RAD-DINO"):
        build_extractor("rad_dino", folder)


def test_damaged_preprocessing(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(UserError, match="does not hold RAD-DINO"):
        build_extractor("rad_dino", folder)
