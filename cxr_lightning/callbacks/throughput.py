"""Throughput: what a training step costs."""

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch.utils.flop_counter import FlopCounterMode

from cxr_lightning.types import Batch


class Throughput(Callback):
    """Measures training steps after a warm-up: images a second, waiting for data, memory, MFU.

    A step is timed from the end of the previous one; the time between a step's end and the next
    batch's arrival on the device is the wait for data. FLOPs are those of one forward and backward
    pass, counted by torch on the first step, which is never compiled. `mfu`, model FLOPs
    utilization (Chowdhery et al. 2022, arXiv 2204.02311, appendix B), is their rate over the one
    that a product of large square matrices reaches on this device in the same precision: the data
    sheet's rate is reached by nothing.

    Args:
        warmup: Steps that are not counted.

    Attributes:
        result: The figures, when training has ended.
    """

    def __init__(self, warmup: int = 10) -> None:
        self.warmup = warmup
        self.counter: FlopCounterMode | None = None
        self.counting = False
        self.waits: list[float] = []
        self.steps: list[float] = []
        self.images = 0
        self.result: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self.began_training = self.ended = _now(pl_module.device)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Notes how long the batch was waited for."""
        self.began = _now(pl_module.device)
        self.images = len(batch.image) * trainer.world_size
        if self.counter is None:  # of one batch, also where gradients are accumulated
            self.counter, self.counting = FlopCounterMode(display=False), True
            torch.compiler.set_stance("force_eager")  # compiled kernels hide their operations
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
        if self.counting and self.counter is not None:
            self.counting = False
            self.counter.__exit__(None, None, None)
            torch.compiler.set_stance("default")
        if trainer.global_step > self.warmup:
            self.waits.append(self.began - self.ended)
            self.steps.append(now - self.ended)
        else:
            self.warmup_seconds = now - self.began_training
        self.ended = now

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Computes the figures from the medians."""
        step = float(torch.tensor(self.steps).median())
        assert self.counter is not None
        flops = self.counter.get_total_flops() * trainer.world_size
        named = str(trainer.precision)
        half = torch.bfloat16 if "bf16" in named else torch.float16
        dtype = half if "16" in named else torch.float32
        peak = matmul_flops(pl_module.device, dtype) * trainer.world_size
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
            "matmul_tflops_per_second": peak / 1e12,
            "mfu": flops / step / peak,
            "warmup_seconds": self.warmup_seconds,
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        }


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second of a product of two square matrices: the best of some.

    Args:
        device: Where.
        dtype: Of the matrices; those of float32 are multiplied in TF32 where convolutions are.
    """
    size = 8192 if device.type == "cuda" else 1024
    one, two = torch.randn(2, size, size, device=device, dtype=dtype)
    seconds = []
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        torch.set_float32_matmul_precision("high")
    for _ in range(10):
        began = _now(device)
        one @ two
        seconds.append(_now(device) - began)
    torch.set_float32_matmul_precision(before)
    return 2 * size**3 / min(seconds)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
