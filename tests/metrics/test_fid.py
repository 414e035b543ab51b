"""Fréchet distance against independent computations, and its interval."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from cxr_lightning.metrics import fid
from cxr_lightning.metrics.bootstrap import Sample
from cxr_lightning.metrics.extractors import build_extractor
from cxr_lightning.metrics.fid import (
    frechet,
    frechet_distance,
    frechet_interval,
    moments,
)


class _Given(nn.Module):
    """Stands for the extractor where features are given instead of images."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_of_features(real: Tensor, synthetic: Tensor) -> float:
    """Fréchet distance of two feature sets, by torchmetrics in float64."""
    metric = FrechetInceptionDistance(feature=_Given(real.shape[1]))
    metric.update(real.double(), real=True)
    metric.update(synthetic.double(), real=False)
    return float(metric.compute())


def _features(count: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    """Correlated Gaussian features."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(99)) / dim**0.5
    return torch.randn(count, dim, generator=generator) @ mixing + shift


def _reference(one: Tensor, other: Tensor) -> float:
    """Heusel et al. 2017, eq. (6), with scipy's matrix square root."""
    x, y = one.double().numpy(), other.double().numpy()
    c1, c2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(c1 @ c2)
    difference = x.mean(0) - y.mean(0)
    return float(difference @ difference + np.trace(c1 + c2 - 2 * np.real(root)))


def test_metric_against_scipy_and_torch_fidelity() -> None:
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    extractor = build_extractor("fixed")
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (300, 1, 32, 32), generator=generator, dtype=torch.uint8)
    synthetic = torch.randint(0, 200, (250, 1, 32, 32), generator=generator, dtype=torch.uint8)
    metric = frechet_distance(extractor)
    for batch in real.split(64):
        metric.update(batch, real=True)
    for batch in synthetic.split(64):
        metric.update(batch, real=False)
    value = float(metric.compute())
    assert value == pytest.approx(_reference(extractor(real), extractor(synthetic)), rel=1e-4)
    statistics = [
        metric_fid.fid_features_to_statistics(extractor(x).double()) for x in (real, synthetic)
    ]
    fidelity = metric_fid.fid_statistics_to_metric(*statistics, False)
    assert value == pytest.approx(fidelity["frechet_inception_distance"], rel=1e-4)
    assert frechet_of_features(extractor(real), extractor(synthetic)) == pytest.approx(value)
    without_images = frechet_distance(extractor)  # a process that had no share, after the sync
    without_images.load_state_dict(metric.state_dict())
    for name in metric._defaults:
        setattr(without_images, name, getattr(metric, name))
    without_images._update_count = 1
    assert float(without_images.compute()) == value


@pytest.mark.parametrize(("n", "m", "dim"), [(300, 200, 16), (300, 9, 16), (10, 12, 40), (2, 2, 5)])
def test_closed_form_against_torchmetrics(n: int, m: int, dim: int) -> None:
    """Also for fewer images than features, where the product of the covariances is singular."""
    one, other = _features(n, dim, 1), _features(m, dim, 2, shift=0.3)
    value = frechet(moments(one), moments(other))
    # 1e-4: eigenvalues of a singular product carry sqrt(eps) each.
    assert value == pytest.approx(frechet_of_features(one, other), rel=1e-4)


@pytest.mark.parametrize(("n", "m", "dim"), [(400, 300, 32), (400, 20, 32), (30, 25, 64)])
def test_closed_form_against_scipy_and_torch_fidelity(n: int, m: int, dim: int) -> None:
    """More images than features on both sides, on one, on none; far from 0, with copies."""
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    one, other = _features(n, dim, 1, shift=50.0), _features(m, dim, 2, shift=50.2)
    other[1::3] = other[0]
    value = frechet(moments(one), moments(other))
    assert value == pytest.approx(_reference(one, other), rel=1e-4)
    statistics = [metric_fid.fid_features_to_statistics(x.double()) for x in (one, other)]
    fidelity = metric_fid.fid_statistics_to_metric(*statistics, False)
    assert value == pytest.approx(fidelity["frechet_inception_distance"], rel=1e-4)


@pytest.mark.parametrize(("n", "dim"), [(300, 20), (15, 20)])
@pytest.mark.parametrize("copies", [False, True])
def test_moments_in_blocks(monkeypatch: pytest.MonkeyPatch, n: int, dim: int, copies: bool) -> None:
    """Against numpy; copies of 7 images make the covariance singular."""
    monkeypatch.setattr(fid, "BLOCK", 16)
    features = _features(n, dim, 1, shift=1e3)
    if copies:
        features = features[torch.arange(n) % 7]
    weights = torch.from_numpy(np.random.default_rng(0).integers(0, 4, n))
    for weight in (None, weights):
        found = moments(features, weight)
        rows = features.double().numpy()
        repeats = None if weight is None else weight.numpy()
        assert np.allclose(found.mean, np.average(rows, axis=0, weights=repeats), rtol=1e-12)
        covariance = np.cov(rows, rowvar=False, fweights=repeats)
        scale = np.abs(covariance).max()
        assert np.allclose(found.factor.T @ found.factor, covariance, atol=1e-11 * scale)
        assert len(found.factor) <= dim


def test_same_set_gives_zero_and_order_does_not_matter() -> None:
    one, other = _features(80, 12, 1), _features(60, 12, 2, shift=1.0)
    assert frechet(moments(one), moments(one)) == pytest.approx(0.0, abs=1e-6)
    assert frechet_of_features(one, one) == pytest.approx(0.0, abs=1e-6)
    assert frechet(moments(one), moments(other)) == pytest.approx(
        frechet(moments(other), moments(one))
    )


def test_known_distance() -> None:
    """A shift by (3, 4) of one set: 25. Scaling by 2: sum of the variances (1 - 2)^2."""
    one = _features(100, 2, 1)
    assert frechet(moments(one), moments(one + torch.tensor([3.0, 4.0]))) == pytest.approx(
        25, abs=1e-5
    )
    centred = one - one.mean(0)
    variance = float(centred.double().var(0).sum())
    assert frechet(moments(centred), moments(2 * centred)) == pytest.approx(variance, rel=1e-6)


def test_weights_repeat_images() -> None:
    features, weights = _features(6, 3, 1), torch.tensor([0, 2, 1, 3, 0, 1])
    repeated = features.repeat_interleave(weights, dim=0)
    one, other = moments(features, weights), moments(repeated)
    assert torch.allclose(one.mean, other.mean)
    assert torch.allclose(one.factor.T @ one.factor, other.factor.T @ other.factor)


def test_interval_holds_the_value_and_narrows() -> None:
    widths = []
    for n in (50, 400):
        real, synthetic = _features(n, 8, 1), _features(n, 8, 2, shift=0.5)
        value = frechet_of_features(real, synthetic)
        sides = (Sample(real, np.arange(n)), Sample(synthetic, np.arange(n)))
        low, high = frechet_interval(value, *sides, draws=100, seed=0) or (0.0, 0.0)
        assert low < value < high
        widths.append(high - low)
    # A mean's error falls with sqrt(n): 1 / sqrt(8) = .35.
    assert widths[1] < 0.6 * widths[0]


def test_no_interval_without_draws() -> None:
    sample = Sample(_features(5, 3, 1), np.arange(5))
    assert frechet_interval(0.0, sample, sample, draws=0, seed=0) is None


@pytest.mark.slow
def test_interval_covers_the_expected_value_at_this_n() -> None:
    """What it promises: the mean of the Fréchet distance over sets of this size."""
    n, dim, trials = 100, 8, 40
    sets = [(_features(n, dim, 2 * i), _features(n, dim, 2 * i + 1, 0.3)) for i in range(trials)]
    values = [frechet_of_features(*pair) for pair in sets]
    expected, patients, covered = float(np.mean(values)), np.arange(n), 0
    for i, (pair, value) in enumerate(zip(sets, values, strict=True)):
        sides = [Sample(side, patients) for side in pair]
        interval = frechet_interval(value, *sides, draws=100, seed=i)
        assert interval is not None
        covered += interval[0] <= expected <= interval[1]
    assert covered >= 0.84 * trials  # .95 less 3 binomial standard errors of .034


def test_interval_of_many_images_is_that_of_a_subsample(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 of 3,000 images give the spread that all 3,000 give."""
    real, synthetic = _features(3000, 8, 1), _features(1500, 8, 2, shift=0.5)
    value, widths = frechet(moments(real), moments(synthetic)), []
    for largest in (3000, 400):
        monkeypatch.setattr(fid, "INTERVAL_IMAGES", largest)
        sides = (Sample(real, np.arange(3000)), Sample(synthetic, np.arange(1500)))
        low, high = frechet_interval(value, *sides, draws=200, seed=0) or (0.0, 0.0)
        assert low < value < high
        widths.append(high - low)
    # A quantile range of 200 draws is known to about 10 %, the spread of 400 images to 4 %.
    assert widths[1] == pytest.approx(widths[0], rel=0.35)
