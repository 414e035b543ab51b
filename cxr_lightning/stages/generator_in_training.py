"""The networks of a generator in training, and one noised batch: what stages 2, 4 and 5 share."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.priors import LatentPrior
from cxr_lightning.diffusion.process import (
    add_noise,
    ddpm_step,
    epsilon_from_x0,
    velocity,
    x0_from_output,
)
from cxr_lightning.diffusion.schedule import alpha_bar
from cxr_lightning.diffusion.weighting import min_snr_weight
from cxr_lightning.networks.autoencoder import Autoencoder, sample_latent
from cxr_lightning.networks.frozen import Frozen
from cxr_lightning.networks.momentum import momentum_copy, momentum_update
from cxr_lightning.networks.unet import Denoiser, Prediction
from cxr_lightning.ranges import check_range
from cxr_lightning.types import Condition


@dataclass(frozen=True)
class Draws:
    """The random numbers of one noised batch.

    Attributes:
        t: Diffusion step of each image, 1 to T.
        noise: Noise of the chain.
        latent_noise: Noise of the latent code; None without an autoencoder.
        x_hat_known: Which images' x_hat the denoiser may see.
    """

    t: Int[Tensor, " b"]
    noise: Float[Tensor, "b 1 h w"]
    latent_noise: Float[Tensor, "b d"] | None
    x_hat_known: Bool[Tensor, " b"]


@dataclass(frozen=True)
class Denoised:
    """A noised batch after one network evaluation.

    Attributes:
        error: Mean squared error of each image's prediction.
        x0: One-step estimate of the clean image, not clamped.
        a_t: alpha_bar at each image's step.
        a_prev: alpha_bar at the step before.
        y: The noised images y_t.
        middle: The denoiser's feature map in the middle.
        prediction: What was predicted.
        x_hat: The VAE's images, where there are any.
        z: The latent codes that they are decoded from.
    """

    error: Float[Tensor, " b"]
    x0: Float[Tensor, "b 1 h w"]
    a_t: Float[Tensor, " b"]
    a_prev: Float[Tensor, " b"]
    y: Float[Tensor, "b 1 h w"]
    middle: Float[Tensor, "b m h2 w2"]
    prediction: Prediction
    x_hat: Float[Tensor, "b 1 h w"] | None
    z: Float[Tensor, "b d"] | None

    def reverse_sample(self, noise: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
        """One reverse step of the chain from t to t - 1: Ho et al. 2020, equations 6 and 7.

        x_{t-1} ~ N(sqrt(A_{t-1}) beta_t / (1 - A_t) x_0 + sqrt(alpha_t) (1 - A_{t-1}) / (1 - A_t)
        y_t, (1 - A_{t-1}) / (1 - A_t) beta_t I), x_0 the one-step estimate.

        Args:
            noise: Standard normal.
        """
        a_t, a_prev = (a[:, None, None, None] for a in (self.a_t, self.a_prev))
        return ddpm_step(self.y, self.x0, noise, a_t, a_prev)

    def loss(self, min_snr_gamma: float | None = None) -> Float[Tensor, ""]:
        """Mean squared error (Ho et al. 2020, equation 14), with Min-SNR weights where asked."""
        if min_snr_gamma is None:
            return self.error.mean()
        return (min_snr_weight(self.a_t, self.prediction, min_snr_gamma) * self.error).mean()


class GeneratorInTraining(nn.Module):
    """Denoiser with its moving average, beside the frozen autoencoder and the latent prior.

    Args:
        denoiser: The network that is trained.
        autoencoder: Stage 1, frozen here; None for the unconditional form.
        decay: Decay of the exponential moving average of the weights.
        prior: Latent prior, with an autoencoder; by default the standard normal.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        autoencoder: Autoencoder | None,
        decay: float = 0.999,
        prior: LatentPrior | None = None,
    ) -> None:
        super().__init__()
        check_range("model.ema_decay", decay, 0, 1, below=True)
        self.denoiser = denoiser
        self.average = momentum_copy(denoiser)
        self.autoencoder = None if autoencoder is None else Frozen(autoencoder)
        self.prior = None
        if autoencoder is not None:
            normal = LatentPrior(latent_dim=autoencoder.latent_dim, kind="normal")
            # Fitted apart; a parameter that no training step reaches would stop DDP.
            self.prior = (prior or normal).requires_grad_(False)
        self.decay = decay
        schedule = alpha_bar(denoiser.schedule, denoiser.timesteps).float()
        self.register_buffer("alpha_bar", schedule, persistent=False)
        self.alpha_bar: Float[Tensor, " t1"]

    @property
    def latent_dim(self) -> int | None:
        """Dimension of the latent code; None without an autoencoder."""
        return None if self.prior is None else self.prior.latent_dim

    def update_average(self, step: int) -> None:
        """Moves the average towards the weights; with a short memory in the first steps.

        The decay is min(decay, (1 + step) / (10 + step)), as in TensorFlow's moving average.
        """
        decay = min(self.decay, (1.0 + step) / (10.0 + step))
        momentum_update([(self.denoiser, self.average)], decay)

    def generator(self) -> Generator:
        """The generator with the averaged weights."""
        if self.autoencoder is None or self.prior is None:
            return Generator(self.average)
        return Generator(self.average, self.autoencoder.network, self.prior)

    def networks(self) -> dict[str, nn.Module]:
        """The parts of the generator's product."""
        parts: dict[str, nn.Module] = {"denoiser": self.average}
        if self.autoencoder is not None and self.prior is not None:
            parts |= {"autoencoder": self.autoencoder.network, "prior": self.prior}
        return parts

    def denoise(
        self,
        image: Float[Tensor, "b 1 h w"],
        condition: Condition,
        draws: Draws,
        *,
        averaged: bool = False,
    ) -> Denoised:
        """Noises images, predicts the noise and compares.

        Args:
            image: Clean images x_0, model range.
            condition: What the denoiser is told of them.
            draws: The random numbers.
            averaged: Whether the averaged weights predict.
        """
        denoiser = self.average if averaged else self.denoiser
        x_hat, z = self._reconstruct(image, draws.latent_noise)
        a_t = self.alpha_bar[draws.t]
        y = add_noise(image, draws.noise, a_t)
        predicted, middle = denoiser.predict(y, draws.t, condition, x_hat, draws.x_hat_known, z)
        x0 = x0_from_output(denoiser.prediction, y, predicted, a_t)
        is_noise = denoiser.prediction == "epsilon"
        target = draws.noise if is_noise else velocity(image, draws.noise, a_t)
        error = (predicted - target).square().flatten(1).mean(1)
        a_prev = self.alpha_bar[draws.t - 1]
        return Denoised(error, x0, a_t, a_prev, y, middle, denoiser.prediction, x_hat, z)

    def reverse(
        self, denoised: Denoised, condition: Condition, draws: Draws, steps: int
    ) -> tuple[Float[Tensor, "b 1 h w"], Float[Tensor, " b"]]:
        """The reverse process from the noised images to its end, by DDIM in evenly spaced steps.

        Song et al. 2020 (arXiv 2010.02502), equation 12 with eta = 0. Each image has times of its
        own, t, t - t / steps and so on; estimates are clamped as in `diffusion.samplers.sample`.
        The last step alone has a gradient.

        Args:
            denoised: The batch after its first evaluation, which is the first step.
            condition: What the denoiser is told.
            draws: The random numbers that it was noised with.
            steps: Number of evaluations, 2 or more.

        Returns:
            The images at the end, model range, not clamped; and alpha_bar at the last step.
        """
        times = [(draws.t * k / steps).ceil().long() for k in range(steps, 0, -1)]
        y, x0, a_t = denoised.y, denoised.x0.detach(), denoised.a_t

        def estimate(t: Int[Tensor, " b"]) -> Float[Tensor, "b 1 h w"]:
            known = draws.x_hat_known
            output = self.denoiser(y, t, condition, denoised.x_hat, known, denoised.z)
            return x0_from_output(self.denoiser.prediction, y, output, self.alpha_bar[t])

        for t in times[1:]:
            x0 = x0.clamp(-1.0, 1.0)
            noise = epsilon_from_x0(y, x0, a_t)
            a_t = self.alpha_bar[t]
            y = add_noise(x0, noise, a_t)
            with torch.set_grad_enabled(t is times[-1] and torch.is_grad_enabled()):
                x0 = estimate(t)
        return x0, a_t

    def estimates(
        self,
        image: Float[Tensor, "b 1 h w"],
        condition: Condition,
        draws: Draws,
        earlier: Int[Tensor, " b"],
        *,
        averaged: bool = False,
    ) -> tuple[Float[Tensor, "b 1 h w"], Float[Tensor, "b 1 h w"]]:
        """Estimates of the clean image at two times of one straight path x_0 to noise.

        The same weights, dropout masks, x_hat and noise at both.

        Args:
            image: Clean images x_0, model range.
            condition: What the denoiser is told of them.
            draws: The random numbers; `draws.t` is the later time.
            earlier: The earlier time r of each image, 0 to T.
            averaged: Whether the averaged weights estimate.

        Returns:
            The estimate at the later time, and that at the earlier time without gradient.
        """
        denoiser = self.average if averaged else self.denoiser
        x_hat, z = self._reconstruct(image, draws.latent_noise)

        def estimate(t: Int[Tensor, " b"]) -> Float[Tensor, "b 1 h w"]:
            a_t = self.alpha_bar[t]
            y = add_noise(image, draws.noise, a_t)
            output = denoiser(y, t, condition, x_hat, draws.x_hat_known, z)
            return x0_from_output(denoiser.prediction, y, output, a_t)

        devices = [image.device] if image.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():  # so that dropout draws the same
            target = estimate(earlier)
        torch.clear_autocast_cache()  # or the weights cast there, without gradient, may be used
        return estimate(draws.t), target

    @torch.no_grad()
    def _reconstruct(
        self, image: Float[Tensor, "b 1 h w"], latent_noise: Float[Tensor, "b d"] | None
    ) -> tuple[Float[Tensor, "b 1 h w"] | None, Float[Tensor, "b d"] | None]:
        """x_hat, and the latent code that it is decoded from."""
        if self.autoencoder is None or latent_noise is None:
            return None, None
        z = sample_latent(*self.autoencoder.network.encode(image), latent_noise)
        return self.autoencoder.network.decode(z), z
