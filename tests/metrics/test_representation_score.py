"""Reconstructed representation score: range, scale, precision, 8-bit rounding."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cxr_lightning.data.transforms import to_image, to_model
from cxr_lightning.losses.representation import embedding_distance, representation_loss
from cxr_lightning.metrics.extractors.encoder import _Embedding
from cxr_lightning.metrics.representation_score import (
    COMPARISONS,
    MEANINGS,
    ReconstructedRepresentationScore,
    embed,
    embedding_l1,
    floor_pairs,
    other_patients,
    pair_distances,
    resize_round_trip,
    score_ratios,
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
    found = metric.compute()
    assert set(found) == {"rrs"}
    assert found["rrs"].dtype == torch.float32
    assert torch.allclose(found["rrs"], expected)
    assert 0.0 <= float(found["rrs"]) <= 2.0
    metric.reset()
    metric.update(original, original)
    assert float(metric.compute()["rrs"]) == 0.0


def test_metric_counts_comparisons_and_groups_by_themselves(encoder: Encoder) -> None:
    original, made, same = _images(4, seed=1), _images(4, seed=2), _images(4, seed=3)
    member = torch.tensor([[True, False], [True, True], [False, False], [False, True]])
    metric = ReconstructedRepresentationScore(encoder, ["a", "b"])
    metric.update(original, made, member=member)
    metric.update(original, same, "rrs_ceil_same", member)
    metric.update(original, same, "rrs_vae")
    found = {name: float(value) for name, value in metric.compute().items()}
    rrs, ceiling = (pair_distances(encoder, original, x).tolist() for x in (made, same))
    expected = {"rrs": sum(rrs) / 4, "rrs_vae": sum(ceiling) / 4}
    for group, rows in (("a", [0, 1]), ("b", [1, 3])):
        expected[f"rrs_{group}"] = sum(rrs[i] for i in rows) / 2
        expected[f"rrs_ceil_same_{group}"] = sum(ceiling[i] for i in rows) / 2
        expected[f"nrrs_{group}"] = sum(rrs[i] for i in rows) / sum(ceiling[i] for i in rows)
    assert found == pytest.approx(expected, rel=1e-5)  # float32


def test_ratio_needs_a_ceiling_above_zero() -> None:
    scores = {"rrs_a": 0.1, "rrs_ceil_same_a": 0.4, "rrs_b": 0.1, "rrs_ceil_same_b": 0.0}
    tensors = {name: torch.tensor(value) for name, value in scores.items()}
    found = score_ratios(tensors | {"rrs_c": torch.tensor(0.1)}, ["a", "b", "c"])
    assert {name: float(value) for name, value in found.items()} == {"nrrs_a": 0.25}


def test_every_comparison_has_a_meaning() -> None:
    assert {*COMPARISONS, "nrrs"} == set(MEANINGS)


def test_floors_of_an_image_depend_on_its_number_alone(encoder: Encoder) -> None:
    image, index = _images(3), torch.tensor([4, 9, 11])
    pairs = floor_pairs(image, index)
    assert set(pairs) == {"rrs_floor_pixel", "rrs_floor_augment"}
    alone = floor_pairs(image[1:2], index[1:2])
    for name, pair in pairs.items():
        for whole, one in zip(pair, alone[name], strict=True):
            # as one batch or alone: rounding of the resampling
            assert torch.allclose(whole[1:2], one, atol=1e-5)
    first, second = pairs["rrs_floor_augment"]
    assert not torch.equal(first, second)
    other = floor_pairs(image, index, seed=1)["rrs_floor_augment"][0]
    assert not torch.equal(first, other)
    assert torch.equal(pairs["rrs_floor_pixel"][0], image)
    assert torch.equal(pairs["rrs_floor_pixel"][1], resize_round_trip(image))
    assert all(pair_distances(encoder, *pair).min() > 0.0 for pair in pairs.values())


def test_loss_metric_and_extractor_share_one_preprocessing(
    monkeypatch: pytest.MonkeyPatch, encoder: Encoder
) -> None:
    """Images of another size than the encoder's, resized by `Encoder.preprocess` alone."""
    original, other = _images(3, size=40, seed=1), _images(3, size=40, seed=2)
    sizes: list[tuple[int, ...]] = []
    resize = Encoder.preprocess

    def counted(self: Encoder, image: Tensor) -> Tensor:
        sizes.append(tuple(image.shape))
        return resize(self, image)

    monkeypatch.setattr(Encoder, "preprocess", counted)
    a_t = torch.full((3,), 0.9)
    loss = representation_loss(encoder, original, other, a_t)
    assert sizes == [(3, 1, 40, 40)] * 2
    metric = ReconstructedRepresentationScore(encoder)
    metric.update(original, other)
    assert sizes == [(3, 1, 40, 40)] * 4
    features = _Embedding(encoder)(to_image(original))  # what `cxr evaluate` embeds with
    assert sizes == [(3, 1, 40, 40)] * 5
    assert torch.allclose(features, embed(encoder, original))
    sizes.clear()
    encoder.features(original)  # what the probes of stage 3 look at
    assert sizes == [(3, 1, 40, 40)]
    # equal weights: the loss is the score but for the rounding to 8 bit, at most 1/255 a pixel
    assert float(loss.detach()) == pytest.approx(float(metric.compute()["rrs"]), rel=0.02)


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
    total = float(joined.total[0, 0] / joined.count[0, 0])
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


def test_other_patients_of_the_same_kind() -> None:
    patients, views = np.array(["a", "b", "c", "d"]), np.array(["AP", "PA", "AP", "PA"])
    generator = np.random.default_rng(0)
    for _ in range(9):
        other = other_patients(patients, patients, generator, views, views)
        assert other is not None
        assert other.tolist() == [2, 3, 0, 1]
    views[3] = "LL"
    assert other_patients(patients, patients, generator, views, views) is None
