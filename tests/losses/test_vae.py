"""The VAE's objective against torch.distributions and plain loops."""

import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl

from cxr_lightning.losses.vae import active_units, kl_divergence, reconstruction_error


def test_reconstruction_error_is_the_pixel_sum_and_the_batch_mean():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(3, 1, 4, 4, generator=generator) for _ in range(2))
    expected = sum(
        (a[i, 0, r, c].item() - b[i, 0, r, c].item()) ** 2
        for i in range(3)
        for r in range(4)
        for c in range(4)
    )
    assert float(reconstruction_error(a, b)) == pytest.approx(expected / 3, rel=1e-5)


def test_scale_does_not_depend_on_the_batch_size():
    a, b = torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.5)
    one = reconstruction_error(a, b)
    assert torch.equal(reconstruction_error(a.repeat(8, 1, 1, 1), b.repeat(8, 1, 1, 1)), one)
    assert float(one) == 4.0


def test_kl_equals_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = (torch.randn(5, 7, generator=generator) for _ in range(2))
    posterior = Normal(mean, (0.5 * log_variance).exp())
    expected = torch_kl(posterior, Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(kl_divergence(mean, log_variance), expected)


def test_kl_of_the_prior_is_zero():
    assert float(kl_divergence(torch.zeros(2, 3), torch.zeros(2, 3))) == 0.0


def test_active_units_counts_dimensions_whose_mean_varies():
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([1.0, 0.2, 0.05, 0.0])  # variances 1, 0.04, 0.0025, 0; the bar is 0.01
    means = torch.randn(500, 4, generator=generator) * spread + torch.tensor([0, 3.0, 0, 7.0])
    assert float(active_units(means)) == 2.0
