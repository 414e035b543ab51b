"""`cxr benchmark --peers`: our training step against diffusers' and MONAI's, side by side."""

import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from cxr_lightning import __version__
from cxr_lightning.commands.peers import (
    BLOCKS,
    MULTIPLIERS,
    PEERS,
    TIMESTEPS,
    Contestant,
    Ours,
    Shape,
    count_parameters,
    make_peer,
)
from cxr_lightning.commands.prepare import prepare
from cxr_lightning.data.datamodule import CheXpertDataModule
from cxr_lightning.errors import UserError
from cxr_lightning.ranges import check_range
from cxr_lightning.stages.ddpm import DDPM
from cxr_lightning.stages.precision import default_precision
from cxr_lightning.types import Batch

DRAWS = 2000
"""Bootstrap draws of a ratio's interval."""

Rounds = dict[str, list["Cost"]]
"""What each contestant took in every round."""


class Cost(NamedTuple):
    """What one step took.

    Attributes:
        wall: Seconds that went by.
        cpu: Seconds of CPU time of all threads; does not grow where other programs want the CPU.
    """

    wall: float
    cpu: float


def benchmark_peers(
    peers: list[str] | None = None,
    size: int = 32,
    width: int = 32,
    batch_size: int = 16,
    rounds: int = 15,
    steps: int = 1,
    precision: Literal["fp32", "bf16"] | None = None,
    device: Literal["cpu", "cuda"] | None = None,
) -> None:
    """Compares our training step with those of diffusers and MONAI, and prints it as JSON.

    In one run, in turn, round by round: `ours` (the denoiser with stage 2's loss in a plain loop),
    each peer (its U-Net and its `add_noise` in the same loop, the same images, AdamW and
    precision), and `stage` (the whole of stage 2, without a VAE, as `cxr fit` trains it: loader,
    conditions dropped at random, gradient clipping, warm-up, moving average). The U-Nets have the
    same channels, blocks, attention and numbers of parameters. `ratio` is the speed of ours over
    that of the faster peer, `defaults` that of `stage` in our default precision over the faster
    peer in float32; both are medians over the rounds, with a bootstrap interval. `sampling` is one
    evaluation without gradients.

    Args:
        peers: `diffusers`, `monai`; both where none is named.
        size: Height and width of the images in pixels, a multiple of 8.
        width: Channels at full resolution, a multiple of 32; 1, 2, 2 and 2 times as many on the
            four levels, attention on the third.
        batch_size: Images in a batch.
        rounds: Times that each is measured.
        steps: Steps in a measurement.
        precision: `fp32` or `bf16` (autocast); default: what `cxr fit` takes on this device.
        device: `cpu` or `cuda`; default: a GPU if there is one.

    Raises:
        UserError: If a value is out of its range, or a peer is not installed.
    """
    for name, value in (("batch_size", batch_size), ("rounds", rounds), ("steps", steps)):
        check_range(name, value, 1)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda was asked for and there is no GPU here; use cpu.")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    default = {"bf16-mixed": "bf16", "32-true": "fp32"}[default_precision(place.type)]
    bf16 = (precision or default) == "bf16"
    shape = Shape(size, width)
    contestants = make_contestants(peers or list(PEERS), shape, place)
    rivals = [name for name in contestants if name != "ours"]
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder), size, batch_size)
        image = first_images(data, place)
        loops = {name: c.trainer(image, bf16=bf16) for name, c in contestants.items()}
        if bf16:
            plain = {name: contestants[name].trainer(image, bf16=False) for name in rivals}
            loops |= {f"{name} fp32": step for name, step in plain.items()}
        in_turn = InTurn(loops, rounds, steps, place)
        train_stage(shape, data, in_turn, Path(folder), bf16=bf16)
    forward = {name: c.evaluation(image, bf16=bf16) for name, c in contestants.items()}
    result = {
        **describe(shape, batch_size, steps, place, rivals),
        "precision": "bf16" if bf16 else "fp32",
        "parameters": {name: count_parameters(c.network) for name, c in contestants.items()},
        "training": summarize(in_turn.rounds, "ours", rivals, batch_size, place),
        "sampling": summarize(
            measure_in_turn(forward, rounds, steps, place), "ours", rivals, batch_size, place
        ),
    }
    if default == result["precision"]:
        plainly = [f"{name} fp32" if bf16 else name for name in rivals]
        result["defaults"] = {
            clock: ratio(in_turn.rounds, "stage", plainly, clock) for clock in clocks(place)
        }
    print(json.dumps(result, indent=1))


def make_contestants(names: list[str], shape: Shape, device: torch.device) -> dict[str, Contestant]:
    """`ours` and the peers of these names, on the device.

    Raises:
        UserError: If a peer is unknown, not installed, or not of our number of parameters.
    """
    ours = Ours(shape, device)
    parameters = count_parameters(ours.network)
    contestants: dict[str, Contestant] = {"ours": ours}
    for name in names:
        contestants[name] = make_peer(name, shape, parameters, device)
        theirs = count_parameters(contestants[name].network)
        if abs(theirs - parameters) > 0.01 * parameters:
            raise UserError(
                f"peers: {name} of this version has {theirs} parameters where ours has "
                f"{parameters}; use the version that pyproject.toml names."
            )
    return contestants


def make_data(folder: Path, size: int, batch_size: int) -> CheXpertDataModule:
    """A data module over simulated radiographs, at least one batch of them."""
    with contextlib.redirect_stdout(sys.stderr):
        prepare(
            "phantom",
            folder / "phantom",
            folder / "prepared",
            size=size,
            workers=1,
            patients=max(batch_size, 24),
        )
    return CheXpertDataModule(folder / "prepared", batch_size, size)


def first_images(data: CheXpertDataModule, device: torch.device) -> Tensor:
    """The first batch of the training split, in model range."""
    data.setup("fit")
    return data.batch_of(data.rows["train"][: data.batch_size], device).image


def train_stage(
    shape: Shape, data: CheXpertDataModule, in_turn: "InTurn", folder: Path, *, bf16: bool
) -> None:
    """Trains stage 2 without a VAE, set up as `configs/ddpm.yaml` does it."""
    stage = DDPM(
        None,
        image_size=shape.size,
        width=shape.width,
        multipliers=MULTIPLIERS,
        blocks=BLOCKS,
        attention=[shape.attention_size],
        form="uncond",
        prediction="v",
        timesteps=TIMESTEPS,
        ema_decay=0.9995,
        optimizer=partial(torch.optim.AdamW, lr=2e-4, weight_decay=0.0),
        warmup_steps=1000,
    )
    Trainer(
        accelerator="gpu" if in_turn.device.type == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if bf16 else "32-true",
        max_steps=in_turn.total,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        callbacks=[in_turn],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    ).fit(stage, datamodule=data)


class InTurn(Callback):
    """Times a stage's training steps, and those of others between them.

    The first round warms up and is not counted.

    Args:
        loops: Training steps of the others, by name.
        rounds: Times that each is measured.
        steps: Steps in a measurement.
        device: Where all are trained.

    Attributes:
        rounds: What a step took, of `stage` and of the others.
        total: Steps that the stage must make.
    """

    def __init__(
        self,
        loops: dict[str, Callable[[], None]],
        rounds: int,
        steps: int,
        device: torch.device,
    ) -> None:
        self.loops = loops
        self.steps = steps
        self.device = device
        self.total = (rounds + 1) * steps
        self.rounds: Rounds = {name: [] for name in ("stage", *loops)}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clocks."""
        self.began = read_clocks(self.device)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """When the stage's turn is over, the others have theirs."""
        if trainer.global_step % self.steps:
            return
        costs = {"stage": cost_since(self.began, self.steps, self.device)}
        for name, step in self.loops.items():
            costs[name] = measure(step, self.steps, self.device)
        if trainer.global_step > self.steps:
            for name, cost in costs.items():
                self.rounds[name].append(cost)
        self.began = read_clocks(self.device)


def measure_in_turn(
    loops: dict[str, Callable[[], None]], rounds: int, steps: int, device: torch.device
) -> Rounds:
    """What a step of each takes, one after the other in each round; the first is not counted."""
    costs: Rounds = {name: [] for name in loops}
    for counted in (False, *[True] * rounds):
        for name, step in loops.items():
            cost = measure(step, steps, device)
            if counted:
                costs[name].append(cost)
    return costs


def measure(step: Callable[[], None], steps: int, device: torch.device) -> Cost:
    """What a step takes, in the mean of some."""
    began = read_clocks(device)
    for _ in range(steps):
        step()
    return cost_since(began, steps, device)


def read_clocks(device: torch.device) -> Cost:
    """The clocks, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Cost(time.perf_counter(), time.process_time())


def cost_since(began: Cost, steps: int, device: torch.device) -> Cost:
    """What one of the steps since then took."""
    now = read_clocks(device)
    return Cost((now.wall - began.wall) / steps, (now.cpu - began.cpu) / steps)


def clocks(device: torch.device) -> tuple[str, ...]:
    """The clocks that say something about a device."""
    return ("wall", "cpu") if device.type == "cpu" else ("wall",)


def summarize(
    rounds: Rounds, ours: str, rivals: list[str], batch_size: int, device: torch.device
) -> dict[str, Any]:
    """Images a second by each clock: medians, all rounds, and the ratio to the faster rival."""
    summary = {}
    for clock in clocks(device):
        speeds = {
            name: [batch_size / getattr(cost, clock) for cost in costs]
            for name, costs in rounds.items()
        }
        summary[clock] = {
            "images_per_second": {name: round(median(v), 2) for name, v in speeds.items()},
            "rounds": {name: [round(speed, 2) for speed in v] for name, v in speeds.items()},
            "ratio": ratio(rounds, ours, rivals, clock),
        }
    return summary


def ratio(rounds: Rounds, ours: str, rivals: Iterable[str], clock: str) -> dict[str, Any]:
    """Our speed over that of the rival with the lower median, both of the same round.

    Returns:
        `to` (that rival), `median` over the rounds, and its 95 % percentile bootstrap `interval`.
    """
    seconds = {
        name: np.array([getattr(cost, clock) for cost in costs]) for name, costs in rounds.items()
    }
    faster = min(rivals, key=lambda name: float(np.median(seconds[name])))
    pairs = seconds[faster] / seconds[ours]
    drawn = np.random.default_rng(0).integers(0, len(pairs), (DRAWS, len(pairs)))
    low, high = np.quantile(np.median(pairs[drawn], axis=1), [0.025, 0.975])
    return {
        "to": faster,
        "median": round(float(np.median(pairs)), 3),
        "interval": [round(float(low), 3), round(float(high), 3)],
    }


def describe(
    shape: Shape, batch_size: int, steps: int, device: torch.device, peers: list[str]
) -> dict[str, Any]:
    """What was measured, and on what."""
    cpu = f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    versions = {name: version(name) for name in ("torch", "lightning", *peers)}
    return {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "versions": {"cxr_lightning": __version__, **versions},
        "size": shape.size,
        "width": shape.width,
        "batch_size": batch_size,
        "steps": steps,
    }
