"""The latent prior: fits what it should, and is harmless where it cannot."""

from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from cxr_lightning.diffusion.priors import LatentPrior, PriorKind, flow
from cxr_lightning.diffusion.priors.gaussian import RIDGE, GaussianPrior
from cxr_lightning.diffusion.priors.mixture import MixturePrior
from cxr_lightning.types import FIELDS, Condition

D = 4
KINDS = get_args(PriorKind)


def conditions(n: int, seed: int = 0) -> Condition:
    """Fields known with probability 0.7, and then 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.rand(n, len(FIELDS), generator=generator) < 0.7
    value = (torch.rand(n, len(FIELDS), generator=generator) < 0.5).float() * known
    uncertain = ~known & (torch.rand(known.shape, generator=generator) < 0.3)
    return Condition.of(value, known, uncertain)


def features(condition: Condition) -> Tensor:
    """(1, value in [-1, 1] where known, known, uncertain), written out."""
    rows = []
    for value, known, uncertain in zip(*(part.tolist() for part in condition[:3]), strict=True):
        signs = [2 * v - 1 if k else 0.0 for v, k in zip(value, known, strict=True)]
        rows.append([1.0, *signs, *map(float, known), *map(float, uncertain)])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_unfitted_is_the_standard_normal(kind):
    prior = LatentPrior(latent_dim=D, kind=kind)
    noise = torch.randn(5, prior.noise_dim)
    assert torch.equal(prior(noise, conditions(5)), noise[:, :D])


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
    prior = GaussianPrior(D, shrinkage=0.0)
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
    prior = GaussianPrior(D)
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
        prior = GaussianPrior(D, shrinkage=shrinkage)
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
    prior = GaussianPrior(32)
    prior.fit(torch.randn(n, 32, generator=torch.Generator().manual_seed(0)), conditions(n))
    assert prior.factor.isfinite().all()
    assert (prior.factor.diagonal() > 0).all()
    assert prior(torch.randn(2, 32), conditions(2)).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_that_no_training_image_knows_leaves_no_trace(monkeypatch, kind):
    """As where "healthy" denies findings that a data set has no labels for."""
    monkeypatch.setattr(flow, "STEPS", 200)
    unseen = (torch.arange(len(FIELDS)) == 3)[None]
    prior = LatentPrior(latent_dim=D, kind=kind)
    prior.fit(torch.randn(300, D), conditions(300).keep(~unseen))
    noise, stated = torch.randn(20, prior.noise_dim), conditions(20, seed=6)
    assert stated.known[:, 3].any()
    assert torch.equal(prior(noise, stated), prior(noise, stated.keep(~unseen)))


def test_code_fits_the_condition_it_is_asked_for():
    """Latent codes that lie at +2 with the fifth field present and at -2 without."""
    condition = conditions(400)
    sign = features(condition)[:, 1 + 4].float()
    generator = torch.Generator().manual_seed(0)
    z = 2 * sign[:, None] + 0.1 * torch.randn(400, D, generator=generator)
    prior = GaussianPrior(D)
    prior.fit(z, condition)
    value, known = torch.zeros(2, 17), torch.zeros(2, 17, dtype=torch.bool)
    value[1, 4], known[:, 4] = 1.0, True
    absent, present = prior(torch.zeros(2, D), Condition.of(value, known))
    # the ridge takes RIDGE / 0.7 = 1.4 %, the finite sample less than 5 %
    torch.testing.assert_close(absent, torch.full((D,), -2.0), rtol=0, atol=0.2)
    torch.testing.assert_close(present, torch.full((D,), 2.0), rtol=0, atol=0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_fit_survives_saving(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(flow, "STEPS", 200)
    prior = LatentPrior(latent_dim=D, kind=kind, components=3, width=16)
    prior.fit(torch.randn(50, D), conditions(50))
    prior.save_pretrained(tmp_path)
    loaded = LatentPrior.from_pretrained(tmp_path, local_files_only=True)
    noise = torch.randn(3, prior.noise_dim)
    assert loaded.fitted
    assert torch.equal(loaded(noise, conditions(3)), prior(noise, conditions(3)))
    assert torch.equal(prior(noise, conditions(3)), noise[:, :D]) == (kind == "normal")


def one_field(n: int) -> Condition:
    """The fifth field known in all, present in every second."""
    value, known = torch.zeros(n, len(FIELDS)), torch.zeros(n, len(FIELDS), dtype=torch.bool)
    value[::2, 4], known[:, 4] = 1.0, True
    return Condition.of(value, known)


def sided(n: int, seed: int = 0) -> Tensor:
    """Codes whose first number is 0 without the finding, and +2 or -2 with it."""
    generator = torch.Generator().manual_seed(seed)
    z = 0.3 * torch.randn(n, D, generator=generator)
    z[::2, 0] += 4.0 * (torch.rand(len(z[::2]), generator=generator) < 0.5) - 2.0
    return z


@pytest.mark.parametrize("kind", ["mixture", "flow"])
def test_a_finding_may_be_on_either_side(monkeypatch, kind):
    """What the Gaussian cannot: it puts the codes of both sides in the middle."""
    monkeypatch.setattr(flow, "STEPS", 1200)
    n = 2000
    prior = LatentPrior(latent_dim=D, kind=kind, components=8, width=64)
    prior.fit(sided(n), one_field(n))
    noise = torch.randn(n, prior.noise_dim, generator=torch.Generator().manual_seed(1))
    first = prior(noise, one_field(n))[:, 0]
    present, absent = first[::2], first[1::2]
    assert (present.abs() > 1.0).float().mean() > 0.93
    assert 0.4 < (present > 0).float().mean() < 0.6
    assert (absent.abs() < 1.0).float().mean() > 0.93
    gaussian = LatentPrior(latent_dim=D)
    gaussian.fit(sided(n), one_field(n))
    assert (gaussian(noise[:, :D], one_field(n))[::2, 0].abs() > 1.0).float().mean() < 0.7


def test_images_limit_the_components():
    """Of 16, for 5 images of each component and dimension."""
    for n, dimension, most in ((100, 32, 1), (2000, D, 16), (200, D, 10)):
        assert MixturePrior(dimension, 16)._most(n) == most
    z, condition = torch.randn(100, 32), conditions(100)
    mixture, gaussian = MixturePrior(32), GaussianPrior(32)
    mixture.fit(z, condition)
    gaussian.fit(z, condition)
    noise = torch.randn(5, 33)
    # One component, around the mean of the residuals, which the regression makes 0.
    torch.testing.assert_close(
        mixture(noise, condition.rows(slice(5))),
        gaussian(noise[:, :32], condition.rows(slice(5))),
        rtol=1e-3,
        atol=1e-3,
    )


def test_held_out_codes_decide_about_the_components():
    """Two clusters far apart, and room for 16."""
    z = torch.randn(3000, D, generator=torch.Generator().manual_seed(0))
    z[:1500] += 20.0
    prior = MixturePrior(D, 16)
    prior.fit(z, Condition.unknown(3000))
    shares = prior.gate[0].softmax(dim=0)
    assert 2 <= int(prior.gate[0].isfinite().sum()) <= 4
    noise = torch.randn(4000, D + 1, generator=torch.Generator().manual_seed(1))
    far = prior(noise, Condition.unknown(4000))[:, 0] > 10.0
    # five binomial standard errors of .5
    assert float(far.float().mean()) == pytest.approx(0.5, abs=5 * 0.5 / 4000**0.5)
    assert float(shares.sum()) == pytest.approx(1.0)


def test_a_flow_follows_the_text(monkeypatch):
    """Codes lie left or right of 0 as only the text says; without text on either side."""
    monkeypatch.setattr(flow, "STEPS", 1000)
    n, generator = 600, torch.Generator().manual_seed(0)
    side = torch.randint(2, (n,), generator=generator)
    text = torch.eye(2)[side]
    z = torch.randn(n, D, generator=generator)
    z[:, 0] = torch.where(side == 1, 3.0, -3.0) + 0.5 * z[:, 0]
    prior = LatentPrior(latent_dim=D, kind="flow", width=32, text_dim=2)
    nothing = Condition.unknown(n)
    prior.fit(z, nothing._replace(text=text))
    noise = torch.randn(200, D, generator=generator)
    for row, sign in enumerate((-1.0, 1.0)):
        asked = Condition.unknown(200)._replace(text=torch.eye(2)[row].expand(200, 2))
        assert float((prior(noise, asked)[:, 0] * sign > 0).float().mean()) > 0.95
    unsaid = float((prior(noise, Condition.unknown(200))[:, 0] > 0).float().mean())
    assert 0.25 < unsaid < 0.75


def test_a_flow_of_the_same_codes_is_the_same(monkeypatch):
    monkeypatch.setattr(flow, "STEPS", 200)
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        prior = flow.FlowPrior(D, width=16)
        torch.manual_seed(5)
        prior.load_state_dict(flow.FlowPrior(D, width=16).state_dict())
        torch.manual_seed(seed)
        prior.fit(sided(300), one_field(300))
        made.append(prior(torch.ones(3, D), one_field(3)))
        assert not any(p.requires_grad for p in prior.parameters())
    assert torch.equal(*made)


@pytest.mark.parametrize("n", [2, 3, 10])
@pytest.mark.parametrize("kind", ["mixture", "flow"])
def test_few_images_are_no_problem(monkeypatch, kind, n):
    monkeypatch.setattr(flow, "STEPS", 200)
    prior = LatentPrior(latent_dim=32, kind=kind, width=16)
    prior.fit(torch.randn(n, 32, generator=torch.Generator().manual_seed(0)), conditions(n))
    assert prior(torch.randn(2, prior.noise_dim), conditions(2)).isfinite().all()


def test_a_component_that_is_no_images_first_choice_is_never_drawn():
    """Components 0 and 2 of 3 are used: the last one must not become the unused one."""
    prior = MixturePrior(D, 3)
    prior.means.copy_(torch.tensor([[0.0], [100.0], [-100.0]]).expand(3, D))
    f = np.zeros((4, len(prior.gate)))
    prior.gate.copy_(prior._gate(f, np.array([0, 2, 0, 2]), 3))
    first = prior(torch.randn(500, D + 1), Condition.unknown(500))[:, 0]
    assert (first < 50.0).all()
    assert 0.3 < float((first < -50.0).float().mean()) < 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_one_is_the_condition_and_zero_is_none(monkeypatch, kind):
    monkeypatch.setattr(flow, "STEPS", 30)
    prior, stated = LatentPrior(latent_dim=D, kind=kind), conditions(6, seed=5)
    prior.fit(torch.randn(200, D, generator=torch.Generator().manual_seed(2)), conditions(200))
    noise = torch.randn(6, prior.noise_dim, generator=torch.Generator().manual_seed(3))
    assert torch.equal(prior(noise, stated, 1.0), prior(noise, stated))
    torch.testing.assert_close(prior(noise, stated, 0.0), prior(noise, Condition.unknown(6)))


def test_guidance_of_a_gaussian_is_the_product_of_the_two_densities():
    """log N(m_g, S) = g log N(m_c, S) + (1 - g) log N(m_0, S) + a constant."""
    prior, stated, g = GaussianPrior(D), conditions(1, seed=5), 2.5
    prior.fit(torch.randn(200, D, generator=torch.Generator().manual_seed(2)), conditions(200))
    nothing = torch.zeros(1, D)
    means = [
        prior(nothing, c, w)[0]
        for c, w in ((stated, g), (stated, 1.0), (Condition.unknown(1), 1.0))
    ]
    guided, conditional, null = (
        torch.distributions.MultivariateNormal(m, scale_tril=prior.factor) for m in means
    )
    z = torch.randn(50, D, generator=torch.Generator().manual_seed(3))
    product = g * conditional.log_prob(z) + (1 - g) * null.log_prob(z)
    constant = guided.log_prob(z) - product
    torch.testing.assert_close(constant, constant.mean().expand(50), rtol=0, atol=1e-3)


def test_guidance_of_a_flow_is_that_of_its_velocity(monkeypatch):
    """Heun's method by hand, in the flow's own 25 steps."""
    monkeypatch.setattr(flow, "STEPS", 30)
    prior, stated, g = flow.FlowPrior(D), conditions(3, seed=5), 3.0
    prior.fit(torch.randn(200, D, generator=torch.Generator().manual_seed(2)), conditions(200))
    noise = torch.randn(3, D, generator=torch.Generator().manual_seed(3))

    def guided(z: Tensor, s: float) -> Tensor:
        time = torch.full((3,), s)
        null = prior.velocity(z, time, Condition.unknown(3))
        return null + g * (prior.velocity(z, time, stated) - null)

    z = noise
    with torch.no_grad():
        for i in range(25):
            first = guided(z, i / 25)
            z = z + (first + guided(z + first / 25, (i + 1) / 25)) / 50
        expected = prior.mean + prior.scale * z
    torch.testing.assert_close(prior(noise, stated, g), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["gaussian", "mixture", "flow"])
def test_guidance_makes_codes_plainer(monkeypatch, kind):
    """Two overlapping clusters: the guided codes of one are on its side more often."""
    monkeypatch.setattr(flow, "STEPS", 400)
    n = 2_000
    generator = torch.Generator().manual_seed(4)
    ill = torch.rand(n, generator=generator) < 0.5
    z = torch.randn(n, D, generator=generator) + torch.where(ill, 0.7, -0.7)[:, None] * (
        torch.arange(D) == 0
    )
    value = torch.zeros(n, len(FIELDS))
    value[:, 7] = ill.float()
    prior = LatentPrior(latent_dim=D, kind=kind)
    prior.fit(z, Condition.of(value, torch.arange(len(FIELDS)).expand(n, -1) == 7))
    known = torch.arange(len(FIELDS)).expand(500, -1) == 7
    stated = Condition.of(known.float(), known)
    noise = torch.randn(len(stated.value), prior.noise_dim, generator=generator)
    shares = [float((prior(noise, stated, g)[:, 0] > 0).float().mean()) for g in (0.0, 1.0, 2.0)]
    # P(N(0.7, 1) > 0) = 0.76, with the null's mean at 0; a share of 500 has an error of 0.02
    assert shares[0] == pytest.approx(0.5, abs=0.08)
    assert shares[1] == pytest.approx(0.76, abs=0.08)
    assert shares[2] > shares[1] + 0.06
