"""Fixtures that several parts share: a tiny prepared data set and tiny products.

They are built once a session, by the package's own commands.
"""

import os

# before torch is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "disabled"
os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from cxr_lightning.artifacts import save_product
from cxr_lightning.commands.prepare import prepare
from cxr_lightning.data.datamodule import CheXpertDataModule
from cxr_lightning.diffusion.priors import LatentPrior
from cxr_lightning.networks.autoencoder import Autoencoder
from cxr_lightning.networks.encoder import Encoder
from cxr_lightning.networks.unet import Denoiser

SIZE = 32
LATENT = 6
TIMESTEPS = 50

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of 24 simulated patients and 3 validation patients, 32 px."""
    folder = tmp_path_factory.mktemp("data")
    prepare("phantom", folder / "phantom", folder / "prepared", size=SIZE, workers=1, patients=24)
    return folder / "prepared"


@pytest.fixture
def datamodule(prepared: Path) -> CheXpertDataModule:
    """Batches of 4 of the tiny data set, set up."""
    module = CheXpertDataModule(prepared, batch_size=4, image_size=SIZE)
    module.setup()
    return module


@pytest.fixture(scope="session")
def randomize() -> Callable[..., Any]:
    """Moves all parameters of a network, also those that start at zero, by small random numbers."""

    def apply(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        return network.eval()

    return apply


@pytest.fixture(scope="session")
def make_autoencoder() -> Callable[..., Autoencoder]:
    """Makes random autoencoders of 32 px."""

    def make(seed: int = 0) -> Autoencoder:
        torch.manual_seed(seed)
        return Autoencoder(image_size=SIZE, width=4, latent_dim=LATENT)

    return make


@pytest.fixture(scope="session")
def make_denoiser(randomize: Callable[..., Any]) -> Callable[..., Denoiser]:
    """Makes random denoisers of 32 px whose output is not zero."""

    def make(seed: int = 0, **changes: Any) -> Denoiser:
        torch.manual_seed(seed)
        settings: dict[str, Any] = {
            "image_size": SIZE,
            "width": 8,
            "multipliers": [1, 2],
            "blocks": 1,
            "attention": [16],
            "timesteps": TIMESTEPS,
        }
        return randomize(Denoiser(**{**settings, **changes}), seed)

    return make


@pytest.fixture(scope="session")
def products(
    tmp_path_factory: pytest.TempPathFactory,
    make_autoencoder: Callable[..., Autoencoder],
    make_denoiser: Callable[..., Denoiser],
) -> Path:
    """A folder with the untrained products `autoencoder`, `generator`, `uncond` and `encoder`."""
    folder = tmp_path_factory.mktemp("products")
    torch.manual_seed(0)
    encoder = Encoder(image_size=SIZE, width=4, backbone="small", dim=8)
    parts = {
        "autoencoder": make_autoencoder(),
        "prior": LatentPrior(latent_dim=LATENT),
        "denoiser": make_denoiser(),
    }
    save_product(folder / "autoencoder", "autoencoder", {"autoencoder": make_autoencoder()}, {})
    save_product(folder / "encoder", "encoder", {"encoder": encoder}, {})
    save_product(folder / "generator", "generator", parts, {})
    save_product(folder / "uncond", "generator", {"denoiser": make_denoiser(form="uncond")}, {})
    return folder


@pytest.fixture
def quiet_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """Makes a trainer on the CPU that writes nothing but what a test asks for."""

    def make(**changes: Any) -> Trainer:
        settings: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 4,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "default_root_dir": tmp_path,
        }
        return Trainer(**{**settings, **changes})

    return make
