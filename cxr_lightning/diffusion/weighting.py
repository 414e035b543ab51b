"""Weights of the diffusion loss by noise level."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from cxr_lightning.diffusion.schedule import snr


def min_snr_weight(
    a_t: Float[Tensor, " b"], prediction: Literal["epsilon", "v"], gamma: float
) -> Float[Tensor, " b"]:
    """Min-SNR weight of each image's squared error (Hang et al. 2023, arXiv 2303.09556).

    The error of x_0 has the weight min(SNR, gamma) (section 3.4); the error of the noise is SNR
    times that of x_0, the error of v is SNR + 1 times.

    Args:
        a_t: alpha_bar of each image's step, below 1.
        prediction: Whose error is weighted.
        gamma: Where the weight is cut; 5 in the paper.
    """
    ratio = snr(a_t)
    return ratio.clamp(max=gamma) / (ratio if prediction == "epsilon" else ratio + 1.0)
