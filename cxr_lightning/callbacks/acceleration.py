"""Acceleration: torch.compile and the channels-last layout, for stages trained on a GPU."""

import os
import shutil
from typing import Literal

import torch
from lightning import Callback, LightningModule, Trainer

from cxr_lightning.errors import UserError
from cxr_lightning.stages.base import Stage

Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]

CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
"""Modes that replay recorded kernels, whose results lie in the same place in each step."""


class Acceleration(Callback):
    """Compiles the networks that a stage trains, and lays their feature maps out channels last.

    The stage computes the same, up to rounding, and its products and checkpoints are the same
    files: a run may go on with other settings. Training steps alone are compiled. Validation, with
    batches of many sizes, is not: each size would be compiled anew.

    Args:
        compile: Whether the networks are compiled. The first steps take some minutes.
        mode: What torch.compile optimizes for; `max-autotune` is compiled longest.
        backend: Of torch.compile; all but `inductor` are for finding errors.
        channels_last: Whether weights and feature maps are stored with the channels innermost, as
            the convolutions of a GPU want them; without `compile`, group norms undo it. Not on a
            CPU, where it is slower, and torch 2.14 was seen to crash in batch norm's gradient.
    """

    def __init__(
        self,
        compile: bool = False,
        mode: Mode = "default",
        backend: str = "inductor",
        channels_last: bool = False,
    ) -> None:
        self.compile = compile
        self.mode = mode
        self.backend = backend
        self.channels_last = channels_last

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepares the networks for training, before they are distributed.

        Raises:
            UserError: If the backend is unknown or `inductor` finds no compiler here, a mode is
                given that the backend does not know, the stage has no network that can be
                compiled, or a CPU is asked for channels last.
        """
        if stage != "fit":
            return
        assert isinstance(pl_module, Stage)
        if self.channels_last:
            if trainer.strategy.root_device.type == "cpu":
                raise UserError(
                    "acceleration.channels_last: it is for GPUs, and this training runs on a CPU; "
                    "leave it false."
                )
            pl_module.to(memory_format=torch.channels_last)
        if not self.compile:
            return
        _check_backend(self.backend, self.mode)
        if self.mode in CUDA_GRAPHS and trainer.accumulate_grad_batches > 1:
            raise UserError(
                f"acceleration.mode: {self.mode} keeps gradients in memory that the next batch "
                f"overwrites, and trainer.accumulate_grad_batches is "
                f"{trainer.accumulate_grad_batches}; use max-autotune-no-cudagraphs or default."
            )
        networks = pl_module.compilable()
        if not networks:
            raise UserError(
                f"acceleration.compile: a training of {type(pl_module).__name__} cannot be "
                "compiled; leave it false."
            )
        # Stage 4 goes back through a step twice where it measures its gradients.
        torch._functorch.config.donated_buffer = False
        mode = self.mode if self.backend == "inductor" else None
        for network in networks:
            network.compile(mode=mode, backend=self.backend)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lays a resumed optimizer's moments out as the weights are, which fused kernels expect."""
        for optimizer in trainer.optimizers:
            for parameter, state in optimizer.state.items():
                for name, value in state.items():
                    if value.shape == parameter.shape and value.stride() != parameter.stride():
                        state[name] = torch.empty_like(parameter).copy_(value)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is compiled while validating."""
        torch.compiler.set_stance("force_eager")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Back to what was compiled."""
        torch.compiler.set_stance("default")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """The same, where a validation broke off."""
        torch.compiler.set_stance("default")


def _check_backend(backend: str, mode: Mode) -> None:
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise UserError(
            f"acceleration.backend: torch has no {backend!r} here; use one of {', '.join(known)}."
        )
    if backend != "inductor":
        if mode != "default":
            raise UserError(
                f"acceleration.mode: {backend} has no mode {mode!r}; leave it out, or use "
                "--acceleration.backend inductor."
            )
        return
    compilers = [os.environ.get("CC"), os.environ.get("CXX"), "cc", "gcc", "g++", "clang"]
    if not any(name and shutil.which(name) for name in compilers):
        raise UserError(
            "acceleration.compile: torch.compile needs a C compiler and finds none here; install "
            "one, such as gcc and g++, or leave acceleration.compile false."
        )
