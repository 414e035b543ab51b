"""Encoder of stage 3: backbone and projection head of MoCo v2."""

from typing import Literal, get_args

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Backbone = Literal["small", "resnet18", "resnet50", "densenet121"]

SAFE_CHANNELS = 8
"""From here on channels last are used; see `lay_out`."""


class Encoder(nn.Module, PyTorchModelHubMixin):
    """Embeds radiographs on the unit sphere.

    The head is Linear-ReLU-Linear without batch norm (MoCo v2, Chen et al. 2020, arXiv
    2003.04297). The backbones start from random weights and take one channel; their convolutions
    are in channels-last memory format, which is faster on CPUs and on tensor cores.

    Args:
        image_size: Height and width in pixels that the backbone sees.
        width: Channels of the first stage of the `small` backbone; the others have fixed widths.
        backbone: `small` is a residual network of four basic blocks without stem pooling, for CPUs
            and images of 32 to 64 pixels; the others are torchvision's networks of that name.
        dim: Dimension of the embedding.

    Attributes:
        feature_dim: Dimension of the pooled backbone features.
    """

    def __init__(
        self,
        *,
        image_size: int = 64,
        width: int = 32,
        backbone: Backbone = "resnet18",
        dim: int = 128,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.dim = dim
        self.backbone, self.feature_dim = build_backbone(backbone, width, image_size)
        self.head = nn.Sequential(
            nn.Linear(self.feature_dim, self.feature_dim),
            nn.ReLU(inplace=True),
            nn.Linear(self.feature_dim, dim),
        )
        lay_out(self, width)

    def preprocess(self, image: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 s s"]:
        """Resizes to the encoder's size: antialiased, bilinear, differentiable.

        The one preprocessing of training, loss and score; leaves images of that size as they are.

        Args:
            image: Model range [-1, 1].
        """
        if image.shape[-2:] == (self.image_size, self.image_size):
            return image
        size = (self.image_size, self.image_size)
        return F.interpolate(image, size, mode="bilinear", antialias=True)

    def features(self, image: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b f"]:
        """Backbone features after global average pooling.

        Args:
            image: Model range [-1, 1], any size.
        """
        features: Tensor = self.backbone(self.preprocess(image))
        return features

    def forward(self, image: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b d"]:
        """The embedding: float32, of length 1 also under autocast.

        Args:
            image: Model range [-1, 1], any size.
        """
        projection: Tensor = self.head(self.features(image))
        with torch.autocast(image.device.type, enabled=False):
            return F.normalize(projection.float(), dim=1)


def lay_out(network: nn.Module, width: int) -> None:
    """Puts a network's weights, and so its feature maps, in the order channels last, if it is safe.

    That is faster on GPUs. With fewer than 8 channels the backward pass of oneDNN's strided 1x1
    convolution writes past its memory in that order (seen with torch 2.14.1 on a CPU with AVX2).

    Args:
        network: Encoder or classifier.
        width: Channels of its first stage.
    """
    if width >= SAFE_CHANNELS:
        network.to(memory_format=torch.channels_last)


def build_backbone(name: Backbone, width: int, image_size: int) -> tuple[nn.Module, int]:
    """A network from (b, 1, s, s) to pooled features, and their dimension."""
    if name not in get_args(Backbone):
        raise ValueError(f"`backbone` must be one of {get_args(Backbone)}, got {name!r}")
    if name == "small":
        return _small(width, stride=1 if image_size <= 32 else 2), 8 * width

    from torchvision import models

    network = models.get_model(name, weights=None)
    if isinstance(network, models.DenseNet):
        dim = network.classifier.in_features
        network.features.conv0 = _one_channel(network.features.conv0)
        network.classifier = nn.Identity()
    else:
        dim = network.fc.in_features
        network.conv1 = _one_channel(network.conv1)
        network.fc = nn.Identity()
    return network, dim


def _one_channel(conv: nn.Conv2d) -> nn.Conv2d:
    """A torchvision stem convolution for one input channel, initialised as torchvision does."""
    stem = nn.Conv2d(1, conv.out_channels, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    return stem


def _small(width: int, stride: int) -> nn.Sequential:
    """3x3 stem and four basic blocks of width 1, 2, 4 and 8 times `width`."""
    from torchvision.models.resnet import BasicBlock

    widths = (width, width, 2 * width, 4 * width, 8 * width)
    layers: list[nn.Module] = [
        nn.Conv2d(1, width, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]
    for i in range(4):
        step = 1 if i == 0 else 2
        shortcut = None if step == 1 else _shortcut(widths[i], widths[i + 1], step)
        layers.append(BasicBlock(widths[i], widths[i + 1], step, shortcut))
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))
