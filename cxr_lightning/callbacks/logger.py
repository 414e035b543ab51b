"""Where a run is logged: Weights & Biases, or CSV files when it is off."""

import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image


def run_logger(save_dir: Path = Path("runs"), project: str = "cxr_lightning") -> Logger:
    """The logger of a run. `WANDB_MODE` decides: online, offline (default) or disabled.

    Args:
        save_dir: The run's folder (from `trainer.default_root_dir`); its name names the run.
        project: Name of the project in Weights & Biases.

    Returns:
        W&B's logger, or a CSV logger writing `save_dir/csv/version_<n>/metrics.csv` if W&B is
        disabled; a continued run gets the next n, so that nothing is overwritten. Online, a
        continued run goes on in W&B's run; offline, where W&B cannot, it is one more.
    """
    save_dir = Path(save_dir)
    if os.environ.setdefault("WANDB_MODE", "offline") in ("disabled", "dryrun"):
        return CSVLogger(save_dir, name="csv")
    save_dir.mkdir(parents=True, exist_ok=True)  # W&B falls back to a temporary folder otherwise
    known: dict[str, Any] = {}
    if os.environ["WANDB_MODE"] == "online":
        known = {"id": _run_id(save_dir), "resume": "allow"}
    return WandbLogger(project=project, name=save_dir.name, save_dir=save_dir, **known)


def _run_id(save_dir: Path) -> str:
    """W&B's name of the run: that of an unfinished one in this folder, else a new one."""
    file = save_dir / "wandb_id.txt"
    if file.is_file() and (save_dir / "checkpoints" / "last.ckpt").is_file():
        return file.read_text()
    name = uuid.uuid4().hex[:8]
    rank_zero_only(file.write_text)(name)  # on the process that logs
    return name


def log_picture(
    loggers: list[Logger], folder: Path, key: str, picture: UInt8[np.ndarray, "h w"], step: int
) -> None:
    """Writes a grey picture as `folder/<key>-<step>.png` and shows it in W&B where that runs."""
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(picture)
    image.save(folder / f"{key.replace('/', '-')}-{step:07d}.png")
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key=key, images=[image], step=step)
