"""KID against other implementations on the same subsets, and its interval."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cxr_lightning.metrics import kid as module
from cxr_lightning.metrics.bootstrap import Sample
from cxr_lightning.metrics.kid import Kernels, discrepancy, kernel, kid, kid_interval


def _features(count: int, dim: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, dim, generator=generator) + shift


def _kernels(real: Tensor, synthetic: Tensor) -> Kernels:
    return Kernels(kernel(real, real), kernel(synthetic, synthetic), kernel(real, synthetic))


def _whole(real: Tensor, synthetic: Tensor) -> float:
    return discrepancy(_kernels(real, synthetic), torch.ones(len(real)), torch.ones(len(synthetic)))


def _loops(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Bińkowski et al. 2018, eq. 4, term by term."""

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return (float(x @ y) / len(x) + 1) ** 3

    def within(side: np.ndarray) -> float:
        n = len(side)
        pairs = [k(side[i], side[j]) for i in range(n) for j in range(n) if i != j]
        return sum(pairs) / (n * (n - 1))

    between = np.mean([k(x, y) for x in real for y in synthetic])
    return within(real) + within(synthetic) - 2 * float(between)


def _truth(dim: int, shift: float, scale: float) -> float:
    """Its value between N(0, 1) and N(shift, scale^2), by the moments up to the third."""

    def moments(mean: np.ndarray, variance: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        eye = variance * np.eye(dim)
        third = np.einsum("i,j,k->ijk", mean, mean, mean)
        for axes in ("i,jk->ijk", "j,ik->ijk", "k,ij->ijk"):
            third += np.einsum(axes, mean, eye)
        return mean, np.outer(mean, mean) + eye, third

    one, other = moments(np.zeros(dim), 1.0), moments(np.full(dim, shift), scale**2)
    factors = (3 / dim, 3 / dim**2, 1 / dim**3)
    return sum(f * np.square(a - b).sum() for f, a, b in zip(factors, one, other, strict=True))


def test_against_loops() -> None:
    real, synthetic = _features(12, 5, 1), _features(9, 5, 2, 0.5)
    expected = _loops(real.double().numpy(), synthetic.double().numpy())
    assert _whole(real, synthetic) == pytest.approx(expected, rel=1e-9)


def test_same_subsets_by_other_implementations() -> None:
    metric_kid = pytest.importorskip("torch_fidelity.metric_kid")
    from torchmetrics.image.kid import poly_mmd

    real, synthetic = _features(90, 16, 1), _features(70, 16, 2, 0.3)
    found = kid(real, synthetic, subsets=5, subset_size=30, seed=3)
    generator, of_fidelity, of_torchmetrics = np.random.default_rng(3), [], []
    for _ in range(5):
        one, other = (
            x[torch.from_numpy(generator.choice(len(x), 30, replace=False))].double()
            for x in (real, synthetic)
        )
        of_fidelity.append(
            metric_kid.kernel_mmd(
                one.numpy(),
                other.numpy(),
                kid_kernel="poly",
                kid_kernel_poly_degree=3,
                kid_kernel_poly_gamma=None,
                kid_kernel_poly_coef0=1,
            )
        )
        of_torchmetrics.append(float(poly_mmd(one, other, degree=3, gamma=None, coef=1.0)))
    for values in (of_fidelity, of_torchmetrics):
        assert found.mean == pytest.approx(np.mean(values), rel=1e-6)
        assert found.sd == pytest.approx(np.std(values), rel=1e-6)
    assert found.subset_size == 30


def test_subsets_differ_because_they_are_half_the_set_at_most() -> None:
    real, synthetic = _features(50, 8, 1), _features(41, 8, 2)
    found = kid(real, synthetic, subsets=20)
    assert found.subset_size == 20
    assert found.sd > 0
    assert kid(real, synthetic, subsets=20) == found
    assert kid(real, synthetic, subsets=20, seed=1) != found
    assert kid(real[:2], synthetic[:3], subsets=3).subset_size == 2
    with pytest.raises(ValueError, match="`synthetic`"):
        kid(real, synthetic[:1])


@pytest.mark.parametrize(("n", "m"), [(20, 20), (15, 40)])
def test_it_is_unbiased_at_any_number_of_images(n: int, m: int) -> None:
    values = [
        _whole(_features(n, 4, 2 * i), _features(m, 4, 2 * i + 1, 0.3, 1.1)) for i in range(1000)
    ]
    error = np.std(values) / len(values) ** 0.5
    assert abs(np.mean(values) - _truth(4, 0.3, 1.1)) < 3 * error
    # The biased estimator, with pairs of an image with itself, would be far off.
    assert error < 0.1 * float(kernel(_features(n, 4, 1), _features(n, 4, 1)).trace()) / n**2


def test_weights_repeat_images_without_pairing_them_with_themselves() -> None:
    real, synthetic = _features(6, 3, 1), _features(5, 3, 2, 0.5)
    weights = (torch.tensor([0, 2, 1, 3, 0, 1]), torch.tensor([1, 1, 0, 2, 1]))
    kernels = _kernels(real, synthetic)

    def within(k: Tensor, rows: list[int]) -> float:
        pairs = [float(k[i, j]) for i in rows for j in rows if i != j]
        return sum(pairs) / len(pairs)

    one, other = ([i for i in range(len(w)) for _ in range(int(w[i]))] for w in weights)
    between = np.mean([float(kernels.between[i, j]) for i in one for j in other])
    expected = within(kernels.real, one) + within(kernels.synthetic, other) - 2 * float(between)
    assert discrepancy(kernels, *weights) == pytest.approx(expected, rel=1e-12)
    assert np.isnan(discrepancy(kernels, torch.eye(6)[0], weights[1]))


def _patients(count: int, images: int, seed: int, shift: float) -> tuple[Tensor, np.ndarray]:
    """Images of one patient share half of their variance."""
    features = _features(count, 4, seed, shift).repeat_interleave(images, 0)
    noise = _features(count * images, 4, seed + 50_000)
    if images > 1:
        features = shift + 0.5**0.5 * (features - shift + noise)
    return features, np.arange(count).repeat(images)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("real_count", "count", "images", "largest"),
    [(150, 150, 1, 2000), (80, 50, 3, 2000), (500, 200, 1, 200)],
    ids=["images", "patients", "subsample"],
)
def test_interval_covers_the_truth(
    monkeypatch: pytest.MonkeyPatch, real_count: int, count: int, images: int, largest: int
) -> None:
    monkeypatch.setattr(module, "INTERVAL_IMAGES", largest)
    truth, covered, trials = _truth(4, 0.5, 1.0), 0, 60
    values, widths = [], []
    for trial in range(trials):
        real, real_patients = _patients(real_count, images, 2 * trial, 0.0)
        synthetic, patients = _patients(count, images, 2 * trial + 1, 0.5)
        value = _whole(real, synthetic)
        sides = (Sample(real, real_patients), Sample(synthetic, patients))
        interval = kid_interval(value, *sides, 100, trial)
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
        values.append(value)
        widths.append(interval[1] - interval[0])
    # .95 less 3 binomial standard errors of .028 and .02 for so few draws and patients.
    assert covered >= 0.84 * trials
    assert np.mean(widths) < 1.3 * 2 * 1.96 * np.std(values)


def test_interval_of_a_subsample_is_as_wide_as_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    real, synthetic = _features(1500, 8, 1), _features(600, 8, 2, 0.4)
    value, widths = _whole(real, synthetic), []
    for largest in (1500, 400):
        monkeypatch.setattr(module, "INTERVAL_IMAGES", largest)
        sides = (Sample(real, np.arange(1500)), Sample(synthetic, np.arange(600)))
        low, high = kid_interval(value, *sides, draws=300, seed=0) or (0.0, 0.0)
        assert low < value < high
        widths.append(high - low)
    # A quantile range of 300 draws is known to about 8 %, the spread of 400 images to 5 %.
    assert widths[1] == pytest.approx(widths[0], rel=0.35)


def test_no_interval_without_draws() -> None:
    sample = Sample(_features(6, 3, 1), np.arange(6))
    assert kid_interval(0.0, sample, sample, draws=0, seed=0) is None
