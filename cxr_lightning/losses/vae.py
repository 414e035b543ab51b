"""The VAE's objective (Kingma and Welling 2013, arXiv 1312.6114)."""

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure


def vae_loss(
    image: Float[Tensor, "b c h w"],
    reconstruction: Float[Tensor, "b c h w"],
    mean: Float[Tensor, "b d"],
    log_variance: Float[Tensor, "b d"],
    *,
    beta: float = 1.0,
    ssim_weight: float = 0.0,
) -> dict[str, Float[Tensor, ""]]:
    """L = reconstruction + beta KL + ssim_weight structure: `loss` and its terms by name.

    With beta = 1 and without structure the negative ELBO of a Gaussian decoder of variance 1/2
    (Kingma and Welling 2013, eq. 3), up to a constant; other beta as Higgins et al. 2017, eq. 4.

    Args:
        image: Originals, model range.
        reconstruction: Their decoded codes, model range.
        mean: Mean of q(z|x).
        log_variance: Log variance of q(z|x).
        beta: Weight of the KL divergence.
        ssim_weight: Weight of the structural error; with 0 it is left out.
    """
    error = reconstruction_error(image, reconstruction)
    kl = kl_divergence(mean, log_variance)
    terms = {"loss": error + beta * kl, "reconstruction": error, "kl": kl}
    if ssim_weight:
        terms["structure"] = structural_error(image, reconstruction)
        terms["loss"] = terms["loss"] + ssim_weight * terms["structure"]
    return terms


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


def structural_error(
    image: Float[Tensor, "b c h w"], reconstruction: Float[Tensor, "b c h w"]
) -> Float[Tensor, ""]:
    """1 - SSIM summed over pixels, mean over the batch.

    SSIM itself is a mean over pixels; the sum grows with the image as `reconstruction_error` does,
    so that one weight means the same at every size.
    """
    dissimilarity = 1.0 - structural_similarity(image, reconstruction)
    return image[0].numel() * dissimilarity.mean()


def structural_similarity(
    image: Float[Tensor, "b c h w"], reconstruction: Float[Tensor, "b c h w"]
) -> Float32[Tensor, " b"]:
    """SSIM of each image and its reconstruction, in [-1, 1]; 1 = equal.

    Wang et al. 2004 (doi 10.1109/TIP.2003.819861), eq. 13, by torchmetrics: Gaussian window of 11
    pixels and sigma 1.5, reflected at the border. Its luminance term (eq. 6) is for grey values
    that start at 0, so model range [-1, 1] is moved to [0, 2]. fp32 outside autocast: local
    variances are small differences of large numbers.

    Args:
        image: Originals, model range, at least 6 pixels high and wide.
        reconstruction: What they are compared with, model range.
    """
    with torch.autocast(image.device.type, enabled=False):
        similarity = structural_similarity_index_measure(
            reconstruction.float() + 1.0, image.float() + 1.0, data_range=2.0, reduction="none"
        )
    assert isinstance(similarity, Tensor)
    return similarity
