"""The small sets and the encoder that `cxr evaluate` is tried on."""

from pathlib import Path

import pytest
from brightness_sets import make_encoder, write_real, write_synthetic


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
