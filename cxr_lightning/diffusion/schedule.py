"""Noise schedules: alpha_bar_t for t = 0..T, in float64."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


def alpha_bar(
    schedule: Literal["linear", "cosine", "zero_snr"], timesteps: int
) -> Float[Tensor, " t1"]:
    """Products of alpha_s = 1 - beta_s, with alpha_bar_0 = 1.

    Args:
        schedule: `linear`, beta from 1e-4 to 0.02 at T = 1000, scaled by 1000 / T for other T (Ho
            et al. 2020, arXiv 2006.11239, section 4); `cosine`, equation 17 of Nichol and Dhariwal
            2021 (arXiv 2102.09672) with s = 0.008 and beta at most 0.999; `zero_snr`, the linear
            one rescaled so that nothing of the image is left at T (Lin et al. 2023, arXiv
            2305.08891, algorithm 1).
        timesteps: Number of diffusion steps T.
    """
    if schedule != "cosine":
        scale = 1000.0 / timesteps
        beta = torch.linspace(1e-4 * scale, 0.02 * scale, timesteps, dtype=torch.float64)
    else:
        t = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        f = torch.cos((t + 0.008) / 1.008 * math.pi / 2.0) ** 2
        beta = 1.0 - f[1:] / f[:-1]
    alpha = 1.0 - beta.clamp(max=0.999)
    product = alpha.cumprod(0)
    if schedule == "zero_snr":
        signal = product.sqrt()
        product = ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])).square()
    return torch.cat([torch.ones(1, dtype=torch.float64), product])


def snr(alpha_bar_t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Signal-to-noise ratio alpha_bar / (1 - alpha_bar)."""
    return alpha_bar_t / (1.0 - alpha_bar_t)
