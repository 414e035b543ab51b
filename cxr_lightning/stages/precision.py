"""The precision that a stage is trained in where none is asked for."""

import platform
from typing import Literal

import torch

Precision = Literal["bf16-mixed", "32-true"]


def default_precision(device_type: str) -> Precision:
    """`bf16-mixed` where the device computes in bfloat16 itself, else `32-true`.

    A CPU without such instructions (AVX512-BF16 or AMX, bfloat16 of ARM) takes about ten times as
    long for a convolution in bfloat16 as in float32.

    Args:
        device_type: `cpu`, `cuda` and so on.
    """
    if device_type == "cpu":
        return "bf16-mixed" if cpu_has_bf16() else "32-true"
    if device_type == "cuda" and torch.cuda.is_available():
        emulated = not torch.cuda.is_bf16_supported(including_emulation=False)
        return "32-true" if emulated else "bf16-mixed"
    return "bf16-mixed"


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for products of bfloat16."""
    if platform.machine() in ("arm64", "aarch64"):
        # without oneDNN, as on a Mac, torch has no such function and computes in it slowly
        has_onednn = torch.backends.mkldnn.is_available()
        return has_onednn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
