"""Where a run is logged."""

from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from PIL import Image

from cxr_lightning.callbacks.logger import log_picture, run_logger


@pytest.mark.parametrize("mode", ["disabled", "dryrun"])
def test_without_wandb_csv_files_are_written(tmp_path: Path, monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    logger = run_logger(tmp_path / "run")
    assert isinstance(logger, CSVLogger)
    assert Path(logger.log_dir).is_relative_to(tmp_path / "run")
    logger.log_metrics({"loss": 1.5}, step=3)
    logger.save()
    assert "1.5" in Path(logger.log_dir, "metrics.csv").read_text()


def test_default_is_wandb_offline(tmp_path: Path, monkeypatch):
    import os

    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.delenv("WANDB_MODE")
    logger = run_logger(tmp_path / "run", project="p")
    assert isinstance(logger, WandbLogger)
    assert os.environ["WANDB_MODE"] == "offline"
    assert logger.name == "p"
    assert (tmp_path / "run").is_dir()


def test_a_picture_is_a_png_named_by_key_and_step(tmp_path: Path):
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4)
    log_picture([], tmp_path / "samples", "ddpm/generated", picture, 42)
    file = tmp_path / "samples" / "ddpm-generated-0000042.png"
    assert np.array_equal(np.asarray(Image.open(file)), picture)


def test_a_picture_goes_to_wandb_where_that_runs(tmp_path: Path, monkeypatch):
    shown = []
    monkeypatch.setattr(WandbLogger, "log_image", lambda self, **kwargs: shown.append(kwargs))
    loggers = [WandbLogger(save_dir=tmp_path), CSVLogger(tmp_path)]
    log_picture(loggers, tmp_path, "a/b", np.zeros((2, 2), dtype=np.uint8), 7)
    assert [(s["key"], s["step"], len(s["images"])) for s in shown] == [("a/b", 7, 1)]


def test_a_continued_run_goes_on_in_the_same_run_online(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    first, other = (run_logger(tmp_path)._wandb_init for _ in range(2))
    assert first["id"] != other["id"]  # nothing there to go on from
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").touch()
    again = run_logger(tmp_path)._wandb_init
    assert (again["id"], again["resume"]) == (other["id"], "allow")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert run_logger(tmp_path)._wandb_init["id"] is None
