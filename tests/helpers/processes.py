"""Processes forked from the test's own, so that none imports the libraries anew."""

import csv
import os
import socket
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.multiprocessing import start_processes

from cxr_lightning.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"
SECONDS = 240


def on_ranks(work: Callable[[], object], count: int = 2) -> None:
    """Calls `work` in forked processes with the environment that torchrun gives.

    Args:
        work: Called once in each process.
        count: Number of processes.

    Raises:
        ProcessException: If a process fails; the others are ended then.
        TimeoutError: If they do not end.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = start_processes(
        _as_rank, (work, count, port), nprocs=count, join=False, start_method="fork"
    )
    end = time.monotonic() + SECONDS
    while not ranks.join(timeout=1.0):
        if time.monotonic() > end:
            for process in ranks.processes:
                process.kill()
            raise TimeoutError(f"{count} processes did not end within {SECONDS} s")


def in_group(work: Callable[[int], object], count: int = 2) -> None:
    """Calls `work(rank)` in forked processes that are one gloo group."""

    def one() -> None:
        torch.distributed.init_process_group("gloo")
        work(torch.distributed.get_rank())
        torch.distributed.destroy_process_group()

    on_ranks(one, count)


def run_main(args: Sequence[str], count: int = 1) -> None:
    """Runs `cxr ARGS` in a forked process, or in several by DDP as torchrun would."""
    ranks = [f"--trainer.devices={count}", "--trainer.strategy=ddp"] if count > 1 else []
    on_ranks(lambda: main([*args, *ranks]), count)


def validate(
    stage: str, prepared: Path, folder: Path, processes: int, *flags: str
) -> dict[str, float]:
    """Runs `cxr validate` of untrained networks on all validation images; the stage's metrics.

    Args:
        stage: `vae`, `ddpm`, ...
        prepared: The data set.
        folder: The run's.
        processes: 1, or more by DDP.
        flags: Further ones.
    """
    arguments = [
        "validate",
        f"--config={CONFIGS}/{stage}.yaml",
        f"--config={CONFIGS}/scale/cpu-smoke.yaml",
        f"--data.root={prepared}",
        f"--trainer.default_root_dir={folder}",
        "--trainer.limit_val_batches=null",
        "--generation.extractor=null",
        *flags,
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ckpt_path: null")
        run_main(arguments, processes)
    with (folder / "csv/version_0/metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    return {k: float(v) for k, v in row.items() if k.startswith(f"{stage}/valid/")}


def _as_rank(rank: int, work: Callable[[], object], count: int, port: int) -> None:
    if count > 1:
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "TORCHELASTIC_RUN_ID": "test",
        }
    work()
