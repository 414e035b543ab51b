"""Min-SNR weights: of the error of x_0, whatever is predicted."""

import pytest
import torch

from cxr_lightning.diffusion.process import add_noise, velocity, x0_from_epsilon, x0_from_velocity
from cxr_lightning.diffusion.schedule import alpha_bar
from cxr_lightning.diffusion.weighting import min_snr_weight

GAMMA = 5.0


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_weighted_error_is_that_of_the_clean_image(prediction):
    """min(SNR, gamma) |x_0 - x_0'|^2, from a wrong prediction at every noise level."""
    generator = torch.Generator().manual_seed(0)
    a_t = alpha_bar("linear", 1000)[[1, 100, 300, 500, 1000]]
    x0, noise, wrong = (
        torch.randn(5, 1, 2, 2, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    y = add_noise(x0, noise, a_t)
    if prediction == "epsilon":
        target, estimate = noise, x0_from_epsilon(y, noise + wrong, a_t)
    else:
        target = velocity(x0, noise, a_t)
        estimate = x0_from_velocity(y, target + wrong, a_t)
    error = ((target + wrong) - target).square().flatten(1).mean(1)
    ours = min_snr_weight(a_t, prediction, GAMMA) * error
    for i, a in enumerate(a_t.tolist()):
        ratio = a / (1 - a)
        clean = float((estimate[i] - x0[i]).square().mean())
        assert float(ours[i]) == pytest.approx(min(ratio, GAMMA) * clean, rel=1e-9)
    assert {a / (1 - a) > GAMMA for a in a_t.tolist()} == {True, False}
