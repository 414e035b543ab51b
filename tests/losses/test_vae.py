"""The VAE's objective against torch.distributions, scikit-image and plain loops."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity as skimage_similarity
from torch import Tensor
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl

from cxr_lightning.data.transforms import to_image
from cxr_lightning.losses.vae import (
    kl_divergence,
    reconstruction_error,
    structural_error,
    structural_similarity,
    vae_loss,
)


def pair(count: int = 3, channels: int = 1, size: int = 24) -> tuple[Tensor, Tensor]:
    """Smooth images, dark ones first, and noisy copies."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 4, 4, generator=generator)
    level = torch.linspace(-1.4, 0.4, count)[:, None, None, None]
    image = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear") + level
    noise = 0.1 * torch.randn(image.shape, generator=generator)
    return image.clamp(-1, 1), (image + noise).clamp(-1, 1)


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
    a, b = torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 0.5)
    for error in (reconstruction_error, structural_error):
        one, many = error(a, b), error(a.repeat(8, 1, 1, 1), b.repeat(8, 1, 1, 1))
        torch.testing.assert_close(many, one)
    assert float(reconstruction_error(a, b)) == 16.0


def test_kl_equals_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = (torch.randn(5, 7, generator=generator) for _ in range(2))
    posterior = Normal(mean, (0.5 * log_variance).exp())
    expected = torch_kl(posterior, Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(kl_divergence(mean, log_variance), expected)


def test_kl_of_the_prior_is_zero():
    assert float(kl_divergence(torch.zeros(2, 3), torch.zeros(2, 3))) == 0.0


def slow_similarity(x: np.ndarray, y: np.ndarray) -> float:
    """Mean over pixels of Wang et al. 2004, eq. 13, by loops; grey values 0 to 2."""
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    one, other = (np.pad(image, 5, mode="reflect") for image in (x, y))
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    values = []
    for r in range(x.shape[0]):
        for c in range(x.shape[1]):
            a, b = one[r : r + 11, c : c + 11], other[r : r + 11, c : c + 11]
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            vab = (window * (a - ma) * (b - mb)).sum()
            luminance = (2 * ma * mb + c1) / (ma**2 + mb**2 + c1)
            values.append(luminance * (2 * vab + c2) / (va + vb + c2))
    return float(np.mean(values))


@pytest.mark.parametrize("channels", [1, 3])
def test_similarity_equals_plain_loops(channels):
    image, other = pair(channels=channels, size=16)
    found = structural_similarity(image, other)
    for i in range(3):
        x, y = (images[i].double().numpy() + 1.0 for images in (image, other))
        expected = np.mean([slow_similarity(x[k], y[k]) for k in range(channels)])
        assert float(found[i]) == pytest.approx(expected, abs=1e-5)


def test_similarity_is_that_of_the_8_bit_images_by_scikit_image():
    image, other = pair(size=64)
    found = structural_similarity(image, other)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for i in range(3):
        x, y = (to_image(images[i, 0]).numpy() for images in (image, other))
        _, pixels = skimage_similarity(x, y, data_range=255, full=True, **settings)
        # 8-bit rounding, and scikit-image repeats the outermost pixel where torchmetrics does not
        assert float(found[i]) == pytest.approx(pixels.mean(), abs=0.01)


def test_similarity_of_equal_images_is_one_and_of_inverted_ones_negative():
    image = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    torch.testing.assert_close(structural_similarity(image, image), torch.ones(3))
    assert (structural_similarity(image, -image) < -0.5).all()


def test_similarity_is_computed_in_fp32_under_autocast():
    image, other = pair()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = structural_similarity(image, other.bfloat16().float())
    assert torch.equal(under, structural_similarity(image, other.bfloat16().float()))


def test_structural_error_is_the_sum_over_pixels_at_every_size():
    image, other = pair(size=16)
    expected = np.mean([256 * (1.0 - float(s)) for s in structural_similarity(image, other)])
    assert float(structural_error(image, other)) == pytest.approx(expected, rel=1e-5)
    tall, wide = torch.full((1, 1, 16, 8), 0.3), torch.full((1, 1, 16, 16), 0.3)
    small, large = structural_error(tall, 0 * tall), structural_error(wide, 0 * wide)
    torch.testing.assert_close(large, 2 * small)


def test_loss_is_the_weighted_sum_of_its_terms():
    image, other = pair()
    generator = torch.Generator().manual_seed(1)
    mean, log_variance = (torch.randn(3, 5, generator=generator) for _ in range(2))
    terms = vae_loss(image, other, mean, log_variance, beta=0.3, ssim_weight=0.2)
    assert terms["reconstruction"] == reconstruction_error(image, other)
    assert terms["kl"] == kl_divergence(mean, log_variance)
    assert terms["structure"] == structural_error(image, other)
    expected = terms["reconstruction"] + 0.3 * terms["kl"] + 0.2 * terms["structure"]
    torch.testing.assert_close(terms["loss"], expected)
    plain = vae_loss(image, other, mean, log_variance, beta=0.3)
    torch.testing.assert_close(plain["loss"], expected - 0.2 * terms["structure"])
    assert plain.keys() == {"loss", "reconstruction", "kl"}


def test_descent_on_the_structural_error_raises_the_similarity():
    image, other = pair()
    made = other.clone().requires_grad_()
    before = structural_similarity(image, other)
    for _ in range(10):
        (gradient,) = torch.autograd.grad(structural_error(image, made), made)
        assert gradient.isfinite().all()
        made = (made - 0.01 * gradient / gradient.square().mean().sqrt()).detach().requires_grad_()
    assert (structural_similarity(image, made) > before + 0.05).all()
