"""From one image to another: by latent code, noise of the diffusion and condition."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.random import ImageNoise, Noise
from cxr_lightning.diffusion.samplers import Sampling
from cxr_lightning.types import Condition

Curve = Literal["spherical", "linear"]
PARALLEL = 1e-9
"""1 - |cos| below which the great circle is lost in rounding, and the straight line is taken."""


class End(NamedTuple):
    """One end of an interpolation, for each image of a batch.

    Attributes:
        z: Latent code; None for an unconditional model.
        condition: What the end shows.
        noise: Noise of the diffusion, at its start.
    """

    z: Float[Tensor, "b d"] | None
    condition: Condition
    noise: Noise


class NoiseBetween:
    """Noise on the way from one image's to another's, draw by draw; standard normal everywhere.

    A linear mix would have the variance (1 - t)^2 + t^2, 0.5 in the middle, and the diffusion would
    begin with less noise than it was trained on.

    Args:
        start: Noise at t = 0.
        end: Noise at t = 1.
        t: Where each image is.
    """

    def __init__(self, start: Noise, end: Noise, t: Float[Tensor, " b"]) -> None:
        self.start = start
        self.end = end
        self.t = t

    def normal(self, *shape: int) -> Float[Tensor, " b *shape"]:
        """The next standard normal numbers of each image, of this shape each."""
        return slerp(self.start.normal(*shape), self.end.normal(*shape), self.t)


def slerp(
    a: Float[Tensor, " b *shape"], b: Float[Tensor, " b *shape"], t: Float[Tensor, " b"]
) -> Float[Tensor, " b *shape"]:
    """Spherical linear interpolation of each pair of vectors (Shoemake 1985).

    (sin((1 - t) w) a + sin(t w) b) / sin(w), w the angle between a and b: vectors of one length
    keep it on the way, as White 2016 (arXiv 1609.04468) asks of latent codes. The ends
    are a and b themselves. (Anti)parallel vectors have no great circle: there it is `lerp`.

    Args:
        a: Where t is 0.
        b: Where t is 1.
        t: Where each image is, 0 to 1.
    """
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()
    lengths = (flat_a.norm(dim=1) * flat_b.norm(dim=1)).clamp_min(1e-300)
    cosine = ((flat_a * flat_b).sum(dim=1) / lengths).clamp(-1.0, 1.0)
    angle = torch.arccos(cosine)
    weights = torch.sin(torch.stack([(1.0 - t.double()) * angle, t.double() * angle]))
    weights = (weights / torch.sin(angle)).to(a.dtype)
    of_a, of_b = (_column(w, a) for w in weights)
    straight = _column(1.0 - cosine.abs() < PARALLEL, a)
    return torch.where(straight, lerp(a, b, t), of_a * a + of_b * b)


def lerp(
    a: Float[Tensor, " b *shape"], b: Float[Tensor, " b *shape"], t: Float[Tensor, " b"]
) -> Float[Tensor, " b *shape"]:
    """Linear interpolation of each pair: (1 - t) a + t b, exact at both ends."""
    return torch.lerp(a, b, _column(t, a).to(a.dtype))


def _column(numbers: Tensor, like: Tensor) -> Tensor:
    """One number an image, shaped to go with all numbers of the image."""
    return numbers.view(-1, *[1] * (like.ndim - 1))


def drawn_end(
    generator: Generator,
    condition: Condition,
    latent: Int[Tensor, " b"],
    noise: Int[Tensor, " b"],
    seed: int = 0,
    guidance: float = 1.0,
) -> End:
    """The end that is `Generator.sample`'s image, where both numbers are that image's.

    Args:
        generator: Whose prior draws the latent codes.
        condition: What to show.
        latent: Number of the image whose latent noise is taken.
        noise: Number of the image whose diffusion noise is taken.
        seed: Seed of the set.
        guidance: Of the latent prior.
    """
    z = generator.draw_latent(condition, ImageNoise(seed, latent, generator.device), guidance)
    streams = ImageNoise(seed, noise, generator.device)
    if generator.prior is not None:
        streams.normal(generator.prior.noise_dim)  # the diffusion's numbers come behind these
    return End(z, condition, streams)


def given_end(
    generator: Generator,
    image: Float[Tensor, "b 1 h w"],
    condition: Condition,
    noise: Int[Tensor, " b"],
    seed: int = 0,
) -> End:
    """The end that is `Generator.reconstruct`'s image of a given one.

    Args:
        generator: Whose autoencoder encodes the images.
        image: The given images, model range.
        condition: What they show.
        noise: Number of each image, for its diffusion noise.
        seed: Seed of the set.

    Raises:
        UserError: If the generator has no autoencoder.
    """
    return End(generator.encode(image), condition, ImageNoise(seed, noise, generator.device))


@torch.no_grad()
def interpolate(
    generator: Generator,
    start: End,
    end: End,
    t: Float[Tensor, " b"],
    sampling: Sampling = Sampling(),
    curve: Curve = "spherical",
) -> Float[Tensor, "b 1 h w"]:
    """Images on the way from one end to another; model range. The ends are used up.

    What both ends share stays as it is. The noise always goes along the great circle, and between
    two conditions the estimates of both are mixed (see `Generator.refine`).

    Args:
        generator: Makes the images.
        start: Where t is 0.
        end: Where t is 1.
        t: Where each image is, 0 to 1.
        sampling: Sampler, steps, guidance.
        curve: Of the latent codes.

    Raises:
        UserError: If the sampling does not fit the model.
    """
    z = None
    if start.z is not None and end.z is not None:
        z = (slerp if curve == "spherical" else lerp)(start.z, end.z, t)
    noise = NoiseBetween(start.noise, end.noise, t)
    same = all(torch.equal(a, b) for a, b in zip(start.condition, end.condition, strict=True))
    other = None if same else (end.condition, t)
    return generator.refine(z, start.condition, noise, sampling, other=other)
