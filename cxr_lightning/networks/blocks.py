"""Building blocks of the autoencoder and the denoiser."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ResBlock(nn.Module):
    """Two 3x3 convolutions with group norm, FiLM and a residual connection.

    BigGAN-like block of Dhariwal and Nichol 2021 (arXiv 2105.05233), adaptive group norm
    h <- norm(h) (1 + scale) + shift from the embedding.

    Args:
        channels: Input channels.
        out_channels: Output channels.
        embedding: Width of the embedding that gives scale and shift; 0 for none.
        dropout: Probability of dropout before the second convolution.
    """

    def __init__(
        self, channels: int, out_channels: int, embedding: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * out_channels) if embedding else None
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip: nn.Module = (
            nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        )

    def forward(
        self, x: Float[Tensor, "b c h w"], embedding: Float[Tensor, "b e"] | None = None
    ) -> Float[Tensor, "b d h w"]:
        """Feature map to feature map of `out_channels`."""
        h = self.conv1(F.silu(self.norm1(x)))
        if self.film is None:
            h = self.norm2(h)
        else:
            scale, shift = self.film(embedding).chunk(2, dim=1)
            h = modulated_norm(self.norm2, h, scale, shift)
        h = self.conv2(self.dropout(F.silu(h)))
        return h + self.skip(x)


class SelfAttention(nn.Module):
    """Multi-head self-attention over the pixels of a feature map, with a residual connection.

    Args:
        channels: Input and output channels.
        head_width: Channels of a head; there are channels // head_width heads, at least 1, or the
            next smaller number of them that divides the channels.
    """

    def __init__(self, channels: int, head_width: int = 64) -> None:
        super().__init__()
        most = max(channels // head_width, 1)
        self.heads = next(heads for heads in range(most, 0, -1) if channels % heads == 0)
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Feature map to feature map of the same shape."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (b, h w, c)
        # as rows of pixels, not as 1x1 convolutions: fused kernels want a head's channels adjacent
        qkv = F.linear(tokens, self.qkv.weight.flatten(1), self.qkv.bias)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)  # (b, heads, h w, head width)
        attended = attended.transpose(1, 2).flatten(2)
        out = F.linear(attended, self.out.weight.flatten(1), self.out.bias)
        return x + out.transpose(1, 2).unflatten(-1, x.shape[2:])


class Downsample(nn.Module):
    """Halves height and width by a strided 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Feature map to feature map of half the height and width."""
        return self.conv(x)


class Upsample(nn.Module):
    """Doubles height and width: nearest neighbour, then a 3x3 convolution.

    Computed as one transposed 4x4 convolution of stride 2, which is the same sum: an input pixel
    stands twice in each direction, so neighbouring weights that meet it are added up first. That
    takes 16 multiplications an input pixel and pair of channels, where the two steps take 36.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Feature map to feature map of double the height and width."""
        weight = F.pad(self.conv.weight.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
        kernel = F.avg_pool2d(weight, 2, stride=1, divisor_override=1)  # sums of neighbours
        return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with 32 groups, or the largest number that divides 32 and the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


def modulated_norm(
    norm: nn.GroupNorm,
    x: Float[Tensor, "b c h w"],
    scale: Float[Tensor, "b c"],
    shift: Float[Tensor, "b c"],
) -> Float[Tensor, "b c h w"]:
    """Adaptive group norm: norm(x) (1 + scale) + shift (Dhariwal and Nichol 2021, equation 7).

    One group norm over the images' channels side by side, whose affine part differs by image: the
    feature map is read and written once instead of three times.
    """
    weight = norm.weight * (1.0 + scale)
    bias = norm.bias * (1.0 + scale) + shift
    flat = x.reshape(1, -1, *x.shape[2:])
    groups = len(x) * norm.num_groups
    return F.group_norm(flat, groups, weight.flatten(), bias.flatten(), norm.eps).view_as(x)


def zero_init(layer: nn.Conv2d) -> nn.Conv2d:
    """Sets a layer's parameters to zero, so that its residual branch starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def sinusoidal_embedding(t: Float[Tensor, " b"], width: int) -> Float[Tensor, "b width"]:
    """Sinusoidal embedding of the diffusion time, wavelengths 2 pi to 10,000 * 2 pi.

    Vaswani et al. 2017, section 3.5, as used by Ho et al. 2020 (arXiv 2006.11239), appendix B.

    Args:
        t: Diffusion times.
        width: Even number of channels: cosines, then sines.
    """
    half = width // 2
    exponent = torch.arange(half, device=t.device, dtype=torch.float32) / half
    angle = t.float()[:, None] * torch.exp(-math.log(10_000.0) * exponent)
    return torch.cat([angle.cos(), angle.sin()], dim=1)
