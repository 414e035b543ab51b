"""Generator: autoencoder, latent prior and denoiser together make images."""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cxr_lightning.artifacts import check_product, load_network
from cxr_lightning.diffusion.priors import LatentPrior
from cxr_lightning.diffusion.process import x0_from_epsilon, x0_from_velocity
from cxr_lightning.diffusion.random import ImageNoise
from cxr_lightning.diffusion.samplers import Sampling, sample
from cxr_lightning.diffusion.schedule import alpha_bar
from cxr_lightning.errors import UserError
from cxr_lightning.networks.autoencoder import Autoencoder
from cxr_lightning.networks.unet import Denoiser
from cxr_lightning.types import Condition


class Generator(nn.Module):
    """Makes images of stated conditions, and reconstructs given images.

    New images: z ~ prior(condition), x_hat = decode(z), then the reverse diffusion given x_hat and
    the condition. Without a denoiser x_hat itself is the image (stage 1 alone); without an
    autoencoder the diffusion knows the condition only (the unconditional form of DiffuseVAE).

    Args:
        denoiser: Stage 2 or 4.
        autoencoder: Stage 1; comes with a prior.
        prior: Latent prior.
    """

    def __init__(
        self,
        denoiser: Denoiser | None,
        autoencoder: Autoencoder | None = None,
        prior: LatentPrior | None = None,
    ) -> None:
        super().__init__()
        if (autoencoder is None) != (prior is None) or (denoiser is None and prior is None):
            raise ValueError("a generator is a denoiser, or autoencoder and prior, or all three")
        self.denoiser = denoiser
        self.autoencoder = autoencoder
        self.prior = prior

    @classmethod
    def from_pretrained(cls, folder: Path, argument: str = "model") -> "Generator":
        """Loads a generator product, checked.

        Args:
            folder: The product.
            argument: The argument that named it, for error messages.

        Raises:
            UserError: If the product is absent, of another kind, incomplete or changed.
        """
        parts = check_product(folder, "generator", argument)["parts"]
        denoiser = load_network(Denoiser, folder / "denoiser")
        if "autoencoder" not in parts:
            return cls(denoiser).eval().requires_grad_(False)
        autoencoder = load_network(Autoencoder, folder / "autoencoder")
        prior = load_network(LatentPrior, folder / "prior")
        return cls(denoiser, autoencoder, prior).eval().requires_grad_(False)

    @property
    def image_size(self) -> int:
        """Height and width of the images in pixels."""
        network = self.denoiser if self.autoencoder is None else self.autoencoder
        assert network is not None
        return network.image_size

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.parameters()).device

    def check(self, sampling: Sampling) -> None:
        """Raises an error if the model cannot be sampled this way.

        Raises:
            UserError: If a value is out of its range, or needs what the model does not have.
        """
        if self.denoiser is None:
            return
        sampling.check(self.denoiser.timesteps)
        if sampling.start < 1.0 and self.autoencoder is None:
            raise UserError(
                f"start: {sampling.start} begins with the VAE's image, and an unconditional model "
                "has none; leave start out, or use a generator of form1 or form2."
            )

    @torch.no_grad()
    def generate(
        self,
        condition: Condition,
        index: Int[Tensor, " b"],
        sampling: Sampling = Sampling(),
        *,
        seed: int = 0,
    ) -> Float[Tensor, "b 1 h w"]:
        """New images in model range; image i depends on (seed, index i, its condition) alone.

        Args:
            condition: What each image shall show.
            index: Number of each image.
            sampling: Sampler, steps, guidance: the null branch keeps x_hat and knows no condition.
            seed: Seed of the set.

        Raises:
            UserError: If the sampling does not fit the model.
        """
        noise = ImageNoise(seed, index, self.device)
        z = None
        if self.prior is not None:
            z = self.prior(noise.normal(self.prior.noise_dim), condition)
        return self._refine(z, condition, noise, sampling)

    @torch.no_grad()
    def reconstruct(
        self,
        image: Float[Tensor, "b 1 h w"],
        condition: Condition,
        index: Int[Tensor, " b"],
        sampling: Sampling = Sampling(),
        *,
        seed: int = 0,
    ) -> Float[Tensor, "b 1 h w"]:
        """Images through the VAE and the reverse diffusion given their x_hat; model range.

        x_hat is the decoding of the posterior mean, as in `autoencode`, so that the two compare.

        Raises:
            UserError: If the generator has no autoencoder.
        """
        z, _ = self._needed_autoencoder().encode(image)
        noise = ImageNoise(seed, index, self.device)
        return self._refine(z, condition, noise, sampling)

    @torch.no_grad()
    def autoencode(self, image: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
        """The VAE's reconstruction alone, from the posterior mean; model range.

        Raises:
            UserError: If the generator has no autoencoder.
        """
        autoencoder = self._needed_autoencoder()
        return autoencoder.decode(autoencoder.encode(image)[0])

    def _needed_autoencoder(self) -> Autoencoder:
        if self.autoencoder is None:
            raise UserError(
                "generator: an unconditional model (model.form: uncond) has no autoencoder and "
                "reconstructs nothing; use a generator of form1 or form2."
            )
        return self.autoencoder

    def _refine(
        self,
        z: Float[Tensor, "b d"] | None,
        condition: Condition,
        noise: ImageNoise,
        sampling: Sampling,
    ) -> Float[Tensor, "b 1 h w"]:
        x_hat = None if z is None else self._needed_autoencoder().decode(z)
        if self.denoiser is None:
            assert x_hat is not None
            return x_hat
        denoiser = self.denoiser
        self.check(sampling)
        schedule = alpha_bar(denoiser.schedule, denoiser.timesteps)
        null = Condition.unknown(len(condition.value), condition.value.device)

        def estimate(y: Tensor, t: int) -> Tensor:
            a_t = float(schedule[t])
            predicted = predict_x0(denoiser, y, t, condition, x_hat, z, a_t)
            if not sampling.guided(t, denoiser.timesteps):
                return predicted
            # The noise is an affine function of x_0, so this is guidance of the noise.
            base = predict_x0(denoiser, y, t, null, x_hat, z, a_t)
            return base + sampling.guidance * (predicted - base)

        shape = (denoiser.channels, denoiser.image_size, denoiser.image_size)
        return sample(estimate, noise, shape, schedule, sampling, begin_with=x_hat)


def predict_x0(
    denoiser: Denoiser,
    y: Float[Tensor, "b c h w"],
    t: int,
    condition: Condition,
    x_hat: Float[Tensor, "b c h w"] | None,
    z: Float[Tensor, "b d"] | None,
    a_t: float,
) -> Float[Tensor, "b c h w"]:
    """The denoiser's estimate of the clean image at one step t with alpha_bar `a_t`."""
    steps = torch.full((len(y),), t, device=y.device)
    output: Tensor = denoiser(y, steps, condition, x_hat, z=z)
    invert = x0_from_epsilon if denoiser.prediction == "epsilon" else x0_from_velocity
    return invert(y, output, y.new_full((len(y),), a_t))
