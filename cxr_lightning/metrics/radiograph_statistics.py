"""Statistics of the pixels of radiographs: grey levels and spatial frequencies."""

import numpy as np
from jaxtyping import Float, Float64, Int, UInt8

GREY_LEVELS = 256
ROUNDING = 1 / (12 * (GREY_LEVELS - 1) ** 2)
"""Power of rounding errors of 8 bit images in [0, 1]: the variance of a uniform variable."""


def histograms(images: UInt8[np.ndarray, "n h w"]) -> Float64[np.ndarray, "n 256"]:
    """Share of each grey level in each image."""
    counts = [np.bincount(image.ravel(), minlength=GREY_LEVELS) for image in images]
    pixels = images.shape[1] * images.shape[2]
    return np.array(counts, dtype=np.float64).reshape(-1, GREY_LEVELS) / pixels


def wasserstein(p: Float[np.ndarray, " 256"], q: Float[np.ndarray, " 256"]) -> float:
    """Wasserstein-1 distance of two histograms in grey levels, 0 to 255.

    On a line it is the area between the distribution functions (Vallender 1974, eq. 1).
    """
    return float(np.abs(np.cumsum(p - q)).sum())


def power_spectra(images: UInt8[np.ndarray, "n h w"]) -> Float64[np.ndarray, "n r"]:
    """Radially averaged power of square images in [0, 1], less their mean, under a Hann window.

    The periodogram of Welch 1967 (IEEE Trans. Audio Electroacoust. 15, 70), one segment: divided by
    the sum of the squared window, so that white noise has its variance as power at all frequencies.

    Returns:
        Mean power at 1, 2 ... s // 2 cycles per image, each over the frequencies that round to it.

    Raises:
        ValueError: If the images are not square.
    """
    size = images.shape[-1]
    if images.shape[1] != size:
        raise ValueError(f"`images` must be square, not {images.shape[1]} x {size} pixels.")
    window = _hann(size)
    bins, share = _radial_bins(size)
    spectra = np.empty((len(images), size // 2))
    for row, image in enumerate(images):
        pixels = image / (GREY_LEVELS - 1)
        amplitude = np.fft.rfft2((pixels - pixels.mean()) * window)
        power = share * np.square(np.abs(amplitude))
        spectra[row] = np.bincount(bins, power.ravel())[1 : size // 2 + 1]
    return spectra / np.square(window).sum()


def _hann(size: int) -> Float64[np.ndarray, "s s"]:
    """Periodic Hann window in both directions."""
    line = np.sin(np.pi * np.arange(size) / size) ** 2
    return np.outer(line, line)


def _radial_bins(
    size: int,
) -> tuple[Int[np.ndarray, " k"], Float64[np.ndarray, "s c"]]:
    """Bin of each frequency of the half plane that rfft2 gives, and its share in that bin.

    A bin is the distance from frequency 0 in cycles per image, rounded. The columns between the
    first and the last stand for two frequencies, +k and -k.
    """
    rows, columns = np.fft.fftfreq(size, 1 / size), np.arange(size // 2 + 1)
    bins = np.rint(np.hypot(rows[:, None], columns)).astype(np.int64)
    twice = (columns > 0) & (columns < size / 2)
    times = np.broadcast_to(np.where(twice, 2.0, 1.0), bins.shape)
    members = np.bincount(bins.ravel(), times.ravel())
    return bins.ravel(), times / members[bins]


def spectral_distance(p: Float[np.ndarray, " r"], q: Float[np.ndarray, " r"]) -> float:
    """Root mean square over the frequencies of 10 log10(p / q), in dB.

    Power below that of 8 bit rounding carries nothing of the image and is raised to it.
    """
    ratio = 10.0 * np.log10(np.maximum(p, ROUNDING) / np.maximum(q, ROUNDING))
    return float(np.sqrt(np.mean(ratio**2)))
