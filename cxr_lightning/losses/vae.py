"""The VAE's objective (Kingma and Welling 2013, arXiv 1312.6114)."""

import torch
from jaxtyping import Float
from torch import Tensor


def reconstruction_error(
    image: Float[Tensor, "b c h w"], reconstruction: Float[Tensor, "b c h w"]
) -> Float[Tensor, ""]:
    """Squared error summed over pixels, mean over the batch: independent of the batch size."""
    return (image - reconstruction).square().flatten(1).sum(1).mean()


def kl_divergence(
    mean: Float[Tensor, "b d"], log_variance: Float[Tensor, "b d"]
) -> Float[Tensor, ""]:
    """KL(q(z|x) || N(0, I)) in nats, mean over the batch (Kingma and Welling 2013, appendix B)."""
    per_dimension = 1.0 + log_variance - mean.square() - log_variance.exp()
    return -0.5 * per_dimension.sum(1).mean()


def active_units(means: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Latent dimensions in use: variance of the posterior mean over images above 0.01.

    Burda et al. 2015 (arXiv 1509.00519), section 5.2.
    """
    return (torch.var(means, dim=0) > 0.01).sum().float()
