"""A small real set and a synthetic one, told apart by brightness, and products for them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from cxr_lightning.artifacts import save_product
from cxr_lightning.data.prepared import hash_rows
from cxr_lightning.diffusion.priors import LatentPrior
from cxr_lightning.networks.autoencoder import Autoencoder
from cxr_lightning.networks.encoder import Encoder
from cxr_lightning.networks.unet import Denoiser
from cxr_lightning.types import OBSERVATIONS

SIZE = 32
BRIGHTNESS = {"healthy": 80, "pneumonia": 160}


def draw_image(condition: str, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 30, (SIZE, SIZE))
    return np.clip(BRIGHTNESS[condition] + noise, 0, 255).astype(np.uint8)


def label_row(condition: str, path: str) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(OBSERVATIONS)
    row["No Finding" if condition == "healthy" else "Pneumonia"] = 1.0
    fields = {"Path": path, "Sex": "Male", "Age": 50, "Frontal/Lateral": "Frontal", "AP/PA": "PA"}
    return {**fields, **row}


def write_real(folder: Path) -> Path:
    """48 images of 24 patients: half healthy, half pneumonia; every third patient held out."""
    folder.mkdir()
    rows, images = [], []
    for i in range(48):
        patient = i // 2
        condition = "healthy" if patient % 2 else "pneumonia"
        row = label_row(
            condition, f"x/train/patient{patient:05}/study1/view{i % 2 + 1}_frontal.png"
        )
        split = "valid" if patient % 3 == 0 else "train"
        rows.append(row | {"patient": f"patient{patient:05}", "study": "study1", "split": split})
        images.append(draw_image(condition, i))
    table = pd.DataFrame(rows).assign(width=SIZE, height=SIZE)
    table.to_csv(folder / "table.csv", index=False)
    np.save(folder / "images.npy", np.stack(images))
    header = {"format": 2, "source": "test", "count": 48, "size": SIZE, "sha256": "ab" * 32}
    header |= {
        "origins": [],
        "request": "",
        "resize": {},
        "versions": {},
        "rows_sha256": hash_rows(table),
    }
    (folder / "header.json").write_text(json.dumps(header))
    (folder / "failures.csv").write_text("Path,reason\n")
    return folder


def write_images(folder: Path, conditions: list[str]) -> list[str]:
    paths = []
    for i, condition in enumerate(conditions):
        path = f"train/patient{i + 1:05}/study1/view1_frontal.png"
        (folder / path).parent.mkdir(parents=True)
        Image.fromarray(draw_image(condition, 1000 + i)).save(folder / path)
        paths.append(path)
    return paths


def write_synthetic(folder: Path) -> Path:
    """As `cxr generate` writes it: 12 healthy, 10 pneumonia."""
    conditions = ["healthy"] * 12 + ["pneumonia"] * 10
    paths = write_images(folder, conditions)
    rows = [label_row(c, f"synthetic/{p}") for p, c in zip(paths, conditions, strict=True)]
    pd.DataFrame(rows).to_csv(folder / "train.csv", index=False)
    manifest = {
        "format": 1,
        "kind": "synthetic",
        "product": {"path": "/secret/place", "sha256": "cd" * 32},
        "seed": 7,
        "sampler": "ddim",
        "steps": 20,
        "guidance": 1.5,
        "size": SIZE,
        "images": [
            {"path": p, "condition": c, "index": i}
            for i, (p, c) in enumerate(zip(paths, conditions, strict=True))
        ],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def make_encoder(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    network = Encoder(image_size=SIZE, width=4, backbone="small", dim=8)
    save_product(folder, "encoder", {"encoder": network}, {})
    return folder


def make_generator(
    folder: Path, size: int = SIZE, facts: dict[str, Any] | None = None, seed: int = 0
) -> Path:
    torch.manual_seed(seed)
    networks: dict[str, nn.Module] = {
        "autoencoder": Autoencoder(image_size=size, width=4, latent_dim=4),
        "prior": LatentPrior(latent_dim=4),
        "denoiser": Denoiser(image_size=size, width=32, multipliers=[1, 1], blocks=1, attention=[]),
    }
    save_product(folder, "generator", networks, facts or {})
    return folder


def metrics_of(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return content


def records_of(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(r["metric"], r["condition"]): r for r in metrics_of(out)["records"]}
