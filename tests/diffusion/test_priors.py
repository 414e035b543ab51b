"""The latent prior: fits what it should, and is harmless where it cannot."""

import pytest
import torch
from torch import Tensor

from cxr_lightning.diffusion.prior import RIDGE, LatentPrior
from cxr_lightning.types import FIELDS, Condition

D = 4


def conditions(n: int, seed: int = 0) -> Condition:
    """Fields known with probability 0.7, and then 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.rand(n, len(FIELDS), generator=generator) < 0.7
    value = (torch.rand(n, len(FIELDS), generator=generator) < 0.5).float() * known
    uncertain = ~known & (torch.rand(known.shape, generator=generator) < 0.3)
    return Condition(value, known, uncertain)


def features(condition: Condition) -> Tensor:
    """(1, value in [-1, 1] where known, known, uncertain), written out."""
    rows = []
    for value, known, uncertain in zip(*(part.tolist() for part in condition), strict=True):
        signs = [2 * v - 1 if k else 0.0 for v, k in zip(value, known, strict=True)]
        rows.append([1.0, *signs, *map(float, known), *map(float, uncertain)])
    return torch.tensor(rows, dtype=torch.float64)


def test_unfitted_is_the_standard_normal():
    prior = LatentPrior(latent_dim=D)
    noise = torch.randn(5, D)
    assert torch.equal(prior(noise, conditions(5)), noise)


def test_recovers_mean_and_covariance_of_a_linear_gaussian_model():
    n = 20_000
    generator = torch.Generator().manual_seed(1)
    condition = conditions(n)
    f = features(condition)
    weight = torch.randn(f.shape[1], D, generator=generator, dtype=torch.float64)
    root = torch.randn(D, D, generator=generator, dtype=torch.float64)
    covariance = root @ root.T + torch.eye(D, dtype=torch.float64)
    residual = torch.randn(n, D, generator=generator, dtype=torch.float64)
    z = f @ weight + residual @ torch.linalg.cholesky(covariance).T
    prior = LatentPrior(latent_dim=D, shrinkage=0.0)
    prior.fit(z.float(), condition)

    # Ridge: W_hat = (G + P)^-1 (G W + F' e / n), G = F'F / n, P = RIDGE without the constant. Its
    # expectation is exact below; its standard error is sqrt(diag(H G H)) sigma / sqrt(n), H =
    # (G + P)^-1.
    gram = f.T @ f / n
    penalty = RIDGE * torch.eye(len(gram), dtype=torch.float64)
    penalty[0, 0] = 0.0
    inverse = torch.linalg.inv(gram + penalty)
    expected = inverse @ gram @ weight
    error = (inverse @ gram @ inverse).diagonal().sqrt()[:, None] * covariance.diagonal().sqrt()
    assert ((prior.weight - expected).abs() < 5 * error / n**0.5).all()
    # the residuals have the covariance of e and that of the ridge's bias f (W - E W_hat)
    bias = f @ (weight - expected)
    fitted = (prior.factor @ prior.factor.T).double()
    deviation = fitted - (covariance + bias.T @ bias / n)
    scale = covariance.diagonal().sqrt()
    # entries of a sample covariance have standard errors up to sqrt(2 / n) s_i s_j; the regression
    # takes 35 degrees of freedom of n
    bound = (5 * (2 / n) ** 0.5 + 35 / n) * scale[:, None] * scale
    assert (deviation.abs() < bound).all()


def test_samples_have_the_fitted_mean_and_covariance():
    prior = LatentPrior(latent_dim=D)
    prior.fit(torch.randn(50, D) @ torch.randn(D, D), conditions(50))
    one = conditions(1, seed=5)
    n = 50_000
    many = one.rows(torch.zeros(n, dtype=torch.long))
    noise = torch.randn(n, D, generator=torch.Generator().manual_seed(2))
    z = prior(noise, many).double()
    mean = features(one) @ prior.weight.double()
    covariance = (prior.factor @ prior.factor.T).double()
    scale = covariance.diagonal().sqrt()
    assert ((z.mean(0) - mean).abs() < 5 * scale / n**0.5).all()  # five standard errors
    bound = 5 * (2 / n) ** 0.5 * scale[:, None] * scale
    assert ((z.T.cov() - covariance).abs() < bound).all()


def test_shrinkage_takes_its_share_of_the_covariances_and_leaves_the_variances():
    z, condition = torch.randn(40, D) @ torch.randn(D, D), conditions(40)
    fitted = {}
    for shrinkage in (0.0, 0.25, 1.0):
        prior = LatentPrior(latent_dim=D, shrinkage=shrinkage)
        prior.fit(z, condition)
        fitted[shrinkage] = prior.factor @ prior.factor.T
    diagonal = torch.diag(fitted[0.0].diagonal())
    # float32 Cholesky factors, squared again
    torch.testing.assert_close(fitted[1.0], diagonal, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        fitted[0.25], 0.75 * fitted[0.0] + 0.25 * diagonal, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("n", [2, 3, 10])
def test_fewer_images_than_dimensions_are_no_problem(n):
    prior = LatentPrior(latent_dim=32)
    prior.fit(torch.randn(n, 32, generator=torch.Generator().manual_seed(0)), conditions(n))
    assert prior.factor.isfinite().all()
    assert (prior.factor.diagonal() > 0).all()
    assert prior(torch.randn(2, 32), conditions(2)).isfinite().all()


def test_a_field_that_is_never_known_has_no_weight():
    condition = conditions(100).keep(torch.arange(17)[None] != 3)
    prior = LatentPrior(latent_dim=D)
    prior.fit(torch.randn(100, D), condition)
    assert not prior.weight[[1 + 3, 1 + 17 + 3]].any()


def test_code_fits_the_condition_it_is_asked_for():
    """Latent codes that lie at +2 with the fifth field present and at -2 without."""
    condition = conditions(400)
    sign = features(condition)[:, 1 + 4].float()
    generator = torch.Generator().manual_seed(0)
    z = 2 * sign[:, None] + 0.1 * torch.randn(400, D, generator=generator)
    prior = LatentPrior(latent_dim=D)
    prior.fit(z, condition)
    value, known = torch.zeros(2, 17), torch.zeros(2, 17, dtype=torch.bool)
    value[1, 4], known[:, 4] = 1.0, True
    absent, present = prior(torch.zeros(2, D), Condition.of(value, known))
    # the ridge takes RIDGE / 0.7 = 1.4 %, the finite sample less than 5 %
    torch.testing.assert_close(absent, torch.full((D,), -2.0), rtol=0, atol=0.2)
    torch.testing.assert_close(present, torch.full((D,), 2.0), rtol=0, atol=0.2)


def test_fit_survives_saving(tmp_path):
    prior = LatentPrior(latent_dim=D)
    prior.fit(torch.randn(50, D), conditions(50))
    prior.save_pretrained(tmp_path)
    loaded = LatentPrior.from_pretrained(tmp_path, local_files_only=True)
    noise = torch.randn(3, D)
    assert torch.equal(loaded(noise, conditions(3)), prior(noise, conditions(3)))
