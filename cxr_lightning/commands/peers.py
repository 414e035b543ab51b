"""U-Nets of other libraries, matched to ours, as `cxr benchmark --peers` trains them.

A peer has the same channels at every level, blocks, attention at the same resolution with heads of
the same width, and 32 groups a norm: its convolutions are ours one by one. It embeds a class where
ours embeds a condition; the table of classes has as many rows as make the numbers of parameters
equal, since theirs add the embedding and ours scale by it too.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cxr_lightning.errors import UserError
from cxr_lightning.networks.unet import Denoiser
from cxr_lightning.stages.generator_in_training import Draws, GeneratorInTraining
from cxr_lightning.types import Condition

TIMESTEPS = 1000
MULTIPLIERS = [1, 2, 2, 2]
BLOCKS = 2
ATTENTION_LEVEL = 2
HEAD_WIDTH = 64
GROUPS = 32


@dataclass(frozen=True)
class Shape:
    """What the U-Nets have in common.

    Attributes:
        size: Height and width of the images in pixels.
        width: Channels at full resolution.

    Raises:
        UserError: If a library cannot have that shape.
    """

    size: int
    width: int

    def __post_init__(self) -> None:
        for name, value, unit in (("size", self.size, 8), ("width", self.width, GROUPS)):
            if value < unit or value % unit:
                raise UserError(f"{name}: {value} does not suit all; use a multiple of {unit}.")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.width * multiplier for multiplier in MULTIPLIERS)

    @property
    def attention(self) -> tuple[bool, ...]:
        """Which levels have self-attention."""
        return tuple(level == ATTENTION_LEVEL for level in range(len(MULTIPLIERS)))

    @property
    def attention_size(self) -> int:
        """Height in pixels of the feature maps with self-attention."""
        return self.size // 2**ATTENTION_LEVEL


class Contestant(ABC):
    """A U-Net with what its library has around it, ready for training steps.

    Attributes:
        network: The U-Net.
    """

    network: nn.Module

    @abstractmethod
    def loss(self, image: Float[Tensor, "b 1 h w"]) -> Float[Tensor, ""]:
        """Mean squared error of the noise predicted in images that are noised at random."""

    @abstractmethod
    def predict(
        self, y: Float[Tensor, "b 1 h w"], t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b 1 h w"]:
        """One evaluation, as a sampler makes it."""

    def trainer(self, image: Float[Tensor, "b 1 h w"], *, bf16: bool) -> Callable[[], None]:
        """A training step in a plain loop: AdamW, nothing logged.

        Args:
            image: The batch, the same in every step.
            bf16: Whether there is autocast to bfloat16.
        """
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(image.device.type, torch.bfloat16, enabled=bf16):
                loss = self.loss(image)
            loss.backward()
            optimizer.step()

        return step

    def evaluation(self, image: Float[Tensor, "b 1 h w"], *, bf16: bool) -> Callable[[], None]:
        """One evaluation without gradients.

        Args:
            image: The batch.
            bf16: Whether there is autocast to bfloat16.
        """
        t = torch.full((len(image),), TIMESTEPS // 2, device=image.device)

        @torch.no_grad()
        def evaluate() -> None:
            with torch.autocast(image.device.type, torch.bfloat16, enabled=bf16):
                self.predict(image, t)

        return evaluate


class Ours(Contestant):
    """The denoiser of stage 2 with its loss, without a VAE."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.network = Denoiser(
            image_size=shape.size,
            width=shape.width,
            multipliers=MULTIPLIERS,
            blocks=BLOCKS,
            attention=[shape.attention_size],
            form="uncond",
            timesteps=TIMESTEPS,
        )
        self.generator = GeneratorInTraining(self.network, None).to(device)

    def loss(self, image: Float[Tensor, "b 1 h w"]) -> Float[Tensor, ""]:
        """Through `GeneratorInTraining.denoise`, as in stage 2."""
        count, device = len(image), image.device
        t = torch.randint(1, TIMESTEPS + 1, (count,), device=device)
        known = torch.ones(count, dtype=torch.bool, device=device)
        draws = Draws(t, torch.randn_like(image), None, known)
        condition = Condition.unknown(count, device)
        return self.generator.denoise(image, condition, draws).loss()

    def predict(
        self, y: Float[Tensor, "b 1 h w"], t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b 1 h w"]:
        """The denoiser's forward pass."""
        made: Tensor = self.network(y, t, Condition.unknown(len(y), y.device))
        return made


class Peer(Contestant):
    """A network of another library, its `add_noise`, and class labels drawn at random.

    Args:
        build: Makes the network for a number of classes; None for no classes.
        embedding: Width of a class's embedding.
        parameters: Number of parameters to reach.
        scheduler: The library's noise process.
        device: Where it is trained.
    """

    def __init__(
        self,
        build: Callable[[int | None], nn.Module],
        embedding: int,
        parameters: int,
        scheduler: Any,
        device: torch.device,
    ) -> None:
        missing = parameters - count_parameters(build(None))
        self.classes = max(round(missing / embedding), 1)
        self.network = build(self.classes).to(device)
        self.scheduler = scheduler

    def loss(self, image: Float[Tensor, "b 1 h w"]) -> Float[Tensor, ""]:
        """The step of the library's own examples."""
        noise = torch.randn_like(image)
        t = torch.randint(0, TIMESTEPS, (len(image),), device=image.device)
        noised = self.scheduler.add_noise(image, noise, t)
        return nn.functional.mse_loss(self.predict(noised, t).float(), noise)

    def predict(
        self, y: Float[Tensor, "b 1 h w"], t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b 1 h w"]:
        """The network's forward pass."""
        labels = torch.randint(0, self.classes, (len(y),), device=y.device)
        made = self.network(y, t, class_labels=labels)
        prediction: Tensor = getattr(made, "sample", made)
        return prediction


def diffusers_peer(shape: Shape, parameters: int, device: torch.device) -> Peer:
    """UNet2DModel of diffusers."""
    diffusers = importlib.import_module("diffusers")
    down = ["AttnDownBlock2D" if attention else "DownBlock2D" for attention in shape.attention]
    up = ["AttnUpBlock2D" if attention else "UpBlock2D" for attention in shape.attention]

    def build(classes: int | None) -> nn.Module:
        network: nn.Module = diffusers.UNet2DModel(
            sample_size=shape.size,
            in_channels=1,
            out_channels=1,
            layers_per_block=BLOCKS,
            block_out_channels=shape.channels,
            down_block_types=tuple(down),
            up_block_types=tuple(reversed(up)),
            norm_num_groups=GROUPS,
            attention_head_dim=HEAD_WIDTH,
            num_class_embeds=classes,
        )
        return network

    scheduler = diffusers.DDPMScheduler(TIMESTEPS, beta_schedule="linear")
    return Peer(build, 4 * shape.width, parameters, scheduler, device)


def monai_peer(shape: Shape, parameters: int, device: torch.device) -> Peer:
    """DiffusionModelUNet of MONAI."""
    networks = importlib.import_module("monai.networks")

    def build(classes: int | None) -> nn.Module:
        network: nn.Module = networks.nets.DiffusionModelUNet(
            spatial_dims=2,
            in_channels=1,
            out_channels=1,
            num_res_blocks=BLOCKS,
            channels=shape.channels,
            attention_levels=shape.attention,
            norm_num_groups=GROUPS,
            num_head_channels=HEAD_WIDTH,
            num_class_embeds=classes,
        )
        return network

    schedulers = importlib.import_module("monai.networks.schedulers")
    scheduler = schedulers.DDPMScheduler(
        TIMESTEPS, schedule="linear_beta", beta_start=1e-4, beta_end=0.02
    )
    return Peer(build, 4 * shape.width, parameters, scheduler, device)


PEERS = {"diffusers": diffusers_peer, "monai": monai_peer}


def make_peer(name: str, shape: Shape, parameters: int, device: torch.device) -> Peer:
    """One of `PEERS`.

    Args:
        name: Its name.
        shape: What its U-Net shall have in common with ours.
        parameters: Number of parameters to reach.
        device: Where it is trained.

    Raises:
        UserError: If it is unknown or not installed.
    """
    if name not in PEERS:
        raise UserError(f"peers: {name!r} is not known; use one or more of {', '.join(PEERS)}.")
    try:
        return PEERS[name](shape, parameters, device)
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"peers: {name} cannot be imported ({reason}); run pip install "
            "'cxr_lightning[peers]', or name only peers that are installed."
        ) from error


def count_parameters(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())
