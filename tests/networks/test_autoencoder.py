"""The VAE's network."""

import pytest
import torch

from cxr_lightning.errors import UserError
from cxr_lightning.networks.autoencoder import Autoencoder, halvings, sample_latent


@pytest.mark.parametrize("size", [8, 16, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("batch", [1, 3])
def test_shapes_at_any_size_and_channel_count(size, channels, batch):
    torch.manual_seed(0)
    network = Autoencoder(image_size=size, width=4, latent_dim=5, channels=channels)
    image = torch.rand(batch, channels, size, size) * 2 - 1
    mean, log_variance = network.encode(image)
    assert mean.shape == log_variance.shape == (batch, 5)
    made = network(image, torch.zeros(batch, 5))
    assert made.shape == image.shape
    assert made.abs().max() <= 1.0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [32, 48, 64, 80, 128, 224, 256, 512])
def test_forward_and_backward_at_every_size(size, channels):
    torch.manual_seed(0)
    network = Autoencoder(image_size=size, width=2, latent_dim=3, channels=channels)
    image = torch.rand(1, channels, size, size) * 2 - 1
    made = network(image, torch.randn(1, 3))
    assert made.shape == image.shape
    (made - image).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("width", [1, 3, 7, 32])
def test_any_width(width):
    network = Autoencoder(image_size=32, width=width, latent_dim=3)
    assert network.encoder[0].out_channels == width
    assert network(torch.zeros(2, 1, 32, 32), torch.zeros(2, 3)).shape == (2, 1, 32, 32)


def comes_down(size: int) -> bool:
    try:
        return size / 2 ** halvings(size) in (4, 5, 6, 7)
    except UserError:
        return False


def test_possible_sizes_are_4_to_7_times_a_power_of_two():
    expected = sorted(bottom * 2**k for bottom in (4, 5, 6, 7) for k in range(1, 8))
    assert [size for size in range(-8, 513) if comes_down(size)] == [
        size for size in expected if size <= 512
    ]


@pytest.mark.parametrize("size", [-8, 0, 4, 7, 18, 33, 72, 100, 500])
def test_sizes_that_do_not_halve_are_refused(size):
    with pytest.raises(
        UserError, match=rf"^model\.image_size: {size} cannot .*; use 4, 5, 6 or 7 "
    ):
        Autoencoder(image_size=size)


@pytest.mark.parametrize("name", ["width", "latent_dim", "channels"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(UserError, match=rf"^model\.{name}: 0 is not possible; use 1 or more\.$"):
        Autoencoder(**{"image_size": 32, name: 0})


def test_forward_is_decode_of_the_sampled_code(make_autoencoder):
    network = make_autoencoder()
    image = torch.rand(2, 1, 32, 32) * 2 - 1
    noise = torch.randn(2, 6)
    mean, log_variance = network.encode(image)
    z = torch.stack([m + (lv / 2).exp() * n for m, lv, n in zip(mean, log_variance, noise)])  # noqa: B905
    torch.testing.assert_close(network(image, noise), network.decode(z), rtol=0, atol=1e-6)


def test_sampled_codes_have_the_stated_moments():
    n = 100_000
    mean, log_variance = torch.full((n, 1), 2.0), torch.full((n, 1), -1.0)
    noise = torch.randn(n, 1, generator=torch.Generator().manual_seed(0))
    z = sample_latent(mean, log_variance, noise).double()
    variance = torch.e**-1
    assert abs(z.mean() - 2.0) < 5 * (variance / n) ** 0.5  # five standard errors
    assert abs(z.var() - variance) < 5 * variance * (2 / n) ** 0.5


def test_log_variance_stays_in_a_range_whose_exponential_is_finite(make_autoencoder, randomize):
    network = randomize(make_autoencoder())
    with torch.no_grad():
        network.encoder[-1].weight *= 1e6
    _, log_variance = network.encode(torch.rand(4, 1, 32, 32))
    assert log_variance.min() >= -20.0
    assert log_variance.max() <= 10.0


def test_reconstruction_of_an_image_does_not_depend_on_its_batch(make_autoencoder):
    network = make_autoencoder().eval()
    image, noise = torch.rand(4, 1, 32, 32) * 2 - 1, torch.randn(4, 6)
    together = network(image, noise)
    alone = torch.cat([network(image[i : i + 1], noise[i : i + 1]) for i in range(4)])
    # the same float32 sums, which kernels may order by batch size
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_gradient_reaches_all_parameters(make_autoencoder, randomize):
    network = randomize(make_autoencoder()).train()
    made = network(torch.rand(2, 1, 32, 32) * 2 - 1, torch.randn(2, 6))
    made.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_arguments_and_weights_survive_saving(tmp_path, make_autoencoder):
    network = make_autoencoder().eval()
    network.save_pretrained(tmp_path)
    loaded = Autoencoder.from_pretrained(tmp_path, local_files_only=True)
    image, noise = torch.rand(2, 1, 32, 32), torch.randn(2, 6)
    assert loaded.latent_dim == 6
    assert torch.equal(loaded(image, noise), network(image, noise))


def test_output_is_float32_under_autocast(make_autoencoder):
    network = make_autoencoder()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean, _ = network.encode(torch.rand(1, 1, 32, 32))
        made = network.decode(mean)
    assert mean.dtype == made.dtype == torch.float32
