"""What stages 2 and 4 share: one noised batch, its random numbers, the latent prior."""

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from cxr_lightning.diffusion.generator import predict_x0
from cxr_lightning.diffusion.priors import LatentPrior, PriorKind
from cxr_lightning.diffusion.process import add_noise, ddim_step, epsilon_from_x0
from cxr_lightning.diffusion.schedule import alpha_bar
from cxr_lightning.errors import UserError
from cxr_lightning.networks.autoencoder import sample_latent
from cxr_lightning.stages.denoising import check_gamma, fit_prior
from cxr_lightning.stages.draws import fixed_draws, random_draws, random_drop
from cxr_lightning.stages.generator_in_training import Draws, GeneratorInTraining
from cxr_lightning.stages.vae import VAE
from cxr_lightning.types import FIELDS, Condition


@pytest.fixture
def build(make_autoencoder, make_denoiser):
    """Makes networks in training; without autoencoder for `uncond`."""

    def make(prior: PriorKind = "normal", **changes) -> GeneratorInTraining:
        denoiser = make_denoiser(**changes).train()
        if changes.get("form") == "uncond":
            return GeneratorInTraining(denoiser, None)
        autoencoder = make_autoencoder()
        latent = LatentPrior(latent_dim=autoencoder.latent_dim, kind=prior)
        return GeneratorInTraining(denoiser, autoencoder, prior=latent)

    return make


@pytest.fixture
def stage() -> VAE:
    """A stage without trainer, for its draws."""
    return VAE(image_size=8, width=4, latent_dim=2)


def full(count: int) -> Condition:
    return Condition.of(torch.rand(count, len(FIELDS)), torch.ones(count, 17, dtype=torch.bool))


def draws(networks: GeneratorInTraining, count: int = 3) -> Draws:
    return fixed_draws(torch.arange(count), networks, 32, torch.device("cpu"))


@pytest.mark.parametrize(
    ("form", "prediction"), list(product(["form1", "form2", "uncond"], ["epsilon", "v"]))
)
def test_loss_and_estimate_are_the_formulas_written_out(build, form, prediction):
    networks = build(form=form, prediction=prediction)
    image, condition, d = torch.rand(3, 1, 32, 32) * 2 - 1, full(3), draws(networks)
    denoised = networks.denoise(image, condition, d)
    a = alpha_bar("linear", 50)[d.t].float().reshape(3, 1, 1, 1)
    x_hat = None
    if form != "uncond":
        network = networks.autoencoder.network
        x_hat = network.decode(sample_latent(*network.encode(image), d.latent_noise))
    y = a.sqrt() * image + (1 - a).sqrt() * d.noise
    out = networks.denoiser(y, d.t, condition, x_hat)
    if prediction == "epsilon":
        target, epsilon = d.noise, out
    else:
        target = a.sqrt() * d.noise - (1 - a).sqrt() * image
        epsilon = a.sqrt() * out + (1 - a).sqrt() * y
    torch.testing.assert_close(denoised.loss(), F.mse_loss(out, target), rtol=1e-5, atol=1e-6)
    estimate = (y - (1 - a).sqrt() * epsilon) / a.sqrt()
    # division by sqrt(A_t), 0.006 at worst
    torch.testing.assert_close(denoised.x0, estimate, rtol=1e-3, atol=1e-3)
    assert torch.equal(denoised.a_t, a.flatten())


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_min_snr_weights_the_error_of_each_image(build, prediction):
    networks = build(prediction=prediction)
    denoised = networks.denoise(torch.rand(3, 1, 32, 32), full(3), draws(networks))
    ratio = denoised.a_t / (1 - denoised.a_t)
    scale = ratio if prediction == "epsilon" else ratio + 1
    parts = zip(ratio, scale, denoised.error, strict=True)
    expected = sum(min(r, 5.0) / s * e for r, s, e in parts) / 3
    torch.testing.assert_close(denoised.loss(5.0), expected)
    assert float(denoised.loss(5.0).detach()) < float(denoised.loss().detach())


def test_min_snr_gamma_that_does_not_fit_is_refused():
    assert check_gamma(None, "zero_snr") is None
    assert check_gamma(5.0, "cosine") == 5.0
    for gamma in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match=rf"^model\.min_snr_gamma: {gamma} is not possible"):
            check_gamma(gamma, "linear")
    with pytest.raises(UserError, match=r"^model\.min_snr_gamma: .* schedule zero_snr no weight"):
        check_gamma(5.0, "zero_snr")


def test_a_perfect_denoiser_has_no_loss_and_the_image_as_estimate(build, monkeypatch):
    networks = build()
    image, d = torch.rand(3, 1, 32, 32) * 2 - 1, draws(networks)
    middle = torch.zeros(3, networks.denoiser.middle_channels, 16, 16)
    monkeypatch.setattr(networks.denoiser, "predict", lambda *_: (d.noise, middle))
    denoised = networks.denoise(image, full(3), d)
    assert float(denoised.loss()) == 0.0
    torch.testing.assert_close(denoised.x0, image, rtol=0, atol=1e-4)  # 1 / sqrt(A_t) roundings


@pytest.mark.parametrize("form", ["form1", "form2", "uncond"])
def test_reverse_is_ddim_image_by_image_with_a_gradient_in_the_last_step(build, form):
    networks = build(form=form)
    image, condition = torch.rand(3, 1, 32, 32) * 2 - 1, full(3)
    d = replace(draws(networks), t=torch.tensor([50, 23, 1]))
    denoised = networks.denoise(image, condition, d)
    found, a_last = networks.reverse(denoised, condition, d, 5)
    a, denoiser = networks.alpha_bar, networks.denoiser
    ends = []
    for i, times in enumerate([[50, 40, 30, 20, 10], [23, 19, 14, 10, 5], [1, 1, 1, 1, 1]]):
        one = torch.tensor([i])
        x_hat, z = (None if v is None else v[one] for v in (denoised.x_hat, denoised.z))
        y = denoised.y[one]
        for k, t in enumerate(times):
            y = y.detach()
            x0 = predict_x0(denoiser, y, t, condition.rows(one), x_hat, z, float(a[t]))
            if k < 4:
                noise = epsilon_from_x0(y, x0.clamp(-1, 1), a[t][None])
                y = ddim_step(x0.clamp(-1, 1), noise, y, float(a[t]), float(a[times[k + 1]]))
        assert float(a_last[i]) == float(a[times[-1]])
        ends.append(x0)
    # at the last of 50 times of the linear schedule the noise is divided by its small scale
    torch.testing.assert_close(found, torch.cat(ends), rtol=1e-3, atol=1e-3)
    grads = [
        torch.autograd.grad(end.square().sum(), denoiser.head.weight)[0]
        for end in (found, torch.cat(ends))
    ]
    assert float(grads[1].norm()) > 0
    torch.testing.assert_close(*grads, rtol=1e-2, atol=1e-3 * float(grads[1].abs().max()))


def test_averaged_weights_predict_when_asked(build):
    networks = build()
    with torch.no_grad():
        networks.average.head.bias += 1.0
    image, d = torch.rand(2, 1, 32, 32), draws(networks, 2)
    plain = networks.denoise(image, full(2), d)
    averaged = networks.denoise(image, full(2), d, averaged=True)
    assert float(averaged.loss().detach()) > float(plain.loss().detach()) + 0.1
    assert plain.loss().requires_grad
    assert not averaged.loss().requires_grad


def test_average_starts_as_a_copy_and_takes_no_gradient(build):
    networks = build()
    pairs = zip(networks.denoiser.parameters(), networks.average.parameters(), strict=True)
    assert all(torch.equal(a, b) and a is not b for a, b in pairs)
    assert not any(p.requires_grad for p in networks.average.parameters())


def test_decay_of_the_average_is_short_at_first(build):
    networks = build()
    with torch.no_grad():
        for p in networks.denoiser.parameters():
            p.fill_(1.0)
        for p in networks.average.parameters():
            p.zero_()
    networks.update_average(1)
    expected = 1 - 2 / 11
    assert networks.average.head.bias.tolist() == pytest.approx([expected])
    networks.update_average(1_000_000)
    assert networks.average.head.bias.tolist() == pytest.approx([1 - 0.999 * (1 - expected)])


def test_steps_of_training_are_uniform_over_1_to_t(build, stage):
    torch.manual_seed(0)
    networks, n = build(timesteps=10, image_size=4, attention=[], form="uncond"), 20_000
    t = random_draws(stage, networks, n).t
    counts = torch.bincount(t, minlength=11)
    assert counts[0] == 0
    assert len(counts) == 11
    # five standard deviations of a binomial count
    assert (counts[1:] - n / 10).abs().max() < 5 * (n * 0.1 * 0.9) ** 0.5


def test_x_hat_is_dropped_image_by_image(build, stage):
    torch.manual_seed(0)
    networks = build(image_size=32)
    known = random_draws(stage, networks, 400, drop_reconstruction=0.25).x_hat_known
    assert abs(int(known.sum()) - 300) < 5 * (400 * 0.25 * 0.75) ** 0.5
    assert random_draws(stage, networks, 8).x_hat_known.all()


def test_conditions_are_dropped_by_field_and_as_a_whole(stage):
    torch.manual_seed(0)
    n = 4000
    kept = random_drop(stage, full(n), drop_field=0.1, drop_all=0.2).known
    share = 0.9 * 0.8
    # five standard errors; fields of an image are correlated by the common drop: count images
    assert abs(kept.float().mean() - share) < 5 * (share * (1 - share) / n) ** 0.5
    none = (~kept).all(1).float().mean()
    assert abs(none - 0.2) < 5 * (0.2 * 0.8 / n) ** 0.5
    unchanged = random_drop(stage, full(50), 0.0, 0.0)
    assert unchanged.known.all()
    assert not random_drop(stage, full(50), 0.0, 1.0).known.any()


def test_texts_are_dropped_alone_and_with_the_rest(stage):
    torch.manual_seed(0)
    n = 4000
    condition = full(n)._replace(text=torch.ones(n, 3))
    kept = random_drop(stage, condition, drop_field=0.0, drop_all=0.2, drop_text=0.3)
    text, fields = kept.text.any(1), kept.known.any(1)
    assert not (text & ~fields).any()
    for share, wanted in ((~text, 0.5), (~fields, 0.2)):
        assert abs(share.float().mean() - wanted) < 5 * (wanted * (1 - wanted) / n) ** 0.5
    assert torch.equal(kept.text[text], condition.text[text])


def test_the_denoiser_is_shown_the_code_that_x_hat_is_decoded_from(build, monkeypatch):
    networks = build(latent_dim=6)
    image, given, seen = torch.rand(3, 1, 32, 32) * 2 - 1, draws(networks), []
    plain = networks.denoiser.predict

    def noted(y, t, condition, x_hat, known, z):
        seen.append((x_hat, z))
        return plain(y, t, condition, x_hat, known, z)

    monkeypatch.setattr(networks.denoiser, "predict", noted)
    networks.denoise(image, full(3), given)
    autoencoder = networks.autoencoder.network
    ((x_hat, z),) = seen
    assert torch.equal(z, sample_latent(*autoencoder.encode(image), given.latent_noise))
    assert torch.equal(x_hat, autoencoder.decode(z))


def test_validation_draws_depend_on_the_image_alone(build):
    networks = build()
    together = fixed_draws(torch.tensor([5, 2, 9]), networks, 32, torch.device("cpu"))
    alone = fixed_draws(torch.tensor([2]), networks, 32, torch.device("cpu"))
    assert torch.equal(together.noise[1:2], alone.noise)
    assert torch.equal(together.latent_noise[1:2], alone.latent_noise)
    assert together.t[1] == alone.t[0]
    assert together.x_hat_known.all()


def test_validation_steps_cover_the_range_evenly(build):
    networks = build(form="uncond", image_size=4, attention=[], timesteps=1000)
    t = fixed_draws(torch.arange(500), networks, 4, torch.device("cpu")).t
    assert t.min() >= 1
    assert t.max() <= 1000
    counts = torch.histc(t.float(), 10, 1, 1000)
    # a golden-ratio sequence has gaps of three lengths: every tenth gets 50 up to 3
    assert (counts - 50).abs().max() <= 3


def test_prior_is_fitted_to_codes_of_the_training_images(build, datamodule):
    states = []
    for seed in (0, 99):
        torch.manual_seed(1)
        networks = build(prior="gaussian")
        torch.manual_seed(seed)
        fit_prior(networks, datamodule, torch.device("cpu"))
        states.append({k: v.clone() for k, v in networks.prior.state_dict().items()})
    assert all(torch.equal(v, states[0][k]) for k, v in states[1].items())
    # A continued run keeps what it has.
    networks.prior.model.weight.zero_()
    fit_prior(networks, datamodule, torch.device("cpu"))
    assert not networks.prior.model.weight.any()
    networks.prior.load_state_dict(states[0])
    # its mean over the training conditions is the mean of the codes it was fitted to
    rows = datamodule.rows["train"]
    batch = datamodule.batch_of(rows)
    with torch.no_grad():
        mean, log_variance = networks.autoencoder.network.encode(batch.image)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    z = sample_latent(mean, log_variance, noise)
    fitted = networks.prior(torch.zeros_like(z), batch.condition)
    # the constant is not penalised, so residuals have mean zero (float32 weights)
    torch.testing.assert_close(fitted.mean(0), z.mean(0), rtol=0, atol=1e-4)


def test_unconditional_networks_have_no_prior_to_fit(build, datamodule):
    networks = build(form="uncond")
    fit_prior(networks, datamodule, torch.device("cpu"))
    assert networks.prior is None
    assert networks.latent_dim is None


def test_noised_batch_uses_the_common_process(build):
    """A zero image has y = sqrt(1 - A_t) noise; the stem of form 1 is shown exactly that."""
    networks, shown = build(), []
    networks.denoiser.stem.register_forward_pre_hook(lambda _, args: shown.append(args[0]))
    d = draws(networks, 2)
    image = torch.zeros(2, 1, 32, 32)
    networks.denoise(image, full(2), d)
    expected = add_noise(image, d.noise, networks.alpha_bar[d.t])
    assert torch.equal(shown[0][:, :1], expected)
