"""Pairs of different groups, and their similarity against slow computations."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d
from scipy.spatial.distance import cosine
from torch import Tensor

from cxr_lightning.metrics import diversity
from cxr_lightning.metrics.diversity import (
    BETAS,
    MIN_SIZE,
    SMALLEST,
    PairwiseDiversity,
    different_pairs,
    ms_ssim,
    pair_distances,
    scales,
)


def _images(count: int, height: int, width: int, seed: int) -> Tensor:
    """Smooth images with some noise, so that no term vanishes."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(count, height, width))
    smooth = gaussian_filter(noise, (0, 4, 4)) * 400 + 20 * noise + 128
    return torch.from_numpy(smooth.clip(0, 255).astype(np.uint8)[:, None])


def _ssim_maps(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SSIM and its contrast-structure term at each pixel, mirrored at the border.

    Wang et al. 2004, eq. 12 and 13, with K1 = .01, K2 = .03 and images in [0, 1].
    """
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2

    def local(image: np.ndarray) -> np.ndarray:
        return convolve2d(np.pad(image, 5, mode="reflect"), window, mode="valid")

    mx, my = local(x), local(y)
    vx, vy, vxy = local(x * x) - mx**2, local(y * y) - my**2, local(x * y) - mx * my
    contrast = (2 * vxy + 0.03**2) / (vx + vy + 0.03**2)
    return contrast * (2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2), contrast


def _slow_ms_ssim(x: np.ndarray, y: np.ndarray, levels: int) -> float:
    """Wang et al. 2003, eq. 7."""
    betas, product = np.array(BETAS[:levels]) / sum(BETAS[:levels]), 1.0
    for level in range(levels):
        similarity, contrast = _ssim_maps(x, y)
        last = level == levels - 1
        term = similarity.mean() if last else contrast[5:-5, 5:-5].mean()
        product *= max(term, 0.0) ** betas[level]
        height, width = x.shape[0] // 2 * 2, x.shape[1] // 2 * 2
        x, y = (
            (z[0:height:2, 0:width:2] + z[1:height:2, 0:width:2])
            + (z[0:height:2, 1:width:2] + z[1:height:2, 1:width:2])
            for z in (x / 4, y / 4)
        )
    return float(product)


@pytest.mark.parametrize(
    ("height", "width", "levels"),
    [(16, 16, 1), (32, 32, 2), (64, 64, 3), (50, 45, 3), (128, 101, 4), (176, 180, 5)],
)
def test_ms_ssim_against_a_slow_computation(height: int, width: int, levels: int) -> None:
    one, other = _images(3, height, width, 1), _images(3, height, width, 2)
    other[1] = one[1] // 2 + other[1] // 2  # somewhat alike
    other[2] = 255 - one[2]  # contrasts opposed
    assert scales(min(height, width)) == levels
    expected = [
        _slow_ms_ssim(x[0].double().numpy() / 255, y[0].double().numpy() / 255, levels)
        for x, y in zip(one, other, strict=True)
    ]
    assert ms_ssim(one, other).tolist() == pytest.approx(expected, abs=1e-4)
    assert 0.2 < expected[1] < 0.99
    assert expected[2] == 0.0


def test_one_scale_against_skimage() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    one, other = _images(4, 20, 17, 1), _images(4, 20, 17, 2) // 2
    other += one // 2
    expected = [
        metrics.structural_similarity(
            # It leaves 5 pixels at the border out.
            *(np.pad(z[0].numpy() / 255.0, 5, mode="reflect") for z in pair),
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for pair in zip(one, other, strict=True)
    ]
    assert min(expected) > 0.1
    assert ms_ssim(one, other).tolist() == pytest.approx(expected, abs=1e-4)


def test_ms_ssim_of_equal_images_order_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = _images(5, 32, 32, 1), _images(5, 32, 32, 2) // 2 + _images(5, 32, 32, 1) // 2
    assert ms_ssim(one, one).tolist() == pytest.approx([1.0] * 5)
    whole = ms_ssim(one, other)
    assert torch.allclose(ms_ssim(other, one), whole, atol=1e-6)
    monkeypatch.setattr(diversity, "PIXEL_BLOCK", 2 * 32 * 32)
    assert torch.allclose(ms_ssim(one, other), whole, atol=1e-6)
    monkeypatch.setattr(diversity, "PIXEL_BLOCK", 1)
    assert torch.allclose(ms_ssim(one, other), whole, atol=1e-6)
    black, white = (torch.full((1, 1, 32, 32), v, dtype=torch.uint8) for v in (0, 255))
    assert float(ms_ssim(black, white)) < 0.1


def test_scales_and_the_smallest_size() -> None:
    assert [scales(size) for size in (32, 64, 128, 256, 1024)] == [2, 3, 4, 5, 5]
    for levels, size in enumerate(SMALLEST, 1):
        assert scales(size) == levels
        assert len(ms_ssim(*(_images(1, size, size + 3, seed) for seed in (1, 2)))) == 1
        if size > MIN_SIZE:
            assert scales(size - 1) == levels - 1
    with pytest.raises(ValueError, match="`size`"):
        scales(MIN_SIZE - 1)
    with pytest.raises(ValueError, match="`size`"):
        ms_ssim(*[_images(1, 40, MIN_SIZE - 1, 1)] * 2)


def _all_pairs(groups: np.ndarray) -> set[frozenset[int]]:
    n = len(groups)
    return {frozenset((i, j)) for i in range(n) for j in range(i) if groups[i] != groups[j]}


def test_pairs_are_of_different_groups_and_not_repeated() -> None:
    groups = np.random.default_rng(0).integers(0, 40, 300)
    pairs = different_pairs(groups, 2000, np.random.default_rng(1))
    assert pairs.shape == (2, 2000)
    assert np.all(groups[pairs[0]] != groups[pairs[1]])
    assert len({frozenset(pair) for pair in pairs.T.tolist()}) == 2000
    assert np.array_equal(pairs, different_pairs(groups, 2000, np.random.default_rng(1)))
    assert not np.array_equal(pairs, different_pairs(groups, 2000, np.random.default_rng(2)))


def test_all_pairs_where_there_are_no_more() -> None:
    groups = np.array([7, 3, 3, 9, 7, 3])
    pairs = different_pairs(groups, 1000, np.random.default_rng(0))
    assert {frozenset(pair) for pair in pairs.T.tolist()} == _all_pairs(groups)
    assert pairs.shape[1] == len(_all_pairs(groups)) == 11
    for alone in (np.array([], dtype=np.int64), np.array([4]), np.array([4, 4, 4])):
        assert different_pairs(alone, 5, np.random.default_rng(0)).shape == (2, 0)


def test_all_pairs_are_equally_likely() -> None:
    groups = np.array([7, 3, 3, 9, 7, 3])
    generator = np.random.default_rng(0)
    counts = dict.fromkeys(_all_pairs(groups), 0)
    for _ in range(2200):
        counts[frozenset(different_pairs(groups, 1, generator)[:, 0].tolist())] += 1
    # 200 each; the largest of 11 deviations of sd sqrt(200 * 10 / 11) = 13.5.
    assert max(abs(count - 200) for count in counts.values()) < 4 * 13.5


def test_pairs_of_very_many_images() -> None:
    groups = np.arange(250_000) // 3
    pairs = different_pairs(groups, 1000, np.random.default_rng(0))
    assert np.all(groups[pairs[0]] != groups[pairs[1]])
    assert pairs.shape == (2, 1000)
    assert pairs.min() >= 0
    assert np.abs(pairs.mean() - 125_000) < 4 * 250_000 / 12**0.5 / 2000**0.5


def test_pair_distances_against_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diversity, "PAIR_BLOCK", 7)
    features = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    pairs = different_pairs(np.arange(30) // 2, 40, np.random.default_rng(0))
    rows = features.double().numpy()
    expected = [cosine(rows[i], rows[j]) for i, j in pairs.T]
    assert pair_distances(features, pairs).tolist() == pytest.approx(expected)
    assert len(pair_distances(features, pairs[:, :0])) == 0


def test_pairwise_diversity_equals_a_loop_over_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(7, 5, generator=generator) * torch.arange(1.0, 8.0)[:, None]
    member = torch.rand(7, 3, generator=generator) < 0.6
    member[:, 2] = torch.arange(7) == 3  # one image has no pair
    metric = PairwiseDiversity(5, ["a", "b", "c"])
    for rows in (slice(0, 3), slice(3, 7)):
        metric.update(embedding[rows], member[rows])
    found = metric.compute()
    assert set(found) == {"a", "b"}
    for column, group in enumerate("ab"):
        rows = torch.nonzero(member[:, column])[:, 0].tolist()
        pairs = [
            1 - float(torch.nn.functional.cosine_similarity(embedding[i], embedding[j], dim=0))
            for i in rows
            for j in rows
            if i < j
        ]
        assert float(found[group]) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    metric.reset()
    metric.update(embedding[:1].repeat(4, 1), torch.ones(4, 3, dtype=torch.bool))
    assert float(metric.compute()["a"]) == pytest.approx(0.0, abs=1e-6)
