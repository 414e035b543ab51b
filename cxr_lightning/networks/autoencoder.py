"""Autoencoder of stage 1: a convolutional VAE."""

from itertools import pairwise
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from cxr_lightning.errors import UserError
from cxr_lightning.networks.blocks import Downsample, ResBlock, Upsample, group_norm
from cxr_lightning.ranges import check_range

BOTTOM = range(4, 8)
"""Possible heights and widths of the smallest feature map, in pixels."""


class Autoencoder(nn.Module, PyTorchModelHubMixin):
    """VAE with a vector-valued latent code (Kingma and Welling 2013, arXiv 1312.6114).

    The encoder halves the image down to 4 to 7 pixels and gives mean and log variance of q(z|x);
    the decoder mirrors it.

    Args:
        image_size: Height and width of the images in pixels: 4, 5, 6 or 7 times a power of two, at
            least 8; so 32, 40, 48, 56, 64, 80, 96, 112, ..., 512.
        width: Channels at full resolution; they double at each halving, up to 8 times.
        latent_dim: Dimension of the latent code.
        channels: Image channels.

    Raises:
        UserError: If `image_size` is not such a number, or another one is below 1.
    """

    def __init__(
        self, *, image_size: int, width: int = 32, latent_dim: int = 128, channels: int = 1
    ) -> None:
        super().__init__()
        for name, size in (("width", width), ("latent_dim", latent_dim), ("channels", channels)):
            check_range(f"model.{name}", size, 1)
        levels = halvings(image_size)
        bottom = image_size >> levels
        self.image_size = image_size
        self.latent_dim = latent_dim
        widths = [width * min(2**level, 8) for level in range(levels + 1)]
        self.encoder = _encoder(channels, widths, bottom, 2 * latent_dim)
        self.decoder = _decoder(channels, widths, bottom, latent_dim)

    def encode(
        self, image: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """Mean and log variance of q(z|x), fp32, for images in model range."""
        mean, log_variance = self.encoder(image).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-20.0, 10.0)

    def decode(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        """Images in model range from latent codes; fp32."""
        return self.decoder(z).float().tanh()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As in `nn.Module`: both halves, since they are what training calls."""
        self.encoder.compile(*args, **kwargs)
        self.decoder.compile(*args, **kwargs)

    def forward(
        self, image: Float[Tensor, "b c h w"], noise: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b c h w"]:
        """Reconstruction from z = mean + sigma * noise."""
        return self.decode(sample_latent(*self.encode(image), noise))


def sample_latent(
    mean: Float[Tensor, "b d"], log_variance: Float[Tensor, "b d"], noise: Float[Tensor, "b d"]
) -> Float[Tensor, "b d"]:
    """Reparametrised sample z = mu + exp(lv / 2) eps (Kingma and Welling 2013, section 2.4)."""
    return mean + torch.exp(0.5 * log_variance) * noise


def halvings(image_size: int) -> int:
    """How often an image can be halved until it is 4 to 7 pixels high and wide.

    Raises:
        UserError: If it does not come down to such a size, or is that small already.
    """
    size, count = image_size, 0
    while size > BOTTOM[-1] and size % 2 == 0:
        size, count = size // 2, count + 1
    if count == 0 or size not in BOTTOM:
        raise UserError(
            f"model.image_size: {image_size} cannot be halved down to {BOTTOM[0]} to {BOTTOM[-1]} "
            "pixels; use 4, 5, 6 or 7 times a power of two, such as 32, 64, 96, 128, 224, 256, "
            "320, 512."
        )
    return count


def _encoder(channels: int, widths: list[int], bottom: int, out: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
    for lower, higher in pairwise(widths):
        layers += [ResBlock(lower, higher), Downsample(higher)]
    layers += [ResBlock(widths[-1], widths[-1]), group_norm(widths[-1]), nn.SiLU()]
    layers += [nn.Flatten(), nn.Linear(widths[-1] * bottom**2, out)]
    return nn.Sequential(*layers)


def _decoder(channels: int, widths: list[int], bottom: int, latent_dim: int) -> nn.Sequential:
    top = widths[-1]
    layers: list[nn.Module] = [
        nn.Linear(latent_dim, top * bottom**2),
        nn.Unflatten(1, (top, bottom, bottom)),
        ResBlock(top, top),
    ]
    for higher, lower in pairwise(reversed(widths)):
        layers += [Upsample(higher), ResBlock(higher, lower)]
    layers += [group_norm(widths[0]), nn.SiLU(), nn.Conv2d(widths[0], channels, 3, padding=1)]
    return nn.Sequential(*layers)
