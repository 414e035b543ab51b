"""Denoiser of stages 2 and 4: a U-Net conditioned on time, health condition and VAE image."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cxr_lightning.errors import UserError
from cxr_lightning.networks.blocks import (
    Downsample,
    ResBlock,
    SelfAttention,
    Upsample,
    group_norm,
    sinusoidal_embedding,
    zero_init,
)
from cxr_lightning.networks.condition import ConditionEmbedding, LatentEmbedding
from cxr_lightning.ranges import check_range
from cxr_lightning.types import Condition

Form = Literal["form1", "form2", "uncond"]
Prediction = Literal["epsilon", "v"]
Schedule = Literal["linear", "cosine", "zero_snr"]


class Denoiser(nn.Module, PyTorchModelHubMixin):
    """U-Net that predicts the noise of a DiffuseVAE chain (Pandey et al. 2022, arXiv 2201.00308).

    The chain runs in y = x - x_hat for Form 2 and in y = x for Form 1 and the unconditional form:
    it is the same chain (marginals, posterior, DDIM step), and only what the network is shown
    differs. Form 1 sees [y ; x_hat], Form 2 sees [y + x_hat ; x_hat], unconditional sees y. The
    VAE image x_hat comes with a mask channel, so that "no VAE image" is a value of its own; Form 2
    without x_hat sees the un-shifted y.

    Everything that sampling must know is an argument here, hence in the product's `config.json`.

    Args:
        image_size: Height and width in pixels.
        width: Channels at full resolution.
        multipliers: Channels of each level, as multiples of `width`; each level halves the size.
        blocks: Residual blocks a level on the way down (one more on the way up).
        attention: Feature-map heights, in pixels, that get self-attention.
        form: `form1`, `form2` or `uncond`.
        prediction: What the output is: the noise `epsilon`, or `v` (Salimans and Ho 2022).
        schedule: Noise schedule: `linear` (Ho et al. 2020), `cosine` (Nichol and Dhariwal 2021) or
            `zero_snr` (Lin et al. 2023; needs `prediction` v).
        timesteps: Number of diffusion steps T.
        dropout: Dropout probability in the residual blocks.
        channels: Image channels.
        latent_dim: Dimension of the VAE's latent code, which is then shown beside its image; 0: it
            is not.
        text_dim: Columns of the text embeddings of conditions; 0: they are not looked at.

    Attributes:
        middle_channels: Channels of the feature map in the middle.
        recompute: Whether the activations within residual blocks are computed again in the backward
            pass and not kept (gradient checkpointing): less memory, longer steps, equal gradients.

    Raises:
        UserError: If the size cannot be halved often enough, an attention resolution does not
            occur, or the schedule does not go with the prediction.
    """

    def __init__(
        self,
        *,
        image_size: int,
        width: int = 64,
        multipliers: list[int] = [1, 2, 2, 2],  # noqa: B006 (config.json needs plain JSON types)
        blocks: int = 2,
        attention: list[int] = [16],  # noqa: B006
        form: Form = "form1",
        prediction: Prediction = "epsilon",
        schedule: Schedule = "linear",
        timesteps: int = 1000,
        dropout: float = 0.0,
        channels: int = 1,
        latent_dim: int = 0,
        text_dim: int = 0,
    ) -> None:
        super().__init__()
        _check_settings(width, multipliers, blocks, timesteps, dropout)
        if (schedule, prediction) == ("zero_snr", "epsilon"):
            raise UserError(
                "model.schedule: zero_snr ends in pure noise, where predicted noise tells nothing "
                "of the image; use model.prediction v."
            )
        sizes = _sizes(image_size, multipliers, attention)
        self.image_size = image_size
        self.width = width
        self.channels = channels
        self.form: Form = form
        self.prediction: Prediction = prediction
        self.schedule: Schedule = schedule
        self.timesteps = timesteps
        self.recompute = False
        embedding = 4 * width
        self.time = nn.Sequential(
            nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.condition = ConditionEmbedding(embedding, text_dim)
        self.latent = LatentEmbedding(latent_dim, embedding) if latent_dim else None
        inputs = channels if form == "uncond" else 2 * channels + 1
        self.stem = nn.Conv2d(inputs, width, 3, padding=1)
        widths = [width * m for m in multipliers]
        has_attention = [size in attention for size in sizes]
        self.down, skips = _down_path(width, widths, has_attention, blocks, embedding, dropout)
        self.middle_channels = widths[-1]
        self.middle = nn.ModuleList(
            [
                ResBlock(widths[-1], widths[-1], embedding, dropout),
                SelfAttention(widths[-1]),
                ResBlock(widths[-1], widths[-1], embedding, dropout),
            ]
        )
        self.up = _up_path(skips, widths, has_attention, blocks, embedding, dropout)
        self.norm = group_norm(widths[0])
        self.head = zero_init(nn.Conv2d(widths[0], channels, 3, padding=1))

    def forward(
        self,
        y: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        condition: Condition,
        x_hat: Float[Tensor, "b c h w"] | None = None,
        x_hat_known: Bool[Tensor, " b"] | None = None,
        z: Float[Tensor, "b d"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Predicts epsilon (or v) of the chain y_t.

        Args:
            y: State y_t of the chain.
            t: Step, 1 to T.
            condition: Health condition of each image.
            x_hat: VAE image in model range; None counts as unknown for all images.
            x_hat_known: Which images' x_hat, and z with it, may be seen; all by default.
            z: Latent code of x_hat; None counts as unknown for all images.
        """
        return self.predict(y, t, condition, x_hat, x_hat_known, z)[0]

    def predict(
        self,
        y: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        condition: Condition,
        x_hat: Float[Tensor, "b c h w"] | None = None,
        x_hat_known: Bool[Tensor, " b"] | None = None,
        z: Float[Tensor, "b d"] | None = None,
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b m h2 w2"]]:
        """What `forward` predicts, and the feature map in the middle, the smallest one."""
        time = self.time(sinusoidal_embedding(t.to(y.dtype), self.width))
        embedding = time + self.condition(condition)
        if self.latent is not None:
            embedding = embedding + self.latent(*self._latent_input(y, z, x_hat_known))
        embedding = F.silu(embedding)
        h = self.stem(self._network_input(y, x_hat, x_hat_known))
        skips = [h]
        for layer in self.down:
            h = self._pass(layer, h, embedding)
            if not isinstance(layer, SelfAttention):
                skips.append(h)
            else:
                skips[-1] = h
        for layer in self.middle:
            h = self._pass(layer, h, embedding)
        middle = h
        for layer in self.up:
            if isinstance(layer, ResBlock):
                h = torch.cat([h, skips.pop()], dim=1)
            h = self._pass(layer, h, embedding)
        return self.head(F.silu(self.norm(h))).float(), middle

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As in `nn.Module`; `predict` too, since that is what training calls."""
        self.predict = torch.compile(self.predict, *args, **kwargs)  # type: ignore[method-assign]

    def _pass(
        self, layer: nn.Module, h: Float[Tensor, "b c h w"], embedding: Float[Tensor, "b e"]
    ) -> Float[Tensor, "b d h2 w2"]:
        inputs = (h, embedding) if isinstance(layer, ResBlock) else (h,)
        if self.recompute and isinstance(layer, ResBlock):
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)

    @property
    def last_middle_conv(self) -> nn.Conv2d:
        """The last convolution whose weights the feature map in the middle depends on."""
        block = self.middle[-1]
        assert isinstance(block, ResBlock)
        return block.conv2

    def _latent_input(
        self,
        y: Float[Tensor, "b c h w"],
        z: Float[Tensor, "b d"] | None,
        known: Bool[Tensor, " b"] | None,
    ) -> tuple[Float[Tensor, "b d"], Bool[Tensor, " b"]]:
        assert self.latent is not None
        if z is None:
            nothing = y.new_zeros(len(y), self.latent.latent_dim)
            return nothing, torch.zeros(len(y), dtype=torch.bool, device=y.device)
        if known is None:
            known = torch.ones(len(y), dtype=torch.bool, device=y.device)
        return z, known

    def _network_input(
        self,
        y: Float[Tensor, "b c h w"],
        x_hat: Float[Tensor, "b c h w"] | None,
        x_hat_known: Bool[Tensor, " b"] | None,
    ) -> Float[Tensor, "b i h w"]:
        if self.form == "uncond":
            return y
        mask = y.new_zeros(len(y), 1, 1, 1) if x_hat is None else y.new_ones(len(y), 1, 1, 1)
        if x_hat_known is not None:
            mask = mask * x_hat_known[:, None, None, None]
        shown = torch.zeros_like(y) if x_hat is None else x_hat * mask
        state = y + shown if self.form == "form2" else y
        return torch.cat([state, shown, mask.expand(-1, -1, *y.shape[-2:])], dim=1)


def _check_settings(
    width: int, multipliers: list[int], blocks: int, timesteps: int, dropout: float
) -> None:
    check_range("model.width", width, 2)
    if width % 2:
        raise UserError(
            f"model.width: {width} is odd, and the embedding of the time needs pairs; use "
            f"{width + 1}."
        )
    if not multipliers:
        raise UserError(
            "model.multipliers: [] makes no level; give one number a level, such as [1, 2, 2, 2]."
        )
    for multiplier in multipliers:
        check_range("model.multipliers", multiplier, 1)
    check_range("model.blocks", blocks, 1)
    check_range("model.timesteps", timesteps, 2)
    check_range("model.dropout", dropout, 0, 1, below=True)


def _sizes(image_size: int, multipliers: list[int], attention: list[int]) -> list[int]:
    """Feature-map height of each level, in pixels."""
    halvings = len(multipliers) - 1
    if image_size % 2**halvings:
        raise UserError(
            f"model.image_size: {image_size} cannot be halved {halvings} times for the "
            f"{len(multipliers)} levels of model.multipliers; use a multiple of {2**halvings}."
        )
    sizes = [image_size // 2**level for level in range(len(multipliers))]
    absent = [size for size in attention if size not in sizes]
    if absent:
        raise UserError(
            f"model.attention: no feature map is {absent[0]} pixels high; name heights among "
            f"{', '.join(map(str, sizes))}, as --model.init_args.attention '[{sizes[-1]}]', or "
            "give model.multipliers another number of levels."
        )
    return sizes


def _down_path(
    width: int,
    widths: list[int],
    has_attention: list[bool],
    blocks: int,
    embedding: int,
    dropout: float,
) -> tuple[nn.ModuleList, list[int]]:
    """Layers of the way down, and the channels of every skip connection."""
    layers: list[nn.Module] = []
    skips, channels = [width], width
    for level, out in enumerate(widths):
        for _ in range(blocks):
            layers.append(ResBlock(channels, out, embedding, dropout))
            layers += [SelfAttention(out)] if has_attention[level] else []
            channels = out
            skips.append(out)
        if level + 1 < len(widths):
            layers.append(Downsample(out))
            skips.append(out)
    return nn.ModuleList(layers), skips


def _up_path(
    skips: list[int],
    widths: list[int],
    has_attention: list[bool],
    blocks: int,
    embedding: int,
    dropout: float,
) -> nn.ModuleList:
    """Layers of the way up; every residual block takes one skip connection."""
    layers: list[nn.Module] = []
    skips, channels = list(skips), widths[-1]
    for level, out in reversed(list(enumerate(widths))):
        for _ in range(blocks + 1):
            layers.append(ResBlock(channels + skips.pop(), out, embedding, dropout))
            layers += [SelfAttention(out)] if has_attention[level] else []
            channels = out
        if level:
            layers.append(Upsample(out))
    return nn.ModuleList(layers)
