"""Grey levels and spatial frequencies against plain loops and scipy."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import wasserstein_distance

from cxr_lightning.metrics.radiograph_statistics import (
    ROUNDING,
    histograms,
    power_spectra,
    spectral_distance,
    wasserstein,
)


def _images(count: int, size: int, seed: int, sigma: float = 0.0) -> np.ndarray:
    """White noise of standard deviation 40, blurred; raw."""
    noise = 40 * np.random.default_rng(seed).normal(size=(count, size, size))
    blurred = gaussian_filter(noise, (0, sigma, sigma), mode="wrap")
    return (blurred + 128).clip(0, 255).round().astype(np.uint8)


def _slow_spectrum(image: np.ndarray) -> np.ndarray:
    """The sum of the discrete Fourier transform, frequency by frequency."""
    size = len(image)
    place = np.arange(size)
    line = 0.5 - 0.5 * np.cos(2 * np.pi * place / size)
    window = np.outer(line, line)
    pixels = image / 255
    pixels = (pixels - pixels.mean()) * window
    half = range(-((size - 1) // 2), size // 2 + 1)
    power: dict[int, list[float]] = {}
    for u in half:
        for v in half:
            wave = np.exp(-2j * np.pi * (u * place[:, None] + v * place) / size)
            value = abs((pixels * wave).sum()) ** 2 / (window**2).sum()
            power.setdefault(round((u * u + v * v) ** 0.5), []).append(value)
    return np.array([np.mean(power[radius]) for radius in range(1, size // 2 + 1)])


@pytest.mark.parametrize("size", [8, 11, 16])
def test_power_spectra_against_loops(size: int) -> None:
    images = _images(3, size, 1, sigma=0.7)
    expected = [_slow_spectrum(image) for image in images]
    assert power_spectra(images).shape == (3, size // 2)
    assert np.allclose(power_spectra(images), expected, rtol=1e-9)


def test_white_noise_has_its_variance_as_power_everywhere() -> None:
    images = _images(200, 32, 1)
    power = power_spectra(images).mean(axis=0) / (images / 255).var()
    # Bin r holds about pi r independent frequencies; the window joins about 2.25 of them.
    error = np.sqrt(2.25 / (np.pi * np.arange(1, 17) * 200))
    # At 1 the mean that is taken away is missed: the window spreads it from 0 over 1.
    assert np.all(np.abs(power - 1)[1:] < 4 * error[1:])
    assert 0.8 < power[0] < 1.0


def test_wave_has_power_at_its_frequency() -> None:
    place = np.arange(32)
    wave = 128 + 100 * np.cos(2 * np.pi * 5 * place / 32)
    power = power_spectra(np.tile(wave, (1, 32, 1)).round().astype(np.uint8))[0]
    assert power.argmax() == 4  # 5 cycles an image
    assert power[[0, 8, 12]].max() < 1e-4 * power[4]


def test_blur_lowers_high_frequencies_only() -> None:
    sharp, blurred = (power_spectra(_images(50, 32, 1, sigma)).mean(0) for sigma in (0.0, 1.0))
    assert blurred[-1] < 0.02 * sharp[-1]
    # A Gaussian of 1 pixel multiplies power by exp(-(2 pi k / 32)^2): .96 at 1 cycle, to which
    # the window adds from 2 (.86) and from 0.
    assert 0.85 < blurred[0] / sharp[0] < 1.0


def test_images_that_are_not_square() -> None:
    with pytest.raises(ValueError, match="`images`"):
        power_spectra(np.zeros((2, 8, 9), dtype=np.uint8))


def test_histograms_against_loops() -> None:
    images = _images(4, 9, 1)
    images[2] = 255
    found = histograms(images)
    assert found.shape == (4, 256)
    for image, shares in zip(images, found, strict=True):
        for level in range(256):
            assert shares[level] == pytest.approx((image == level).sum() / 81)
    assert histograms(images[:0]).shape == (0, 256)


def test_wasserstein_against_scipy() -> None:
    one, other = (h.mean(axis=0) for h in (histograms(_images(3, 32, 1)),
                                           histograms(_images(3, 32, 2) // 2)))  # fmt: skip
    levels = np.arange(256)
    expected = wasserstein_distance(levels, levels, one, other)
    assert wasserstein(one, other) == pytest.approx(expected, rel=1e-9)
    assert wasserstein(other, one) == pytest.approx(expected, rel=1e-9)
    assert wasserstein(one, one) == 0.0
    assert wasserstein(np.eye(256)[10], np.eye(256)[251]) == pytest.approx(241)


def test_spectral_distance_by_hand() -> None:
    p = np.array([1.0, 2.0, 4.0])
    assert spectral_distance(p, p) == 0.0
    assert spectral_distance(10 * p, p) == pytest.approx(10)
    assert spectral_distance(p, 10 * p) == pytest.approx(10)
    # 10 dB at one of three frequencies.
    assert spectral_distance(p * [1, 10, 1], p) == pytest.approx(10 / 3**0.5)
    # Images without any detail have no power, which is no infinite distance.
    assert spectral_distance(0 * p, p) == pytest.approx(
        np.sqrt(np.mean((10 * np.log10(p / ROUNDING)) ** 2))
    )


def test_rounding_to_8_bit_has_the_stated_power() -> None:
    exact = 128 + 20 * np.random.default_rng(0).normal(size=(50, 32, 32))
    error = (exact - exact.round()) / 255
    assert error.var() == pytest.approx(ROUNDING, rel=0.05)
