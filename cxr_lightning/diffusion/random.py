"""Randomness that belongs to an image, not to a batch."""

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Noise(Protocol):
    """A source of standard normal numbers for each image of a batch."""

    def normal(self, *shape: int) -> Float[Tensor, " b *shape"]:
        """The next standard normal numbers of each image, of this shape each."""
        ...


class ImageNoise:
    """One random stream an image: image i's noise depends on (seed, i) alone.

    Drawn on the CPU, so that it is the same whatever the batch, the device or the number of
    processes (the idea of EDM's generator per sample, Karras et al. 2022, arXiv 2206.00364).

    Args:
        seed: Seed of the set of images.
        index: Number of each image of the batch.
        device: Where the noise goes.
    """

    def __init__(
        self, seed: int, index: Int[Tensor, " b"], device: torch.device | str = "cpu"
    ) -> None:
        self.device = device
        self.streams = [_stream(seed, int(i)) for i in index]

    def normal(self, *shape: int) -> Float[Tensor, " b *shape"]:
        """The next standard normal numbers of each image, of this shape each."""
        draws = [torch.randn(shape, generator=g) for g in self.streams]
        return torch.stack(draws).to(self.device)


def image_uniform(seed: int, index: Int[Tensor, " b"], *shape: int) -> Float[Tensor, " b *shape"]:
    """Uniform numbers in [0, 1] of each image, on the CPU; they depend on (seed, index) alone."""
    return torch.special.ndtr(ImageNoise(seed, index).normal(*shape))


class EvenNoise:
    """Noise as strong in every image: of mean square 1, as standard normal noise is on average.

    Of d numbers the mean square varies by sqrt(2 / d) between images, 4 % at 32 px, 0.5 % at 256. A
    denoiser removes the noise that its step announces; one that was trained briefly leaves the
    surplus in the image, as grain (measured in the README).

    Args:
        noise: Where the numbers come from.
    """

    def __init__(self, noise: Noise) -> None:
        self.noise = noise

    def normal(self, *shape: int) -> Float[Tensor, " b *shape"]:
        """The next numbers of each image, of this shape each."""
        x = self.noise.normal(*shape)
        # in double, so that the order of the sum, which depends on the batch, changes no bit
        strength = x.flatten(1).double().square().mean(dim=1).sqrt().to(x)
        return x / strength.view(-1, *[1] * len(shape))


def _stream(seed: int, index: int) -> torch.Generator:
    entropy = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(entropy >> np.uint64(1)))
