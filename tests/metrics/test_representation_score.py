"""Reconstructed representation score: range, scale, precision, 8-bit rounding."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cxr_lightning.data.transforms import to_image, to_model
from cxr_lightning.metrics.representation_score import (
    ReconstructedRepresentationScore,
    embed,
    embedding_distance,
    embedding_l1,
    other_patients,
    pair_distances,
    resize_round_trip,
)
from cxr_lightning.networks.encoder import Encoder


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(image_size=32, width=4, backbone="small", dim=16).eval()


def _images(count: int = 6, size: int = 32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, size, size, generator=generator) * 2 - 1


def _embeddings(seed: int, count: int = 50, dim: int = 128) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_distance_is_one_minus_cosine() -> None:
    a, b = _embeddings(1), _embeddings(2)
    for i, value in enumerate(embedding_distance(a, b).tolist()):
        x, y = a[i].double(), b[i].double()
        assert value == pytest.approx(1 - float(x @ y / (x.norm() * y.norm())), abs=1e-6)


def test_distance_range_and_scale() -> None:
    a, b = _embeddings(1), _embeddings(2)
    assert torch.equal(embedding_distance(a, a), torch.zeros(50))
    assert torch.allclose(embedding_distance(a, -a), torch.full((50,), 2.0))
    assert torch.allclose(embedding_distance(1e3 * a, 1e-3 * b), embedding_distance(a, b))
    unit = torch.nn.functional.normalize(a), torch.nn.functional.normalize(b)
    assert torch.allclose(embedding_l1(a, b), (unit[0] - unit[1]).abs().mean(1))


def test_bf16_embeddings_agree() -> None:
    """Cosines around .96, where the score lives: bf16 arithmetic would be off by up to .002."""
    a = _embeddings(1)
    b = a + 0.3 * _embeddings(2)
    expected = embedding_distance(a, b)
    assert 0.02 < expected.mean() < 0.06
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = embedding_distance(a.bfloat16(), b.bfloat16())
    assert value.dtype == torch.float32
    assert torch.allclose(value, expected, atol=1e-3)


def test_autocast_is_off_inside(encoder: Encoder) -> None:
    original, other = _images(seed=1), _images(seed=2)
    expected = pair_distances(encoder, original, other)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(pair_distances(encoder, original, other), expected)


def test_both_images_are_rounded_to_8_bit(encoder: Encoder) -> None:
    image = to_model(torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8))
    less_than_half_a_grey_value = image + 0.4 / 127.5 * torch.sign(_images(4))
    assert not torch.equal(image, less_than_half_a_grey_value)
    assert torch.equal(pair_distances(encoder, image, less_than_half_a_grey_value), torch.zeros(4))
    assert torch.equal(pair_distances(encoder, less_than_half_a_grey_value, image), torch.zeros(4))


def test_no_gradient(encoder: Encoder) -> None:
    assert not embed(encoder, _images().requires_grad_()).requires_grad


def test_metric_is_the_mean_over_all_pairs(encoder: Encoder) -> None:
    original, reconstruction = _images(7, seed=1), _images(7, seed=2)
    metric = ReconstructedRepresentationScore(encoder)
    for rows in (slice(0, 4), slice(4, 7)):
        metric.update(original[rows], reconstruction[rows])
    expected = pair_distances(encoder, original, reconstruction).mean()
    assert metric.compute().dtype == torch.float32
    assert torch.allclose(metric.compute(), expected)
    assert 0.0 <= float(metric.compute()) <= 2.0
    metric.reset()
    metric.update(original, original)
    assert float(metric.compute()) == 0.0


def test_metric_keeps_a_frozen_copy(encoder: Encoder) -> None:
    encoder.train()
    metric = ReconstructedRepresentationScore(encoder).train()
    assert not any(module.training for module in metric.encoder.modules())
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert encoder.training
    assert not metric.state_dict()  # the weights are in their product, not in every checkpoint


def test_metric_synchronises_sums(encoder: Encoder) -> None:
    """Two processes that saw 4 and 2 pairs: the mean over 6, not the mean of two means."""
    original, reconstruction = _images(6, seed=1), _images(6, seed=2)
    metrics = [ReconstructedRepresentationScore(encoder) for _ in range(2)]
    metrics[0].update(original[:4], reconstruction[:4])
    metrics[1].update(original[4:], reconstruction[4:])

    def gather(value: Tensor, group: Any = None) -> list[Tensor]:
        del group
        name = "total" if value.dtype == torch.float64 else "count"
        return [getattr(metrics[0], name), getattr(metrics[1], name)]

    joined = ReconstructedRepresentationScore(encoder, dist_sync_fn=gather)
    joined.update(original, reconstruction)
    joined.sync(dist_sync_fn=gather, distributed_available=lambda: True)
    total = float(joined.total / joined.count)
    assert total == pytest.approx(float(pair_distances(encoder, original, reconstruction).mean()))


def test_round_trip_is_close_and_8_bit() -> None:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    image = (0.5 * (x + y))[None, None]
    trip = resize_round_trip(image)
    assert trip.shape == image.shape
    assert torch.equal(to_model(to_image(trip)), trip)
    assert (trip - image).abs().max() < 0.05  # smooth image: a few grey values at the border


def test_other_patients() -> None:
    patients = np.array(["a", "b", "a"])
    pool = np.array(["a", "a", "b", "c"])
    generator = np.random.default_rng(0)
    for _ in range(20):
        other = other_patients(patients, pool, generator)
        assert other is not None
        assert (pool[other] != patients).all()
    assert other_patients(np.array(["a"]), np.array(["a", "a"]), generator) is None
