"""Augmentation for contrastive learning: random views of chest radiographs, on the device."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cxr_lightning.errors import UserError
from cxr_lightning.ranges import check_range

DRAWS = 8
"""Random numbers that one view takes: area, aspect ratio, centre x, centre y, angle, brightness,
contrast, flip."""


@dataclass(frozen=True)
class Augmentation:
    """How strongly views differ from the image.

    The defaults are moderate forms of augmentations that suit chest radiographs (van der Sluijs et
    al. 2023, arXiv 2301.12636). There is no blur, because an encoder that ignores blur cannot tell
    a blurred reconstruction from a sharp one, and no flip, because the side of a finding matters.

    Attributes:
        area: Range of the crop's share of the image's area, in (0, 1].
        ratio: Range of the crop's width / height over the image's, drawn on a log scale.
        rotation: Largest rotation in degrees, to either side.
        brightness: Grey values (0 to 1) are multiplied by 1 - `brightness` to 1 + `brightness`.
        contrast: Distances to the view's mean are multiplied by 1 - `contrast` to 1 + `contrast`.
        flip: Probability of a horizontal flip.
        padding: What lies outside of the image: its `border` pixels, or `black`.
    """

    area: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (0.9, 1.1)
    rotation: float = 10.0
    brightness: float = 0.3
    contrast: float = 0.3
    flip: float = 0.0
    padding: Literal["border", "black"] = "border"

    def __post_init__(self) -> None:
        for name, (low, high) in (("area", self.area), ("ratio", self.ratio)):
            if not 0.0 < low <= high or (name == "area" and high > 1.0):
                raise UserError(
                    f"model.augmentation.{name}: {low} to {high} is not a range; give two numbers "
                    f"above 0, the lower one first{', at most 1' if name == 'area' else ''}."
                )
        for name, top in (
            ("rotation", 180.0),
            ("brightness", 1.0),
            ("contrast", 1.0),
            ("flip", 1.0),
        ):
            check_range(f"model.augmentation.{name}", getattr(self, name), 0, top)


Preset = Literal["cxr", "moco_cxr", "none"]

PRESETS: dict[Preset, Augmentation] = {
    "cxr": Augmentation(),
    "moco_cxr": Augmentation(
        area=(1.0, 1.0), ratio=(1.0, 1.0), brightness=0.0, contrast=0.0, flip=0.5, padding="black"
    ),
    "none": Augmentation(
        area=(1.0, 1.0), ratio=(1.0, 1.0), rotation=0.0, brightness=0.0, contrast=0.0
    ),
}
"""`cxr`: the default. `moco_cxr`: flip and rotation alone (Sowrirajan et al. 2021, MoCo-CXR, arXiv
2010.05352). `none`: the image itself."""


def sample_draws(count: int, generator: torch.Generator | None = None) -> Float[Tensor, "n 2 8"]:
    """Uniform random numbers for `two_views`, always drawn on the CPU.

    So the views depend on the seed and not on the device.

    Args:
        count: Number of images.
        generator: A CPU generator; torch's global one by default.
    """
    return torch.rand(count, 2, DRAWS, generator=generator)


@torch.no_grad()
def augment(
    image: Float[Tensor, "b 1 h w"], draws: Float[Tensor, "b 8"], augmentation: Augmentation
) -> Float[Tensor, "b 1 h w"]:
    """One view of each image: crop, rotation and flip in one resampling, then grey values.

    Without autocast, which would round the places that are sampled to 8 bits.

    Args:
        image: Model range [-1, 1].
        draws: Numbers in [0, 1), on the CPU.
        augmentation: What they are scaled to.

    Returns:
        Views of the same size, clamped to the model range.
    """
    theta = crop_transforms(draws, augmentation, image.shape[-1] / image.shape[-2])
    with torch.autocast(image.device.type, enabled=False):
        grid = F.affine_grid(theta.to(image.device), list(image.shape), align_corners=False)
    if augmentation.padding == "border":
        view = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    else:  # grid_sample pads with 0; black is -1
        view = F.grid_sample(image + 1.0, grid, padding_mode="zeros", align_corners=False) - 1.0
    factor = (2.0 * draws[:, 5:7] - 1.0).to(image.device)[:, :, None, None, None]
    view = (view + 1.0) * (1.0 + augmentation.brightness * factor[:, 0]) - 1.0
    mean = view.mean(dim=(1, 2, 3), keepdim=True)
    view = mean + (view - mean) * (1.0 + augmentation.contrast * factor[:, 1])
    return view.clamp(-1.0, 1.0)


def two_views(
    image: Float[Tensor, "b 1 h w"],
    draws: Float[Tensor, "b 2 8"],
    augmentation: Augmentation,
    partner: Float[Tensor, "b 1 h w"] | None = None,
) -> tuple[Float[Tensor, "b 1 h w"], Float[Tensor, "b 1 h w"]]:
    """Two independent views of each image, made in one call of `augment`.

    Args:
        image: Model range [-1, 1].
        draws: From `sample_draws`.
        augmentation: What they are scaled to.
        partner: Images that the second views are of, in place of the first ones' own.
    """
    images = torch.cat([image, image if partner is None else partner])
    views = augment(images, draws.transpose(0, 1).flatten(0, 1), augmentation)
    first, second = views.chunk(2)
    return first, second


def crop_transforms(
    draws: Float[Tensor, "b 8"], augmentation: Augmentation, aspect: float = 1.0
) -> Float[Tensor, "b 2 3"]:
    """Affine maps from view to image coordinates, each from -1 to 1, as `F.affine_grid` takes them.

    A crop lies inside the image before it is rotated about its own centre.

    Args:
        draws: Numbers in [0, 1).
        augmentation: What they are scaled to.
        aspect: Width / height of the images, so that rotations stay rotations.
    """
    area, ratio, x, y, angle = draws[:, :5].unbind(1)
    low, high = augmentation.area
    area = low + (high - low) * area
    low, high = augmentation.ratio
    ratio = low * (high / low) ** ratio
    width, height = (area * ratio).sqrt().clamp(max=1.0), (area / ratio).sqrt().clamp(max=1.0)
    angle = torch.deg2rad(augmentation.rotation * (2.0 * angle - 1.0))
    side = torch.where(draws[:, 7] < augmentation.flip, -1.0, 1.0)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack(
        [
            torch.stack([cos * width * side, -sin * height / aspect, (1 - width) * (2 * x - 1)], 1),
            torch.stack([sin * width * side * aspect, cos * height, (1 - height) * (2 * y - 1)], 1),
        ],
        dim=1,
    )
