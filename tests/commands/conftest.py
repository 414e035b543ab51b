"""The small sets and the encoder that `cxr evaluate` is tried on; runs of `cxr generate`."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from brightness_sets import make_encoder, write_real, write_synthetic

from cxr_lightning.commands.generate import generate
from cxr_lightning.commands.sampling import SamplingOptions


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """A prepared set of 48 images."""
    return write_real(tmp_path / "real")


@pytest.fixture
def synthetic(tmp_path: Path) -> Path:
    """22 images as `cxr generate` writes them."""
    return write_synthetic(tmp_path / "synthetic")


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """The product of an untrained encoder."""
    return make_encoder(tmp_path / "encoder")


@pytest.fixture
def make_set(products: Path) -> Callable[..., Path]:
    """Runs `generate` with 3 images of 2 conditions, 2 steps each."""

    def apply(out: Path, **changes: Any) -> Path:
        settings: dict[str, Any] = {
            "model": products / "generator",
            "condition": "healthy,pneumonia+edema",
            "count": 3,
            "steps": 2,
            "device": "cpu",
        }
        settings |= changes
        options = {
            f.name: settings.pop(f.name) for f in fields(SamplingOptions) if f.name in settings
        }
        generate(out=out, sampling=SamplingOptions(**options), **settings)
        return out

    return apply
