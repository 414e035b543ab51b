"""Where images are made: devices of this machine, and the share of this process in a larger run."""

import os
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch

from cxr_lightning.errors import UserError

Devices = int | Literal["auto"]


class Rank(NamedTuple):
    """The place of this command among several ones that make one set together.

    Attributes:
        number: From 0.
        world: How many there are.
        local: Number among those on this machine; None where nothing says it.
    """

    number: int = 0
    world: int = 1
    local: int | None = None

    def share(self, images: list[int]) -> list[int]:
        """The part of some images that this command makes: none twice, whatever is there."""
        return [i for i in images if i % self.world == self.number]


def find_rank(environment: Mapping[str, str] = os.environ) -> Rank:
    """The rank that torchrun, or a batch script, states in RANK, WORLD_SIZE and LOCAL_RANK.

    Raises:
        UserError: If they are no numbers that belong together.
    """
    names = ("RANK", "WORLD_SIZE")
    if not set(names) <= set(environment):
        return Rank()
    try:
        number, world = (int(environment[name]) for name in names)
        local = int(environment["LOCAL_RANK"]) if "LOCAL_RANK" in environment else None
    except ValueError:
        number, world, local = -1, 0, None
    if not 0 <= number < world:
        raise UserError(
            f"RANK: {environment['RANK']!r} of WORLD_SIZE {environment['WORLD_SIZE']!r} is no "
            "rank; start with torchrun, or unset both."
        )
    return Rank(number, world, local)


def choose_devices(device: str, devices: Devices, rank: Rank) -> list[str]:
    """The device of each process that this command starts.

    Args:
        device: cpu, cuda, cuda:1, ..., or auto: a GPU where there is one.
        devices: Number of processes, one a GPU; auto: all GPUs, or one process without one.
        rank: A local rank takes the GPU of its number.

    Raises:
        UserError: If a device is not there.
    """
    if devices != "auto" and devices < 1:
        raise UserError(f"devices: {devices} is not possible; use 1 or more, or auto.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        return _gpus(devices, rank)
    if devices not in (1, "auto") and device != "cpu":
        raise UserError(
            f"devices: {devices} cannot all be {device}; use --device cuda for several GPUs."
        )
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device: {device!r} is not there; use cpu or auto.") from error
    return [device] * (1 if devices == "auto" else devices)


def _gpus(devices: Devices, rank: Rank) -> list[str]:
    there = torch.cuda.device_count()
    if not there:
        raise UserError("device: 'cuda' is not there; use cpu or auto.")
    if rank.local is not None:
        if devices not in (1, "auto"):
            raise UserError(
                f"devices: {devices} are given to one process of torchrun, which starts one for "
                "each GPU itself; leave it out."
            )
        return [f"cuda:{rank.local % there}"]
    wanted = there if devices == "auto" else devices
    if wanted > there:
        raise UserError(f"devices: {wanted} GPUs are not there; use 1 to {there}, or auto.")
    return [f"cuda:{number}" for number in range(wanted)]
