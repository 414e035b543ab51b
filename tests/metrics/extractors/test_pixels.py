"""The pixel extractor."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cxr_lightning.metrics.extractors import pixel_extractor


@pytest.mark.parametrize("size", [28, 64, 100])
def test_distance_is_the_rms_difference_both_ways_round(size: int) -> None:
    # uint8 arithmetic would give 16 instead of 240 one way round
    extractor = pixel_extractor(size)
    dark, bright = (torch.full((1, 1, size, size), v, dtype=torch.uint8) for v in (10, 250))
    for one, other in ((dark, bright), (bright, dark)):
        distance = torch.linalg.vector_norm((extractor(one) - extractor(other)).double())
        assert float(distance) == pytest.approx(240 / 255, abs=1e-6)


def test_black_and_white_are_one_apart() -> None:
    extractor = pixel_extractor(200)
    black = torch.zeros(1, 1, 200, 200, dtype=torch.uint8)
    distance = torch.linalg.vector_norm((extractor(black) - extractor(~black)).double())
    assert float(distance) == pytest.approx(1, abs=1e-6)


def test_small_images_keep_their_pixels(make_raw: Callable[..., Tensor]) -> None:
    extractor, raw = pixel_extractor(28), make_raw(2, 28)
    assert extractor.num_features == 28 * 28
    expected = (raw[0].double() - raw[1].double()).square().mean().sqrt() / 255
    distance = torch.linalg.vector_norm(extractor(raw)[0] - extractor(raw)[1])
    assert float(distance) == pytest.approx(float(expected), rel=1e-5)
    torch.testing.assert_close(extractor(raw).view(2, 28, 28) * 28 * 255, raw[:, 0].float())


def test_large_images_are_averaged(make_raw: Callable[..., Tensor]) -> None:
    extractor, raw = pixel_extractor(192), make_raw(1, 192)
    expected = torch.empty(64, 64)
    for row in range(64):
        for column in range(64):
            block = raw[0, 0, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
            expected[row, column] = block.float().mean() / 255
    torch.testing.assert_close(extractor(raw).view(64, 64) * 64, expected)
    assert extractor.num_features == 64 * 64


def test_identity_depends_on_what_it_does() -> None:
    assert pixel_extractor(28).sha256 != pixel_extractor(64).sha256
    assert pixel_extractor(64).sha256 == pixel_extractor(512).sha256


def test_refuses_another_size(make_raw: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"64 x 64 pixels, got \(28, 28\)"):
        pixel_extractor(64)(make_raw(1, 28))
