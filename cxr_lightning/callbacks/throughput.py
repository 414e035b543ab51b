"""Throughput: what a training step costs."""

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch.utils.flop_counter import FlopCounterMode

from cxr_lightning.types import Batch


class Throughput(Callback):
    """Measures training steps after a warm-up: images a second, waiting for data, memory, FLOPs.

    A step is timed from the end of the previous one; the time between a step's end and the next
    batch's arrival on the device is the wait for data. FLOPs are those of one forward and backward
    pass, counted by torch on the first step.

    Args:
        warmup: Steps that are not counted.

    Attributes:
        result: The figures, when training has ended.
    """

    def __init__(self, warmup: int = 10) -> None:
        self.warmup = warmup
        self.counter: FlopCounterMode | None = None
        self.waits: list[float] = []
        self.steps: list[float] = []
        self.images = 0
        self.result: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self.ended = _now(pl_module.device)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Notes how long the batch was waited for."""
        self.began = _now(pl_module.device)
        self.images = len(batch.image) * trainer.world_size
        if trainer.global_step == 0:
            self.counter = FlopCounterMode(display=False)
            self.counter.__enter__()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Notes how long the step took."""
        now = _now(pl_module.device)
        if trainer.global_step == 1 and self.counter is not None:
            self.counter.__exit__(None, None, None)
        elif trainer.global_step > self.warmup:
            self.waits.append(self.began - self.ended)
            self.steps.append(now - self.ended)
        self.ended = now

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Computes the figures from the medians."""
        step = float(torch.tensor(self.steps).median())
        assert self.counter is not None
        flops = self.counter.get_total_flops() * trainer.world_size
        cuda = pl_module.device.type == "cuda"
        self.result = {
            "stage": type(pl_module).__name__,
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "threads": torch.get_num_threads(),
            "precision": str(trainer.precision),
            "batch_size": self.images,
            "steps": len(self.steps),
            "seconds_per_step": step,
            "images_per_second": self.images / step,
            "data_wait_share": float(torch.tensor(self.waits).median()) / step,
            "flops_per_step": flops,
            "tflops_per_second": flops / step / 1e12,
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        }


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
