"""From one image to another: the curves, and what the ends and the middle are."""

from itertools import product
from typing import Any, get_args

import numpy as np
import pytest
import torch
from scipy.spatial import geometric_slerp

from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.interpolation import (
    NoiseBetween,
    drawn_end,
    given_end,
    interpolate,
    lerp,
    slerp,
)
from cxr_lightning.diffusion.priors import LatentPrior
from cxr_lightning.diffusion.random import ImageNoise
from cxr_lightning.diffusion.samplers import SamplerName, Sampling
from cxr_lightning.errors import UserError
from cxr_lightning.types import FIELDS, Condition

LATENT = 6
ONE = torch.ones(1)
FORMS = ["form1", "form2", "uncond"]
CURVES = {"spherical": slerp, "linear": lerp}


@pytest.fixture(scope="module")
def build(make_autoencoder, make_denoiser):
    """Makes random generators of 32 px."""

    def make(form: str = "form1", **changes: Any) -> Generator:
        denoiser = make_denoiser(form=form, **changes)
        if form == "uncond":
            return Generator(denoiser).eval()
        prior = LatentPrior(latent_dim=LATENT)
        prior.fit(torch.randn(30, LATENT, generator=torch.Generator().manual_seed(0)), asked(30, 4))
        return Generator(denoiser, make_autoencoder(), prior).eval()

    return make


def asked(count: int, seed: int) -> Condition:
    generator = torch.Generator().manual_seed(seed)
    known = torch.rand(count, len(FIELDS), generator=generator) < 0.5
    return Condition.of(torch.rand(count, len(FIELDS), generator=generator) * known, known)


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def original(count: int) -> torch.Tensor:
    return torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1


def test_slerp_of_unit_vectors_is_that_of_scipy():
    a, b = (torch.nn.functional.normalize(normals(5, 7, seed=s).double()) for s in (1, 2))
    for t in (0.0, 0.2, 0.5, 0.9, 1.0):
        ours = slerp(a, b, torch.full((5,), t, dtype=torch.float64))
        for i in range(5):
            np.testing.assert_allclose(ours[i], geometric_slerp(a[i], b[i], t), atol=1e-12)


def test_images_are_vectors_of_their_own_and_have_their_own_t():
    a, b, t = normals(3, 1, 4, 5), normals(3, 1, 4, 5, seed=1), torch.tensor([0.1, 0.5, 0.8])
    together = slerp(a, b, t)
    for i in range(3):
        flat = slerp(a[i].view(1, -1), b[i].view(1, -1), t[i : i + 1])
        assert torch.equal(together[i].view(-1), flat[0])


@pytest.mark.parametrize("curve", CURVES)
def test_both_ends_are_the_vectors_bit_for_bit(curve):
    a, b = 3.0 * normals(50, 40), 0.2 * normals(50, 40, seed=1)
    assert torch.equal(CURVES[curve](a, b, torch.zeros(50)), a)
    assert torch.equal(CURVES[curve](a, b, torch.ones(50)), b)


@pytest.mark.parametrize("curve", CURVES)
def test_the_way_back_is_the_way(curve):
    a, b, t = normals(20, 30), normals(20, 30, seed=1), torch.linspace(0, 1, 20)
    go = CURVES[curve]
    torch.testing.assert_close(go(a, b, t), go(b, a, 1 - t), rtol=0, atol=1e-6)


def test_linear_is_the_weighted_mean():
    a, b, t = normals(4, 3), normals(4, 3, seed=1), torch.tensor([0.0, 0.3, 0.7, 1.0])
    torch.testing.assert_close(lerp(a, b, t), (1 - t)[:, None] * a + t[:, None] * b)


@pytest.mark.parametrize("t", [0.1, 0.3, 0.5, 0.75])
def test_noise_on_the_great_circle_is_standard_normal_and_a_linear_mix_is_not(t):
    n, d = 400, 1024
    a, b, share = normals(n, d), normals(n, d, seed=1), torch.full((n,), t)
    mixed = slerp(a, b, share)
    # five standard errors of mean and variance
    assert abs(mixed.mean()) < 5 / (n * d) ** 0.5
    assert abs(mixed.var() - 1) < 5 * (2 / (n * d)) ** 0.5
    assert torch.isclose(lerp(a, b, share).var(), torch.tensor((1 - t) ** 2 + t**2), atol=0.01)


def test_vectors_of_one_length_keep_it():
    a, b = (5.0 * torch.nn.functional.normalize(normals(9, 30, seed=s)) for s in (1, 2))
    lengths = slerp(a, b, torch.linspace(0, 1, 9)).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((9,), 5.0))


@pytest.mark.parametrize("other", [1.0, 2.0, -1.0, 0.0])
def test_vectors_without_a_great_circle_go_straight(other):
    a, t = normals(5, 8), torch.linspace(0, 1, 5)
    b = other * a
    if other:
        torch.testing.assert_close(slerp(a, b, t), lerp(a, b, t), rtol=0, atol=1e-6)
    assert slerp(a, b, t).isfinite().all()
    assert torch.equal(slerp(a, a, t), a)
    assert slerp(0 * a, 0 * a, t).eq(0).all()


def test_noise_between_is_interpolated_draw_by_draw():
    index, other, t = torch.tensor([0, 5]), torch.tensor([3, 7]), torch.tensor([0.25, 0.5])
    between = NoiseBetween(ImageNoise(1, index), ImageNoise(1, other), t)
    a, b = ImageNoise(1, index), ImageNoise(1, other)
    for shape in ((1, 4, 4), (3,), (1, 4, 4)):
        assert torch.equal(between.normal(*shape), slerp(a.normal(*shape), b.normal(*shape), t))


def test_shared_noise_stays_what_it_is():
    index, t = torch.arange(4), torch.linspace(0, 1, 4)
    between = NoiseBetween(ImageNoise(1, index), ImageNoise(1, index), t)
    assert torch.equal(between.normal(1, 8, 8), ImageNoise(1, index).normal(1, 8, 8))


STOCHASTIC = [(s, 0.0) for s in get_args(SamplerName)] + [("ddim", 0.7)]


@pytest.mark.parametrize(("form", "sampler"), list(product(FORMS, STOCHASTIC)))
def test_the_ends_are_the_images_of_generate_bit_for_bit(build, form, sampler):
    """Also the noise of the steps, and the latent code where the noise is that of its image."""
    generator = build(form)
    sampling = Sampling(sampler[0], steps=3, eta=sampler[1], guidance=1.5)
    left, right = asked(2, seed=1), asked(2, seed=2)
    i, j = torch.tensor([0, 4]), torch.tensor([9, 2])
    plain = [generator.sample(c, n, sampling, seed=3) for c, n in ((left, i), (right, j))]
    for t in (0, 1):
        ends = [drawn_end(generator, c, n, n, 3, 1.5) for c, n in ((left, i), (right, j))]
        made = interpolate(generator, *ends, torch.full((2,), float(t)), sampling)
        assert torch.equal(made, plain[t])


@pytest.mark.parametrize("form", ["form1", "form2"])
def test_the_ends_of_given_images_are_their_reconstructions(build, form):
    generator, (a, b) = build(form), original(2).split(1)
    sampling, index = Sampling(steps=3), torch.tensor([6])
    for t, image in ((0.0, a), (1.0, b)):
        ends = (given_end(generator, x, asked(1, 1), index, seed=2) for x in (a, b))
        made = interpolate(generator, *ends, t * ONE, sampling)
        assert torch.equal(made, generator.reconstruct(image, asked(1, 1), index, sampling, seed=2))


@pytest.mark.parametrize("curve", CURVES)
def test_between_two_codes_the_noise_is_shared(build, curve):
    generator, condition, t = build(), asked(1, 1), torch.tensor([0.3])
    first, second = torch.tensor([1]), torch.tensor([2])
    sampling = Sampling("ddpm", steps=3)
    ends = (drawn_end(generator, condition, latent, first) for latent in (first, second))
    made = interpolate(generator, *ends, t, sampling, curve)
    codes = [generator.draw_latent(condition, ImageNoise(0, i)) for i in (first, second)]
    noise = ImageNoise(0, first)
    noise.normal(LATENT)
    expected = generator.refine(CURVES[curve](*codes, t), condition, noise, sampling)
    assert torch.equal(made, expected)


def test_between_two_noises_the_code_is_shared(build):
    generator, condition, t = build(), asked(1, 1), torch.tensor([0.3])
    first, second = torch.tensor([1]), torch.tensor([2])
    seen: list[torch.Tensor] = []
    generator.denoiser.register_forward_pre_hook(lambda _, args: seen.extend([args[0], args[3]]))
    ends = (drawn_end(generator, condition, first, noise) for noise in (first, second))
    interpolate(generator, *ends, t, Sampling(steps=1))
    z = generator.draw_latent(condition, ImageNoise(0, first))
    assert torch.equal(seen[1], generator.autoencoder.decode(z))
    noises = [ImageNoise(0, first), ImageNoise(0, second)]
    a, b = [(n.normal(LATENT), n.normal(1, 32, 32))[1] for n in noises]
    between = slerp(a, b, t)
    torch.testing.assert_close(seen[0], between / between.square().mean().sqrt())


def test_between_two_conditions_the_estimates_are_mixed(build):
    """At one step the image is the estimate itself."""
    generator, index = build(prediction="v"), torch.arange(3)
    generator.prior = LatentPrior(latent_dim=LATENT)  # z does not depend on the condition
    left, right, one = asked(3, 1), asked(3, 2), Sampling(steps=1)
    a, b = (generator.sample(c, index, one) for c in (left, right))
    assert not torch.allclose(a, b, atol=1e-3)
    ends = (drawn_end(generator, c, index, index) for c in (left, right))
    t = torch.tensor([0.0, 0.25, 1.0])
    made = interpolate(generator, *ends, t, one)
    clipped = (a.abs() == 1) | (b.abs() == 1)  # the mix is clamped, not mixed from clamped ones
    mixed = lerp(a, b, t)
    torch.testing.assert_close(made[~clipped], mixed[~clipped], rtol=0, atol=1e-5)
    assert (~clipped[1]).float().mean() > 0.2


def test_equal_conditions_cost_no_second_evaluation(build):
    generator, calls = build(), []
    generator.denoiser.register_forward_hook(lambda *_: calls.append(1))
    index = torch.arange(2)
    for other, cost in ((asked(2, 1), 4), (asked(2, 2), 8)):
        calls.clear()
        ends = (drawn_end(generator, c, index, index) for c in (asked(2, 1), other))
        interpolate(generator, *ends, torch.tensor([0.3, 0.4]), Sampling(steps=4))
        assert len(calls) == cost


@pytest.mark.parametrize("form", FORMS)
def test_an_image_is_the_same_alone_and_in_any_batch(build, form):
    generator, t = build(form), torch.linspace(0, 1, 5)
    left, right, i, j = asked(5, 1), asked(5, 2), torch.arange(5), torch.arange(5, 10)

    def make(part: slice) -> torch.Tensor:
        ends = (
            drawn_end(generator, c.rows(part), n[part], n[part]) for c, n in ((left, i), (right, j))
        )
        return interpolate(generator, *ends, t[part], Sampling("ddpm", steps=4))

    together = make(slice(None))
    for k in range(5):
        # float32 sums that kernels order by batch size
        alone = make(slice(k, k + 1))
        torch.testing.assert_close(together[k : k + 1], alone, rtol=0, atol=1e-3)


def test_an_unconditional_model_encodes_nothing(build):
    with pytest.raises(UserError, match="no autoencoder"):
        given_end(build("uncond"), original(1), asked(1, 1), torch.arange(1))
