"""The generator: which image depends on what, and every combination runs."""

from itertools import product
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from cxr_lightning.artifacts import save_product
from cxr_lightning.data.transforms import to_image
from cxr_lightning.diffusion.generator import Generator, predict_x0
from cxr_lightning.diffusion.priors import LatentPrior
from cxr_lightning.diffusion.process import (
    ddim_step,
    epsilon_from_x0,
    x0_from_epsilon,
)
from cxr_lightning.diffusion.random import EvenNoise, ImageNoise
from cxr_lightning.diffusion.samplers import SamplerName, Sampling
from cxr_lightning.diffusion.schedule import alpha_bar
from cxr_lightning.diffusion.spacing import trailing_times
from cxr_lightning.errors import UserError
from cxr_lightning.types import FIELDS, Condition

LATENT = 6


@pytest.fixture(scope="module")
def build(make_autoencoder, make_denoiser):
    """Makes random generators of 32 px; `form="none"` is the VAE alone."""

    def make(**changes) -> Generator:
        form = changes.get("form", "form1")
        if form == "uncond":
            return Generator(make_denoiser(**changes)).eval()
        prior = LatentPrior(latent_dim=LATENT)
        prior.fit(torch.randn(30, LATENT, generator=torch.Generator().manual_seed(0)), asked(30))
        denoiser = None if form == "none" else make_denoiser(**changes)
        return Generator(denoiser, make_autoencoder(), prior).eval()

    return make


def asked(count: int) -> Condition:
    generator = torch.Generator().manual_seed(4)
    known = torch.rand(count, len(FIELDS), generator=generator) < 0.5
    return Condition.of(torch.rand(count, len(FIELDS), generator=generator) * known, known)


def original(count: int) -> Tensor:
    return torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1


SAMPLERS = get_args(SamplerName)
SHOWN = [("form1", 0), ("form1", LATENT), ("form2", 0), ("form2", LATENT), ("uncond", 0)]
COMBINATIONS = list(product(SHOWN, ["epsilon", "v"], SAMPLERS, [1.0, 0.0, 2.5]))


@pytest.mark.parametrize(("shown", "prediction", "sampler", "guidance"), COMBINATIONS)
@pytest.mark.parametrize("batch", [1, 3])
def test_every_combination_makes_images(build, shown, prediction, sampler, guidance, batch):
    form, latent_dim = shown
    generator = build(form=form, prediction=prediction, latent_dim=latent_dim)
    sampling = Sampling(sampler, steps=3, guidance=guidance)
    made = generator.sample(asked(batch), torch.arange(batch), sampling)
    assert made.shape == (batch, 1, 32, 32)
    assert made.abs().max() <= 1.0
    assert made.std() > 0
    if form != "uncond":
        again = generator.reconstruct(original(batch), asked(batch), torch.arange(batch), sampling)
        assert again.shape == (batch, 1, 32, 32)
        assert again.abs().max() <= 1.0


@pytest.mark.parametrize("form", ["form1", "form2", "uncond", "none"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_is_the_same_alone_and_in_any_batch(build, form, sampler):
    generator = build(form=form)
    index, condition = torch.tensor([9, 4, 7]), asked(3)
    sampling = Sampling(sampler, steps=4)
    together = generator.sample(condition, index, sampling)
    for i in range(3):
        row = slice(i, i + 1)
        alone = generator.sample(condition.rows(row), index[row], sampling)
        # the same float32 sums, which kernels may order by batch size: at most a rounding of the
        # grey value
        torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-3)
        assert (to_image(together[row]).int() - to_image(alone).int()).abs().max() <= 1


@pytest.mark.parametrize("form", ["form1", "uncond"])
def test_seed_index_and_condition_decide_about_an_image(build, form):
    generator = build(form=form)

    def make(condition: Condition, index: int, seed: int) -> Tensor:
        return generator.sample(condition, torch.tensor([index]), Sampling(steps=4), seed=seed)

    made = make(asked(1), 3, 1)
    assert torch.equal(make(asked(1), 3, 1), made)
    for other in (make(asked(1), 3, 2), make(asked(1), 4, 1), make(Condition.unknown(1), 3, 1)):
        assert not torch.allclose(other, made, atol=1e-3)


def test_images_do_not_depend_on_the_global_random_state(build):
    generator = build()
    torch.manual_seed(1)
    first = generator.sample(asked(1), torch.arange(1), Sampling(sampler="ddpm", steps=4))
    torch.manual_seed(2)
    assert torch.equal(
        generator.sample(asked(1), torch.arange(1), Sampling(sampler="ddpm", steps=4)), first
    )


class Counter:
    """Counts network evaluations."""

    def __init__(self, generator: Generator) -> None:
        self.calls = 0
        generator.denoiser.register_forward_hook(self._count)

    def _count(self, *_) -> None:
        self.calls += 1


def test_guidance_one_is_plain_sampling_at_half_the_cost(build):
    generator = build()
    counter = Counter(generator)
    plain = generator.sample(asked(2), torch.arange(2), Sampling(steps=4))
    assert counter.calls == 4
    guided = generator.sample(asked(2), torch.arange(2), Sampling(steps=4, guidance=1.0))
    assert counter.calls == 8
    assert torch.equal(guided, plain)
    # eps_null + g (eps - eps_null) for g just above 1, a float32 away
    near = generator.sample(asked(2), torch.arange(2), Sampling(steps=4, guidance=1.0 + 1e-6))
    assert counter.calls == 16
    torch.testing.assert_close(near, plain, rtol=0, atol=1e-3)


@pytest.mark.parametrize("around", [False, True])
def test_the_precision_is_that_of_the_sampling(build, around):
    """Whatever autocast there is around it; the steps stay in fp32."""
    generator, dtypes = build(), set[torch.dtype]()
    assert generator.denoiser is not None
    generator.denoiser.stem.register_forward_hook(lambda m, i, out: dtypes.add(out.dtype))
    images = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        dtypes.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=around):
            sampling = Sampling("unipc", 5, guidance=2.0, precision=precision)
            images[precision] = generator.sample(asked(3), torch.arange(3), sampling)
        assert dtypes == {dtype}
        assert images[precision].dtype == torch.float32
    assert not torch.equal(images["fp32"], images["bf16"])
    # bfloat16 keeps 8 bits: a relative error of 4e-3 a layer
    assert (images["fp32"] - images["bf16"]).abs().mean() < 0.02


def test_guidance_zero_is_the_null_condition(build):
    """Of the latent prior too."""
    generator = build()
    zero = generator.sample(asked(2), torch.arange(2), Sampling(steps=4, guidance=0.0))
    null = generator.sample(Condition.unknown(2), torch.arange(2), Sampling(steps=4))
    assert torch.equal(zero, null)


@pytest.mark.parametrize(("form", "prediction"), [("form1", "epsilon"), ("form2", "v")])
def test_generation_is_the_formulas_written_out(build, form, prediction):
    """Prior, decoder, guided DDIM with clamp, step by step."""
    generator = build(form=form, prediction=prediction)
    index, condition, g = torch.tensor([2, 5]), asked(2), 2.0
    sampling = Sampling("ddim", steps=4, guidance=g, spacing="trailing")
    made = generator.sample(condition, index, sampling, seed=3)
    noise = ImageNoise(3, index)
    with torch.no_grad():
        x_hat = generator.autoencoder.decode(generator.prior(noise.normal(LATENT), condition, g))
        y = noise.normal(1, 32, 32)
        y = y / y.square().mean((1, 2, 3), keepdim=True).sqrt()
        a = alpha_bar("linear", 50)
        times = trailing_times(50, 4)
        for t, s in zip(times, [*times[1:], 0], strict=True):
            a_t = a[t].float().expand(2)
            epsilons = []
            for c in (condition, Condition.unknown(2)):
                out = generator.denoiser(y, torch.full((2,), t), c, x_hat)
                # eps = sqrt(A) v + sqrt(1 - A) y (Salimans and Ho 2022, appendix D)
                of_v = float(a[t]) ** 0.5 * out + (1 - float(a[t])) ** 0.5 * y
                epsilons.append(of_v if prediction == "v" else out)
            epsilon = (1 - g) * epsilons[1] + g * epsilons[0]
            x0 = x0_from_epsilon(y, epsilon, a_t).clamp(-1, 1)
            zero = torch.zeros_like(y)
            y = ddim_step(x0, epsilon_from_x0(y, x0, a_t), zero, float(a[t]), float(a[s]))
    # float32, with 1 / sqrt(A_T) = 150 before the clamp
    torch.testing.assert_close(made, y, rtol=0, atol=1e-3)


def test_reconstruction_refines_the_decoding_of_the_posterior_mean(build):
    generator = build()
    image, index = original(2), torch.arange(2)
    seen: list[Tensor] = []
    generator.denoiser.register_forward_pre_hook(lambda _, args: seen.append(args[3]))
    generator.reconstruct(image, asked(2), index, Sampling(steps=1), seed=2)
    assert torch.equal(seen[0], generator.autoencode(image))


def test_autoencode_is_the_decoding_of_the_posterior_mean(build):
    generator = build()
    network = generator.autoencoder
    expected = network.decode(network.encode(original(2))[0])
    assert torch.equal(generator.autoencode(original(2)), expected)


def test_the_vae_alone_gives_x_hat(build):
    generator = build(form="none")
    made = generator.sample(asked(2), torch.arange(2))
    z = generator.prior(ImageNoise(0, torch.arange(2)).normal(LATENT), asked(2))
    assert torch.equal(made, generator.autoencoder.decode(z))
    assert generator.image_size == 32


def test_the_denoiser_is_shown_the_code_of_x_hat(build, monkeypatch):
    generator = build(latent_dim=LATENT)
    seen = []
    plain = generator.denoiser.forward

    def noted(y, t, condition, x_hat, z=None):
        seen.append((x_hat, z))
        return plain(y, t, condition, x_hat, z=z)

    monkeypatch.setattr(generator.denoiser, "forward", noted)
    generator.sample(asked(2), torch.arange(2), Sampling(steps=2, guidance=2.0))
    generator.reconstruct(original(2), asked(2), torch.arange(2), Sampling(steps=1))
    assert len(seen) == 5
    for x_hat, z in seen:
        assert torch.equal(generator.autoencoder.decode(z), x_hat)
    assert torch.equal(seen[-1][1], generator.autoencoder.encode(original(2))[0])


def test_the_code_of_x_hat_changes_the_image(build):
    """As far as the network lets it: with its first layer at zero it does not."""
    generator = build(latent_dim=LATENT)
    before = generator.sample(asked(2), torch.arange(2), Sampling(steps=2))
    generator.denoiser.latent.code.weight.data[:, :LATENT] = 0.0
    after = generator.sample(asked(2), torch.arange(2), Sampling(steps=2))
    assert not torch.allclose(before, after, atol=1e-4)


def test_an_unconditional_generator_reconstructs_nothing(build):
    generator = build(form="uncond")
    with pytest.raises(UserError, match="no autoencoder"):
        generator.reconstruct(original(1), asked(1), torch.arange(1))
    with pytest.raises(UserError, match="no autoencoder"):
        generator.autoencode(original(1))


def test_too_many_steps_are_refused(build):
    with pytest.raises(UserError, match=r"^steps: 51 "):
        build().sample(asked(1), torch.arange(1), Sampling(steps=51))


def test_parts_that_make_no_generator_are_refused(make_autoencoder, make_denoiser):
    prior = LatentPrior(latent_dim=LATENT)
    for parts in ((None,), (make_denoiser(), make_autoencoder()), (make_denoiser(), None, prior)):
        with pytest.raises(ValueError, match="a generator is"):
            Generator(*parts)


@pytest.mark.parametrize("form", ["form1", "form2", "uncond"])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_clean_estimate_of_both_predictions(make_denoiser, form, prediction):
    network = make_denoiser(form=form, prediction=prediction)
    y, x_hat, t = original(2), original(2).flip(0), 20
    a_t = float(alpha_bar("linear", 50)[t])
    out = network(y, torch.full((2,), t), asked(2), x_hat)
    if prediction == "v":
        expected = a_t**0.5 * y - (1 - a_t) ** 0.5 * out
    else:
        expected = (y - (1 - a_t) ** 0.5 * out) / a_t**0.5
    ours = predict_x0(network, y, t, asked(2), x_hat, None, a_t)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)  # float32


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pure_noise_at_the_end_of_the_schedule(build, sampler):
    generator = build(prediction="v", schedule="zero_snr")
    sampling = Sampling(sampler, steps=4, guidance=2.0)
    made = generator.sample(asked(2), torch.arange(2), sampling)
    assert made.isfinite().all()
    assert made.abs().max() <= 1.0


def test_guidance_only_in_its_interval(build):
    """Steps 50, 41, 25, 9 of 50: one of them lies in 0.4 to 0.8."""
    generator = build()
    counter = Counter(generator)
    sampling = Sampling(steps=4, guidance=2.0, guidance_interval=(0.4, 0.8))
    made = generator.sample(asked(2), torch.arange(2), sampling)
    assert counter.calls == 4 + 1
    everywhere = generator.sample(asked(2), torch.arange(2), Sampling(steps=4, guidance=2.0))
    plain = generator.sample(asked(2), torch.arange(2), Sampling(steps=4))
    assert not torch.allclose(made, everywhere, atol=1e-3)
    assert not torch.allclose(made, plain, atol=1e-3)


@pytest.mark.parametrize("form", ["form1", "form2"])
def test_a_late_start_begins_with_the_noised_vae_image(build, form):
    """In the chain y, so the same for both forms."""
    generator = build(form=form)
    seen: list[tuple[Tensor, int]] = []
    generator.denoiser.register_forward_pre_hook(
        lambda _, args: seen.append((args[0], int(args[1][0])))
    )
    image, index = original(2), torch.arange(2)
    generator.reconstruct(image, asked(2), index, Sampling(steps=5, start=0.5), seed=4)
    assert [t for _, t in seen] == [25, 22, 16, 9, 3]
    a = float(alpha_bar("linear", 50)[25])
    noise = EvenNoise(ImageNoise(4, index)).normal(1, 32, 32)
    expected = a**0.5 * generator.autoencode(image) + (1 - a) ** 0.5 * noise
    torch.testing.assert_close(seen[0][0], expected, rtol=0, atol=1e-5)


def test_a_late_start_needs_a_vae_image(build):
    with pytest.raises(UserError, match=r"start: 0.5 begins with the VAE's image"):
        build(form="uncond").sample(asked(1), torch.arange(1), Sampling(steps=2, start=0.5))


@pytest.mark.parametrize("name", ["generator", "uncond"])
def test_loaded_product_is_frozen_and_makes_the_same_images(products: Path, name):
    generator = Generator.from_pretrained(products / name)
    assert (generator.autoencoder is None) == (name == "uncond")
    assert not generator.training
    assert not any(p.requires_grad for p in generator.parameters())
    made = generator.sample(asked(1), torch.arange(1), Sampling(steps=3))
    again = Generator.from_pretrained(products / name)
    assert torch.equal(again.sample(asked(1), torch.arange(1), Sampling(steps=3)), made)


def test_a_product_that_was_tuned_to_a_sampler_refuses_others(tmp_path, make_denoiser):
    tuned = {"sampling": {"sampler": "consistency", "steps": 2}}
    save_product(tmp_path / "p", "generator", {"denoiser": make_denoiser(form="uncond")}, tuned)
    generator = Generator.from_pretrained(tmp_path / "p")
    assert generator.own_sampling == Sampling("consistency", 2)
    generator.check(Sampling("consistency", 4))
    message = (
        r"^sampler: unipc does not suit .* use sampler consistency and steps 1 to 4, best 2\.$"
    )
    with pytest.raises(UserError, match=message):
        generator.sample(asked(1), torch.arange(1), Sampling("unipc", 2))
