"""The random numbers of a training or validation step of stages 2, 4 and 5."""

import torch
from jaxtyping import Int
from torch import Tensor

from cxr_lightning.diffusion.random import ImageNoise
from cxr_lightning.stages.base import Stage
from cxr_lightning.stages.generator_in_training import Draws, GeneratorInTraining
from cxr_lightning.types import Condition


def random_draws(
    stage: Stage, networks: GeneratorInTraining, count: int, drop_reconstruction: float = 0.0
) -> Draws:
    """The random numbers of a training step, this rank's part of the global batch's."""
    device, denoiser = stage.device, networks.denoiser
    shape = (denoiser.channels, denoiser.image_size, denoiser.image_size)
    t = stage.draw(lambda n: torch.randint(1, denoiser.timesteps + 1, (n,), device=device), count)
    noise = stage.draw(lambda n: torch.randn(n, *shape, device=device), count)
    known = stage.draw(lambda n: torch.rand(n, device=device) >= drop_reconstruction, count)
    latent_dim = networks.latent_dim
    if latent_dim is None:
        return Draws(t, noise, None, known)
    latent_noise = stage.draw(lambda n: torch.randn(n, latent_dim, device=device), count)
    return Draws(t, noise, latent_noise, known)


def random_drop(
    stage: Stage, condition: Condition, drop_field: float, drop_all: float, drop_text: float = 0.0
) -> Condition:
    """Makes fields and texts unknown at random, image by image.

    Args:
        stage: The stage that trains.
        condition: The full condition.
        drop_field: Probability that a field becomes unknown, so that partial conditions are met.
        drop_all: Probability that all do (the null condition of classifier-free guidance).
        drop_text: Probability that the text alone does.
    """
    count, fields = condition.value.shape
    field_draw = stage.draw(lambda n: torch.rand(n, fields, device=stage.device), count)
    all_draw = stage.draw(lambda n: torch.rand(n, 1, device=stage.device), count)
    kept = condition.keep((field_draw >= drop_field) & (all_draw >= drop_all))
    return kept.keep_text(all_draw >= drop_all + drop_text)


def fixed_draws(
    index: Int[Tensor, " b"], networks: GeneratorInTraining, size: int, device: torch.device
) -> Draws:
    """Random numbers for validation that depend on the image alone, so that epochs compare."""
    noise = ImageNoise(0, index, device)
    latent_dim = networks.latent_dim
    latent_noise = None if latent_dim is None else noise.normal(latent_dim)
    timesteps = networks.denoiser.timesteps
    golden = 0.6180339887498949  # equidistributed steps over consecutive images
    t = 1 + ((index.double() * golden) % 1.0 * timesteps).long()
    known = torch.ones(len(index), dtype=torch.bool, device=device)
    return Draws(t, noise.normal(networks.denoiser.channels, size, size), latent_noise, known)
