"""Samplers: from noise to image in exactly the number of steps asked for."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cxr_lightning.diffusion.process import ddim_step, ddpm_step, epsilon_from_x0, x0_from_epsilon
from cxr_lightning.diffusion.random import ImageNoise
from cxr_lightning.errors import UserError

SamplerName = Literal["ddpm", "ddim"]
Epsilon = Callable[[Float[Tensor, "b c h w"], int], Float[Tensor, "b c h w"]]
"""Predicts the noise in y_t; called with the state y_t and the step t in 1..T."""


def kept_times(timesteps: int, steps: int) -> list[int]:
    """Exactly `steps` distinct times from T down, evenly spaced, T included ("trailing").

    Trailing spacing: Lin et al. 2023 (arXiv 2305.08891), section 3.3.

    Args:
        timesteps: Number T of diffusion steps of the model.
        steps: Number of steps, 1 to T.

    Raises:
        UserError: If `steps` is not in that range.
    """
    if not 1 <= steps <= timesteps:
        raise UserError(
            f"steps: {steps} is not possible with a model of {timesteps} diffusion steps; use 1 "
            f"to {timesteps}."
        )
    return [round(float(t)) for t in timesteps - np.arange(steps) * (timesteps / steps)]


def sample(
    epsilon: Epsilon,
    noise: ImageNoise,
    shape: tuple[int, int, int],
    alpha_bar: Float[Tensor, " t1"],
    *,
    sampler: SamplerName = "ddim",
    steps: int = 50,
    eta: float = 0.0,
    on_step: Callable[[int, Float[Tensor, "b c h w"]], None] | None = None,
) -> Float[Tensor, "b c h w"]:
    """Draws y_0 of the chain from y_T ~ N(0, I).

    The estimate of the clean image is clamped to [-1, 1] at each step and the noise recomputed
    from the clamped estimate, as OpenAI's improved diffusion does.

    Args:
        epsilon: Noise prediction.
        noise: Random streams of the images.
        shape: Channels, height, width.
        alpha_bar: Schedule for t = 0..T.
        sampler: `ddpm` (ancestral) or `ddim`.
        steps: Number of network evaluations.
        eta: Stochasticity of `ddim`.
        on_step: Called after each step with the number of steps done and the clean estimate.

    Returns:
        Images in model range.
    """
    times = kept_times(len(alpha_bar) - 1, steps)
    y = noise.normal(*shape)
    for done, (t, previous) in enumerate(zip(times, [*times[1:], 0], strict=True), start=1):
        a_t, a_prev = float(alpha_bar[t]), float(alpha_bar[previous])
        a = y.new_full((len(y),), a_t)
        x0 = x0_from_epsilon(y, epsilon(y, t), a).clamp(-1.0, 1.0)
        stochastic = previous > 0 and (sampler == "ddpm" or eta > 0.0)
        fresh = noise.normal(*shape) if stochastic else torch.zeros_like(y)
        if sampler == "ddpm":
            y = ddpm_step(y, x0, fresh, a_t, a_prev)
        else:
            y = ddim_step(x0, epsilon_from_x0(y, x0, a), fresh, a_t, a_prev, eta)
        if on_step is not None:
            on_step(done, x0)
    return y
