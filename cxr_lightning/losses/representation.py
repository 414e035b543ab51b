"""The representation loss of stage 4: L = L_diffusion + lambda L_representation."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cxr_lightning.diffusion.schedule import snr
from cxr_lightning.types import MODEL_RANGE

Embed = Callable[[Float[Tensor, "b 1 h w"]], Float[Tensor, "b d"]]
"""A frozen encoder: model-range images to unit embeddings, fp32."""

PART = 16
"""Images whose activations are kept at a time where they are computed again."""


def embedding_distance(a: Float[Tensor, "b d"], b: Float[Tensor, "b d"]) -> Float32[Tensor, " b"]:
    """1 - cos of two embeddings, in [0, 2], as half the squared distance of the unit vectors.

    fp32 outside autocast: near 1 a cosine in bf16 moves in steps of .0039.
    """
    with torch.autocast(a.device.type, enabled=False):
        one, other = F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)
        return 0.5 * (one - other).square().sum(1)


def representation_loss(
    encoder: Embed,
    x0: Float[Tensor, "b 1 h w"],
    x0_estimate: Float[Tensor, "b 1 h w"],
    a_t: Float[Tensor, " b"],
    snr_min: float = 0.25,
    total: Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Distance of embeddings of the original and of the one-step reconstruction.

    sum_i w_i m_i (1 - cos(e(x_i), e(x0_i))) / sum_i w_i m_i, with w = alpha_bar_t, which bounds the
    gradient on the predicted noise by sqrt(w (1 - w)) <= 1/2 at every step, and m = [SNR(t) >=
    snr_min]: at lower SNR the estimate is a blurred posterior mean, and a feature loss on it costs
    diversity. (One step as in ControlNet++, arXiv 2404.07987; the whitepaper gives no formula.)

    Only images inside the cut pass the encoder. It sees the estimate clamped to the model range, as
    samplers and the score do, lest the loss be lowered by values that no image has. The gradient is
    that without the clamp (straight-through, Bengio et al. 2013, arXiv 1308.3432), which would stop
    it in the background, exactly -1.

    Args:
        encoder: Frozen encoder; gradients pass through it to the estimate.
        x0: Originals, model range.
        x0_estimate: Clean-image estimates from the predicted noise, not clamped.
        a_t: alpha_bar at each image's step.
        snr_min: Smallest signal-to-noise ratio that counts.
        total: What the sum is divided by; by default the sum of the weights. With several processes
            the mean of `weight_inside` over them, so that the mean of their losses is that of one.

    Returns:
        The loss, in [0, 2]; an exact zero connected to the graph if no image is inside the cut.
    """
    inside = snr(a_t) >= snr_min
    if not bool(inside.any()):
        return 0.0 * x0_estimate.sum()
    with torch.no_grad():
        target = encoder(x0[inside])
    estimate = x0_estimate[inside]
    estimate = estimate + (estimate.clamp(*MODEL_RANGE) - estimate).detach()
    distance = 0.5 * (encoder(estimate) - target).square().sum(1)  # = 1 - cos
    weight = a_t[inside]
    return (weight * distance).sum() / (weight.sum() if total is None else total)


def weight_inside(a_t: Float[Tensor, " b"], snr_min: float) -> Float[Tensor, ""]:
    """Sum of the weights of `representation_loss`."""
    return a_t[snr(a_t) >= snr_min].sum()


def alignment_loss(
    encoder: Embed, x0: Float[Tensor, "b 1 h w"], projected: Float[Tensor, "b d"]
) -> Float[Tensor, ""]:
    """Distance of a projected hidden feature of the denoiser to the embedding of the clean image.

    Mean of 1 - cos over all images and steps: REPA (Yu et al. 2024, arXiv 2410.06940) with one
    global feature in the place of those of patches, taken from a U-Net's middle as in U-REPA
    (NeurIPS 2025). No gradient passes the encoder.

    Args:
        encoder: Frozen encoder.
        x0: Originals, model range.
        projected: Hidden features of the noised images, mapped to the embedding's dimension.

    Returns:
        The loss, in [0, 2].
    """
    with torch.no_grad():
        target = encoder(x0)
    return embedding_distance(projected, target).mean()


def recomputing(encoder: Embed) -> Embed:
    """The encoder, whose activations are computed again in the backward pass and not kept.

    In parts of 16 images, so that the backward pass does not need those of the whole batch at once
    either; in eval mode images do not depend on each other, so the embeddings are the same.
    """

    def embed(image: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b d"]:
        parts = image.split(PART)
        return torch.cat([checkpoint(encoder, part, use_reentrant=False) for part in parts])

    return embed
