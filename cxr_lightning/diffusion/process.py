"""The diffusion process in y, one core for all forms.

DiffuseVAE (Pandey et al. 2022, arXiv 2201.00308) in Form 2 shifts the mean of the forward process
by the VAE image x_hat: q(x_t | x_0, x_hat) = N(sqrt(A_t) x_0 + x_hat, (1 - A_t) I). With
y_t = x_t - x_hat this is exactly the DDPM chain of Form 1 on x_0: same marginals, posterior and
DDIM step. So everything here is written for y_t, which is x_t itself in Form 1, and the forms
differ only in what the network is shown (`networks.unet.Denoiser`).

A_t is alpha_bar_t, with A_0 = 1; arguments named `a_t` hold it for each image.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


def add_noise(
    x0: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], a_t: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """Sample of q(y_t | x_0): sqrt(A_t) x_0 + sqrt(1 - A_t) eps (Ho et al. 2020, equation 4)."""
    signal, sigma = _scales(a_t)
    return signal * x0 + sigma * noise


def velocity(
    x0: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], a_t: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """Velocity v = sqrt(A_t) eps - sqrt(1 - A_t) x_0 (Salimans and Ho 2022, arXiv 2202.00512)."""
    signal, sigma = _scales(a_t)
    return signal * noise - sigma * x0


def x0_from_epsilon(
    y_t: Float[Tensor, "b c h w"], epsilon: Float[Tensor, "b c h w"], a_t: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """Clean image from predicted noise: Ho et al. 2020, equation 4, solved for x_0. Not clamped."""
    signal, sigma = _scales(a_t)
    return (y_t - sigma * epsilon) / signal


def epsilon_from_x0(
    y_t: Float[Tensor, "b c h w"], x0: Float[Tensor, "b c h w"], a_t: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """Noise that leads from x_0 to y_t: equation 4 of Ho et al. 2020 solved for eps."""
    signal, sigma = _scales(a_t)
    return (y_t - signal * x0) / sigma


def x0_from_velocity(
    y_t: Float[Tensor, "b c h w"], v: Float[Tensor, "b c h w"], a_t: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """Clean image sqrt(A_t) y_t - sqrt(1 - A_t) v (Salimans and Ho 2022, appendix D).

    Not clamped; finite also at A_t = 0, where predicted noise tells nothing of the image.
    """
    signal, sigma = _scales(a_t)
    return signal * y_t - sigma * v


def x0_from_output(
    prediction: Literal["epsilon", "v"],
    y_t: Float[Tensor, "b c h w"],
    output: Float[Tensor, "b c h w"],
    a_t: Float[Tensor, " b"],
) -> Float[Tensor, "b c h w"]:
    """Clean image from what a denoiser of either prediction put out.

    At A_t = 1, time 0, it is y_0 whatever the output: the boundary condition of a consistency
    function (Song et al. 2023, arXiv 2303.01469, section 3), without further means.
    """
    invert = x0_from_epsilon if prediction == "epsilon" else x0_from_velocity
    return invert(y_t, output, a_t)


def ddpm_step(
    y_t: Float[Tensor, "b c h w"],
    x0: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    a_t: float | Float[Tensor, "b 1 1 1"],
    a_prev: float | Float[Tensor, "b 1 1 1"],
) -> Float[Tensor, "b c h w"]:
    """Ancestral step to the previous kept time (Ho et al. 2020, equations 6 and 7).

    Args:
        y_t: State at the current time.
        x0: Estimate of the clean image.
        noise: Standard normal noise; without effect when the previous time is 0.
        a_t: alpha_bar at the current time, of all images or of each.
        a_prev: alpha_bar at the previous kept time; 1 at time 0. The variance is the posterior's
            ("fixed small").
    """
    alpha = a_t / a_prev
    beta = 1.0 - alpha
    mean = (a_prev**0.5 * beta * x0 + alpha**0.5 * (1.0 - a_prev) * y_t) / (1.0 - a_t)
    variance = beta * (1.0 - a_prev) / (1.0 - a_t)
    return mean + variance**0.5 * noise


def ddim_step(
    x0: Float[Tensor, "b c h w"],
    epsilon: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    a_t: float,
    a_prev: float,
    eta: float = 0.0,
) -> Float[Tensor, "b c h w"]:
    """DDIM step (Song et al. 2020, arXiv 2010.02502, equations 12 and 16).

    Args:
        x0: Estimate of the clean image.
        epsilon: Noise that belongs to this estimate.
        noise: Standard normal noise, used when `eta` is above 0.
        a_t: alpha_bar at the current time.
        a_prev: alpha_bar at the previous kept time; 1 at time 0.
        eta: 0 deterministic, 1 as stochastic as the ancestral sampler.
    """
    sigma = eta * ((1.0 - a_prev) / (1.0 - a_t) * (1.0 - a_t / a_prev)) ** 0.5
    left = max(1.0 - a_prev - sigma**2, 0.0)  # rounding may take it below 0
    return a_prev**0.5 * x0 + left**0.5 * epsilon + sigma * noise


def _scales(
    a_t: Float[Tensor, " b"],
) -> tuple[Float[Tensor, "b 1 1 1"], Float[Tensor, "b 1 1 1"]]:
    """sqrt(A_t) and sqrt(1 - A_t), shaped for images."""
    a = a_t[:, None, None, None]
    return torch.sqrt(a), torch.sqrt(1.0 - a)
