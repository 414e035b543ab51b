"""Samplers: from noise to image in exactly the number of steps asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from cxr_lightning.diffusion.process import add_noise, ddim_step, ddpm_step, epsilon_from_x0
from cxr_lightning.diffusion.random import Noise
from cxr_lightning.diffusion.solvers import (
    Estimate,
    dpm_solver,
    sde_dpm_solver,
    unipc_correct,
    unipc_predict,
)
from cxr_lightning.diffusion.spacing import Spacing, kept_times
from cxr_lightning.errors import UserError
from cxr_lightning.ranges import check_range

SamplerName = Literal[
    "ddpm", "ddim", "dpmpp_2m", "dpmpp_3m", "sde_dpmpp_2m", "unipc", "consistency"
]
SamplingPrecision = Literal["fp32", "bf16"]
CleanEstimate = Callable[[Float[Tensor, "b c h w"], int], Float[Tensor, "b c h w"]]
"""Estimates x_0; called with the state y_t and the step t in 1..T."""

MOST = 4
"""Steps of the sampler `consistency`."""

ORDERS: dict[SamplerName, int] = {"dpmpp_2m": 2, "dpmpp_3m": 3, "sde_dpmpp_2m": 2, "unipc": 3}
"""Of the multistep solvers."""


@dataclass(frozen=True)
class Sampling:
    """How images are drawn from a trained model.

    Attributes:
        sampler: `ddpm`, ancestral; `ddim`; `dpmpp_2m` and `dpmpp_3m`, DPM-Solver++; `sde_dpmpp_2m`,
            the same with fresh noise at each step, in which the errors of a model that was trained
            briefly fade; `unipc`, UniPC of order 3; `consistency`, for models tuned to few steps:
            the estimate with fresh noise (Song et al. 2023, arXiv 2303.01469, algorithm 1).
        steps: Number of denoising steps, and of network evaluations without guidance.
        guidance: Weight g of classifier-free guidance, null + g (conditional - null) (Ho and
            Salimans 2022, arXiv 2207.12598), of the denoiser and, for new images, of the latent
            prior; 1 is no guidance and costs half.
        guidance_interval: Where there is guidance of the denoiser: from and to which share of the
            diffusion steps, 0 the clean image, 1 pure noise (Kynkäänniemi et al. 2024, arXiv
            2404.07724).
        eta: Stochasticity of `ddim`: 0 none, 1 as much as the ancestral sampler.
        spacing: `beta`, closer at both ends (Lee et al. 2024, arXiv 2407.12173); `trailing`, evenly
            in time (Lin et al. 2023, arXiv 2305.08891, section 3.3); `logsnr`, evenly in the log
            signal-to-noise ratio (Lu et al. 2022, arXiv 2206.00927).
        start: Share of the diffusion steps to begin at. Below 1 the VAE's image, noised to there,
            takes the place of pure noise (Lyu et al. 2022, arXiv 2205.12524).
        precision: What the denoiser computes in: `fp32`, or `bf16` (autocast), which is faster on
            devices with instructions for it and changes grey values by rounding. The steps
            themselves, the latent prior and the VAE stay in fp32.
    """

    sampler: SamplerName = "sde_dpmpp_2m"
    steps: int = 20
    guidance: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    eta: float = 0.0
    spacing: Spacing = "beta"
    start: float = 1.0
    precision: SamplingPrecision = "fp32"

    def check(self, timesteps: int) -> None:
        """Raises an error if a model of so many diffusion steps cannot be sampled this way.

        Raises:
            UserError: If a value is out of its range.
        """
        kinds = {"sampler": SamplerName, "spacing": Spacing, "precision": SamplingPrecision}
        for name, kind in kinds.items():
            if getattr(self, name) not in get_args(kind):
                raise UserError(
                    f"{name}: {getattr(self, name)!r} is not known; use one of "
                    f"{', '.join(get_args(kind))}."
                )
        if not 0.0 < self.start <= 1.0:
            raise UserError(f"start: {self.start} is no share; give more than 0, at most 1.")
        first = self.first_time(timesteps)
        if not 1 <= self.steps <= first:
            begun = "" if self.start == 1.0 else f" that is begun at {self.start}"
            raise UserError(
                f"steps: {self.steps} is not possible with a model of {timesteps} diffusion steps"
                f"{begun}; use 1 to {first}."
            )
        if self.sampler == "consistency" and self.steps > MOST:
            raise UserError(
                f"steps: {self.steps} are too many for the sampler consistency; use 1 to {MOST}."
            )
        check_range("guidance", self.guidance, 0)
        low, high = read_interval(self.guidance_interval)
        if not 0.0 <= low < high <= 1.0:
            raise UserError(
                f"guidance_interval: {low} to {high} is no interval of shares; give two numbers "
                "from 0 to 1, the smaller first."
            )
        check_range("eta", self.eta, 0, 1)
        if self.eta > 0.0 and self.sampler != "ddim":
            raise UserError(
                f"eta: {self.eta} has no effect on the sampler {self.sampler}; use ddim, or leave "
                "eta out."
            )

    def first_time(self, timesteps: int) -> int:
        """The step to begin at, 1 to T."""
        return max(round(self.start * timesteps), 1)

    def guided(self, t: int, timesteps: int) -> bool:
        """Whether there is guidance at step t."""
        low, high = self.guidance_interval
        return self.guidance != 1.0 and low <= t / timesteps <= high


def read_interval(given: Sequence[float] | None) -> tuple[float, float]:
    """The guidance interval; all steps by default.

    Raises:
        UserError: If there are not two numbers.
    """
    if given is not None and len(given) != 2:
        raise UserError(
            f"guidance_interval: {' '.join(map(str, given))} is no interval; give two numbers from "
            "0 to 1, the smaller first."
        )
    low, high = given or (0.0, 1.0)
    return low, high


def levels(alpha_bar: Float[Tensor, " t1"]) -> Float[Tensor, " t1"]:
    """Half the log signal-to-noise ratio of every time.

    Finite also at an SNR of 0: there it is that of alpha = 3e-5.
    """
    a = alpha_bar.clamp(1e-9, 1.0)
    return 0.5 * (torch.log(a) - torch.log1p(-a))


def sample(
    estimate: CleanEstimate,
    noise: Noise,
    shape: tuple[int, int, int],
    alpha_bar: Float[Tensor, " t1"],
    sampling: Sampling,
    *,
    begin_with: Float[Tensor, "b c h w"] | None = None,
    on_step: Callable[[int, Float[Tensor, "b c h w"]], None] | None = None,
) -> Float[Tensor, "b c h w"]:
    """Draws y_0 of the chain from y_T ~ N(0, I), or from a noised image.

    The estimate of the clean image is clamped to [-1, 1] at each step, and the noise belongs to the
    clamped estimate, as in OpenAI's improved diffusion. The last step gives the estimate itself.

    Args:
        estimate: Clean image from a state.
        noise: Random streams of the images.
        shape: Channels, height, width.
        alpha_bar: Schedule for t = 0..T.
        sampling: Sampler, steps, start.
        begin_with: What is noised where `sampling.start` is below 1; model range.
        on_step: Called after each step with the number of steps done and the clean estimate.

    Returns:
        Images in model range.

    Raises:
        ValueError: If `sampling.start` is below 1 and there is nothing to begin with.
    """
    level = levels(alpha_bar)
    first = sampling.first_time(len(alpha_bar) - 1)
    times = kept_times(sampling.spacing, level, first, sampling.steps)
    y = noise.normal(*shape)
    if sampling.start < 1.0:
        if begin_with is None:
            raise ValueError("`begin_with` is needed where `sampling.start` is below 1.")
        y = add_noise(begin_with, y, y.new_full((len(y),), float(alpha_bar[first])))
    solver = _Multistep(sampling.sampler, noise) if sampling.sampler in ORDERS else None
    for done, (t, previous) in enumerate(zip(times, [*times[1:], 0], strict=True), start=1):
        x0 = estimate(y, t).clamp(-1.0, 1.0)
        if on_step is not None:
            on_step(done, x0)
        if previous == 0:
            break
        if solver is not None:
            left = sampling.steps - done + 1
            y = solver.step(y, Estimate(x0, float(level[t])), float(level[previous]), left)
        else:
            y = _one_step(y, x0, noise.normal, alpha_bar[[t, previous]].tolist(), sampling)
    return x0


def _one_step(
    y: Float[Tensor, "b c h w"],
    x0: Float[Tensor, "b c h w"],
    normal: Callable[..., Float[Tensor, "b c h w"]],
    a: Sequence[float],
    sampling: Sampling,
) -> Float[Tensor, "b c h w"]:
    """A step of `ddpm`, `ddim` or `consistency`, which look at one estimate only."""
    a_t, a_prev = a
    stochastic = sampling.sampler != "ddim" or sampling.eta > 0.0
    fresh = normal(*y.shape[1:]) if stochastic else torch.zeros_like(y)
    if sampling.sampler == "consistency":
        return add_noise(x0, fresh, y.new_full((len(y),), a_prev))
    if sampling.sampler == "ddpm":
        return ddpm_step(y, x0, fresh, a_t, a_prev)
    epsilon = epsilon_from_x0(y, x0, y.new_full((len(y),), a_t))
    return ddim_step(x0, epsilon, fresh, a_t, a_prev, sampling.eta)


class _Multistep:
    """DPM-Solver++ or UniPC with the estimates that it remembers."""

    def __init__(self, sampler: SamplerName, noise: Noise) -> None:
        self.sampler = sampler
        self.noise = noise
        self.order = ORDERS[sampler]
        self.estimates: list[Estimate] = []
        self.begun: Tensor | None = None

    def step(
        self, y: Float[Tensor, "b c h w"], new: Estimate, level: float, left: int
    ) -> Float[Tensor, "b c h w"]:
        """The state at the next level; of a lower order in the first and the last steps.

        Args:
            y: State at the new estimate's level.
            new: Estimate from it.
            level: The next level.
            left: Steps that are left, this one included.
        """
        if self.sampler == "unipc" and self.begun is not None:
            y = unipc_correct(self.begun, self.estimates, new)
        known = [*self.estimates, new]
        self.estimates = known[-min(self.order, left) :]
        self.begun = y
        if self.sampler == "sde_dpmpp_2m":
            return sde_dpm_solver(y, self.estimates, level, self.noise.normal(*y.shape[1:]))
        go = unipc_predict if self.sampler == "unipc" else dpm_solver
        return go(y, self.estimates, level)
