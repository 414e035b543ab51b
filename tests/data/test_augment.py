"""Views: per image, reproducible, inside their bounds, and right in geometry and grey values."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cxr_lightning.data.augment import (
    PRESETS,
    Augmentation,
    Preset,
    augment,
    crop_transforms,
    sample_draws,
    two_views,
)
from cxr_lightning.errors import UserError

MIDDLE = 0.5 - 1e-9
NONE = PRESETS["none"]


def draws_of(**named: float) -> Tensor:
    order = ["area", "ratio", "x", "y", "angle", "brightness", "contrast", "flip"]
    return torch.tensor([[named.get(name, MIDDLE) for name in order]])


def smooth(count: int = 1, size: int = 32) -> Tensor:
    torch.manual_seed(0)
    coarse = torch.rand(count, 1, 6, 6) * 1.6 - 0.8
    return F.interpolate(coarse, (size, size), mode="bicubic").clamp(-1, 1)


def test_no_augmentation_is_the_identity() -> None:
    image = smooth(4)
    view = augment(image, torch.rand(4, 8), NONE)
    torch.testing.assert_close(view, image, rtol=0, atol=1e-5)


def test_flip_mirrors_left_and_right() -> None:
    image = smooth()
    flip = replace(NONE, flip=0.5)
    torch.testing.assert_close(
        augment(image, draws_of(flip=0.1), flip), image.flip(3), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(augment(image, draws_of(flip=0.9), flip), image, rtol=0, atol=1e-5)


def test_quarter_turn_is_exact_on_a_square() -> None:
    image = smooth()
    turn = replace(NONE, rotation=180.0)
    view = augment(image, draws_of(angle=0.75), turn)  # +90 degrees
    torch.testing.assert_close(view, image.rot90(1, (2, 3)), rtol=0, atol=1e-4)


def test_rotation_keeps_shapes_on_an_image_that_is_not_square() -> None:
    theta = crop_transforms(draws_of(angle=0.9), replace(NONE, rotation=45.0), aspect=2.0)[0]
    pixels = torch.diag(torch.tensor([2.0, 1.0]))  # half width and height in pixels
    linear = pixels @ theta[:, :2] @ pixels.inverse()
    torch.testing.assert_close(linear @ linear.T, torch.eye(2), rtol=0, atol=1e-6)


def test_crop_shows_the_corner_it_was_drawn_for() -> None:
    image = smooth(size=32)
    quarter = replace(NONE, area=(0.25, 0.25))
    view = augment(image, draws_of(x=0.0, y=0.0), quarter)
    expected = F.interpolate(image[:, :, :16, :16], (32, 32), mode="bilinear")
    # at the crop's inner border the view looks one pixel further than the cut-out
    torch.testing.assert_close(view[..., :30, :30], expected[..., :30, :30], rtol=0, atol=1e-5)


def test_crops_stay_inside_and_within_the_ranges() -> None:
    augmentation = Augmentation(rotation=0.0)
    theta = crop_transforms(torch.rand(2000, 8), augmentation)
    width, height = theta[:, 0, 0], theta[:, 1, 1]
    assert (theta[:, 0, 2].abs() + width <= 1 + 1e-6).all()
    assert (theta[:, 1, 2].abs() + height <= 1 + 1e-6).all()
    area, ratio = width * height, width / height
    # a crop cut at the image's border is up to 1.1 times smaller and up to 1.1 times narrower
    assert area.min() > 0.5 / 1.1
    assert area.max() <= 1 + 1e-6
    assert ratio.min() > 0.9 - 1e-6
    assert ratio.max() < 1.1 + 1e-6


def test_grey_values_follow_the_formulas() -> None:
    image = smooth(2)
    unit = (image + 1) / 2
    brightness = augment(
        image, draws_of(brightness=1.0).repeat(2, 1), replace(NONE, brightness=0.2)
    )
    torch.testing.assert_close((brightness + 1) / 2, (unit * 1.2).clamp(max=1), rtol=0, atol=1e-5)
    contrast = augment(image, draws_of(contrast=0.0).repeat(2, 1), replace(NONE, contrast=0.4))
    mean = unit.mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close((contrast + 1) / 2, mean + 0.6 * (unit - mean), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("padding", "corner"), [("border", 0.5), ("black", -1.0)])
def test_padding_outside_of_the_image(padding, corner: float) -> None:  # type: ignore[no-untyped-def]
    turn = replace(NONE, rotation=45.0, padding=padding)
    view = augment(torch.full((1, 1, 32, 32), 0.5), draws_of(angle=1.0), turn)
    assert float(view[0, 0, 0, 0]) == pytest.approx(corner, abs=1e-5)
    assert float(view[0, 0, 16, 16]) == pytest.approx(0.5, abs=1e-5)


def test_views_stay_in_model_range() -> None:
    image = (torch.rand(16, 1, 32, 32) > 0.5).float() * 2 - 1
    view = augment(image, torch.rand(16, 8), Augmentation(brightness=1.0, contrast=1.0))
    assert view.min() >= -1
    assert view.max() <= 1
    assert not view.isnan().any()


def test_images_get_their_own_views_independent_of_the_batch() -> None:
    torch.manual_seed(3)
    image, draws = smooth().repeat(8, 1, 1, 1), sample_draws(8)
    first, second = two_views(image, draws, Augmentation())
    assert (first - second).abs().mean(dim=(1, 2, 3)).min() > 1e-3
    assert torch.pdist(first.flatten(1)).min() > 1e-1
    alone = two_views(image[5:6], draws[5:6], Augmentation())
    torch.testing.assert_close(alone[0], first[5:6], rtol=0, atol=1e-6)
    torch.testing.assert_close(alone[1], second[5:6], rtol=0, atol=1e-6)


def test_draws_repeat_with_the_seed() -> None:
    torch.manual_seed(1)
    first = sample_draws(3)
    torch.manual_seed(1)
    assert torch.equal(first, sample_draws(3))
    assert first.shape == (3, 2, 8)
    assert first.device.type == "cpu"
    assert not torch.equal(first[:, 0], first[:, 1])


def test_presets() -> None:
    preset = PRESETS["moco_cxr"]
    theta = crop_transforms(torch.rand(500, 8), preset)
    scale = torch.linalg.det(theta[:, :, :2])
    torch.testing.assert_close(scale.abs(), torch.ones(500))  # no crop
    assert 0.4 < float((scale < 0).float().mean()) < 0.6  # flips
    angle = torch.rad2deg(torch.asin(theta[:, 1, 0].abs()))
    assert angle.max() <= 10.01
    assert angle.max() > 9
    assert (preset.brightness, preset.contrast) == (0.0, 0.0)
    assert Augmentation() == PRESETS["cxr"]
    assert PRESETS["cxr"].flip == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"area": (0.0, 1.0)},
        {"area": (0.5, 1.5)},
        {"area": (0.9, 0.5)},
        {"ratio": (-1.0, 1.0)},
        {"rotation": -1.0},
        {"brightness": 1.5},
        {"contrast": math.nan},
        {"flip": 2.0},
    ],
)
def test_settings_out_of_range_are_refused(wrong) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=next(iter(wrong))):
        Augmentation(**wrong)


@pytest.mark.parametrize("preset", ["cxr", "none"])
def test_mixed_precision_moves_no_pixel(preset: Preset) -> None:
    image = torch.rand(4, 1, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    draws = sample_draws(4, torch.Generator().manual_seed(1))[:, 0]
    plain = augment(image, draws, PRESETS[preset])
    with torch.autocast("cpu", torch.bfloat16):
        mixed = augment(image, draws, PRESETS[preset])
    assert mixed.dtype == plain.dtype
    assert torch.equal(mixed, plain)
