"""The consistency loss: two estimates of one clean image agree."""

from jaxtyping import Float, Int
from torch import Tensor


def consistency_loss(
    estimate: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    a_t: Float[Tensor, " b"],
    t: Int[Tensor, " b"],
    r: Int[Tensor, " b"],
    huber: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean of t / (t - r) d(f(y_t, t), f(y_r, r)).

    The squared distance is |f(y_t, t) - f(y_r, r)|^2 / (1 - A_t), a mean over pixels: that of the
    predicted v, so that with r = 0 the loss is the diffusion loss of v. The weight t / (t - r) is
    1 / (t - r) of Geng et al. 2024 (ECT, arXiv 2406.14548) for relative gaps: the gradient keeps
    its size when the gap, and with it the difference of the estimates, goes to zero.

    Args:
        estimate: f(y_t, t).
        target: f(y_r, r), without gradient.
        a_t: alpha_bar at t.
        t: Later times.
        r: Earlier times.
        huber: Constant c of the Pseudo-Huber distance sqrt(d^2 + c^2) - c (Song and Dhariwal 2023,
            arXiv 2310.14189, section 3.3), d in the units of v; 0 for the squared distance.
    """
    square = (estimate - target).square().flatten(1).mean(1) / (1.0 - a_t)
    distance = square if huber == 0.0 else (square + huber**2).sqrt() - huber
    return (t / (t - r) * distance).mean()
