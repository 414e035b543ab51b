"""TorchScript: networks of users, whose code is in the file."""

import warnings
from pathlib import Path

import torch


def load_torchscript(path: Path, device: torch.device | str = "cpu") -> torch.jit.ScriptModule:
    """A network from a file of `torch.jit.save`, in eval mode.

    Raises:
        RuntimeError, ValueError, OSError: If it is none.
    """
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):  # by version of torch
            warnings.simplefilter("ignore", category)  # torch.jit is kept, not developed
        network: torch.jit.ScriptModule = torch.jit.load(path, map_location=device)
    return network.eval()
