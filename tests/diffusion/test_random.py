"""Noise that belongs to an image."""

import pytest
import torch

from cxr_lightning.diffusion.random import EvenNoise, ImageNoise


def test_an_image_has_the_same_noise_alone_and_in_a_batch():
    batch = ImageNoise(7, torch.tensor([3, 1, 2]))
    first, second = batch.normal(5), batch.normal(2, 2)
    for position, index in enumerate([3, 1, 2]):
        alone = ImageNoise(7, torch.tensor([index]))
        assert torch.equal(alone.normal(5)[0], first[position])
        assert torch.equal(alone.normal(2, 2)[0], second[position])


def test_images_and_seeds_differ():
    noise = torch.cat(
        [ImageNoise(seed, torch.arange(50)).normal(4) for seed in (0, 1, 2**31, 2**40)]
    )
    assert len(noise.unique(dim=0)) == 200


def test_seed_and_index_are_not_interchangeable():
    a, b = ImageNoise(1, torch.tensor([2])), ImageNoise(2, torch.tensor([1]))
    assert not torch.equal(a.normal(4), b.normal(4))


def test_first_numbers_over_many_images_are_standard_normal_and_uncorrelated():
    n = 4000
    x = ImageNoise(0, torch.arange(n)).normal(2).double()
    # five standard errors
    assert x.mean(0).abs().max() < 5 / n**0.5
    assert (x.var(0) - 1).abs().max() < 5 * (2 / n) ** 0.5
    neighbours = (x[1:, 0] * x[:-1, 0]).mean()
    assert neighbours.abs() < 5 / n**0.5


def test_global_random_state_is_neither_used_nor_moved():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a = ImageNoise(0, torch.arange(2)).normal(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(ImageNoise(0, torch.arange(2)).normal(3), a)


@pytest.mark.parametrize("index", [torch.arange(2, dtype=torch.int32), torch.arange(2)])
def test_shape_has_the_batch_in_front(index):
    assert ImageNoise(0, index).normal(1, 4, 5).shape == (2, 1, 4, 5)


def test_even_noise_is_the_same_numbers_with_a_mean_square_of_one_in_each_image():
    index = torch.tensor([4, 7])
    even, plain = EvenNoise(ImageNoise(0, index)), ImageNoise(0, index)
    for shape in ((3, 8, 8), (5,)):
        x, y = even.normal(*shape), plain.normal(*shape)
        for row in range(2):
            expected = y[row] * (y[row].numel() / float((y[row].double() ** 2).sum())) ** 0.5
            torch.testing.assert_close(x[row], expected, rtol=1e-5, atol=0)


def test_even_noise_of_an_image_is_the_same_alone_and_in_a_batch():
    together = EvenNoise(ImageNoise(7, torch.arange(40))).normal(1, 33, 31)
    for index in range(40):
        alone = EvenNoise(ImageNoise(7, torch.tensor([index]))).normal(1, 33, 31)
        assert torch.equal(alone[0], together[index])
