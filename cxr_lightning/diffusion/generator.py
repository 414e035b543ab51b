"""Generator: autoencoder, latent prior and denoiser together make images."""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cxr_lightning.artifacts import check_product, load_network
from cxr_lightning.data.policies import LabelPolicy, read_policy
from cxr_lightning.data.prompt import Prompt, parse_request
from cxr_lightning.data.text_encoder import TextEncoder, check_text_encoder
from cxr_lightning.data.transforms import to_image
from cxr_lightning.data.vocabulary import HealthCondition, View
from cxr_lightning.diffusion.batches import padded_batches
from cxr_lightning.diffusion.cautions import rarely_seen, unfollowed
from cxr_lightning.diffusion.priors import LatentPrior
from cxr_lightning.diffusion.process import x0_from_output
from cxr_lightning.diffusion.random import EvenNoise, ImageNoise, Noise
from cxr_lightning.diffusion.samplers import (
    MOST,
    SamplerName,
    Sampling,
    SamplingPrecision,
    read_interval,
    sample,
)
from cxr_lightning.diffusion.schedule import alpha_bar
from cxr_lightning.diffusion.spacing import Spacing
from cxr_lightning.diffusion.synthetic_images import SyntheticImages
from cxr_lightning.errors import UserError
from cxr_lightning.hub import find_product
from cxr_lightning.networks.autoencoder import Autoencoder
from cxr_lightning.networks.unet import Denoiser
from cxr_lightning.ranges import check_range
from cxr_lightning.types import Condition


class Generator(nn.Module):
    """Makes images of stated conditions, and reconstructs given images.

    New images: z ~ prior(condition), x_hat = decode(z), then the reverse diffusion given x_hat and
    the condition. Without a denoiser x_hat itself is the image (stage 1 alone); without an
    autoencoder the diffusion knows the condition only (the unconditional form of DiffuseVAE).

        generator = Generator.from_pretrained("runs/finetune/product").to("cuda")
        generator.generate("mild pleural effusion, PA view, 60-year-old man", count=8)

    Args:
        denoiser: Stage 2 or 4.
        autoencoder: Stage 1; comes with a prior.
        prior: Latent prior.

    Attributes:
        manifest: What the product says of itself; empty for networks in training.
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
        self.manifest: dict[str, Any] = {}

    @classmethod
    def from_pretrained(
        cls, model: Path | str, argument: str = "model", *, revision: str | None = None
    ) -> "Generator":
        """Loads a generator product, checked; in eval mode, on the CPU.

        Args:
            model: Its folder, or, where no such folder is, its name on the Hugging Face Hub, as
                `org/name`; see `find_product`.
            argument: The argument that named it, for error messages.
            revision: Branch, tag or commit on the Hub.

        Raises:
            UserError: If the product is absent, of another kind, incomplete or changed, or the Hub
                does not give it.
        """
        folder = find_product(model, argument, revision).folder
        manifest = check_product(folder, "generator", argument)
        generator = cls(load_network(Denoiser, folder / "denoiser"))
        if "autoencoder" in manifest["parts"]:
            generator.autoencoder = load_network(Autoencoder, folder / "autoencoder")
            generator.prior = load_network(LatentPrior, folder / "prior")
        generator.eval().requires_grad_(False)
        generator.manifest = manifest
        return generator

    @property
    def image_size(self) -> int:
        """Height and width of the images in pixels."""
        network = self.denoiser if self.autoencoder is None else self.autoencoder
        assert network is not None
        return network.image_size

    @property
    def own_sampling(self) -> Sampling | None:
        """How the images must be made, where the model was tuned to one sampler."""
        return Sampling(**self.manifest["sampling"]) if "sampling" in self.manifest else None

    @property
    def label_policy(self) -> LabelPolicy:
        """What -1 and blank meant in training, where the product knows."""
        return read_policy(self.manifest.get("config", {}).get("data") or {})

    @property
    def text_encoder(self) -> str | None:
        """Hash of the text encoder that the model was trained with; None without one."""
        found: str | None = self.manifest.get("parents", {}).get("text_encoder")
        return found

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.parameters()).device

    def choose_sampling(
        self,
        sampler: SamplerName | None = None,
        steps: int | None = None,
        guidance_interval: Sequence[float] | None = None,
        **others: Any,
    ) -> Sampling:
        """How to sample the model.

        Args:
            sampler: By default what the model was tuned to, or that of `Sampling`.
            steps: Number of denoising steps; likewise.
            guidance_interval: Two numbers; None for all steps.
            others: Further fields of `Sampling`.

        Raises:
            UserError: If the model cannot be sampled this way.
        """
        usual = self.own_sampling or Sampling()
        sampling = Sampling(
            usual.sampler if sampler is None else sampler,
            usual.steps if steps is None else steps,
            guidance_interval=read_interval(guidance_interval),
            **others,
        )
        self.check(sampling)
        return sampling

    def check(self, sampling: Sampling) -> None:
        """Raises an error if the model cannot be sampled this way.

        Raises:
            UserError: If a value is out of its range, or needs what the model does not have.
        """
        if self.denoiser is None:
            return
        sampling.check(self.denoiser.timesteps)
        settings = self.manifest.get("config", {}).get("model", {}).get("init_args", {})
        if sampling.guidance != 1.0 and settings.get("drop_condition") == 0.0:
            raise UserError(
                f"guidance: {sampling.guidance} needs a model that was trained without its "
                "condition at times, but model.drop_condition of this one was 0; use 1, or train "
                "it with 0.1."
            )
        own = self.own_sampling
        if own is not None and sampling.sampler != own.sampler:
            raise UserError(
                f"sampler: {sampling.sampler} does not suit this model, which was tuned to few "
                f"steps of another; use sampler {own.sampler} and steps 1 to {MOST}, best "
                f"{own.steps}."
            )
        if sampling.start < 1.0 and self.autoencoder is None:
            raise UserError(
                f"start: {sampling.start} begins with the VAE's image, and an unconditional model "
                "has none; leave start out, or use a generator of form1 or form2."
            )

    def generate(
        self,
        request: str | HealthCondition | Prompt | Condition,
        count: int = 1,
        *,
        view: View | None = None,
        seed: int = 0,
        first: int = 0,
        sampler: SamplerName | None = None,
        steps: int | None = None,
        guidance: float = Sampling.guidance,
        guidance_interval: Sequence[float] = Sampling.guidance_interval,
        eta: float = Sampling.eta,
        spacing: Spacing = Sampling.spacing,
        start: float = Sampling.start,
        precision: SamplingPrecision = Sampling.precision,
        batch_size: int = 64,
        text_encoder: Path | str | None = None,
    ) -> SyntheticImages:
        """Synthetic radiographs of a stated condition, as `cxr generate` makes them.

        Image i depends on the product, the seed and i alone, and has the grey values of image i of
        `cxr generate` with the same request, seed and batch size; another batch size or device can
        round a few pixels to the next grey value. What of a prompt could not be used, and what few
        training images show, is warned of.

        Args:
            request: A health condition, such as "pneumonia+pleural_effusion"; any other text is a
                prompt, such as "mild pleural effusion, PA view, 60-year-old man"; or a `Condition`,
                of which every row is asked for.
            count: Number of images; of a `Condition`, of each row, one row after the other.
            view: AP or PA, with a health condition; by default the model chooses.
            seed: Seed of the set.
            first: Number of the first image: 8 goes on where a call with `count` 8 ended.
            sampler: See `Sampling`, also for the following ones; default: `sde_dpmpp_2m`, or what
                the model was tuned to.
            steps: Number of denoising steps; default: 20, or as the model was tuned.
            guidance: Weight of classifier-free guidance, of latent prior and denoiser; 1 for none.
            guidance_interval: Where there is guidance.
            eta: Stochasticity of ddim.
            spacing: How the steps are spread.
            start: Share of the diffusion to begin at.
            precision: `fp32` or `bf16`.
            batch_size: Images made at once.
            text_encoder: With a prompt: folder of the text encoder that the model was trained with.

        Raises:
            UserError: If the text cannot be read, or a value does not fit the model.
        """
        for argument, number, least in (
            ("count", count, 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("first", first, 0),
        ):
            check_range(argument, number, least)
        sampling = self.choose_sampling(
            sampler,
            steps,
            guidance_interval,
            guidance=guidance,
            eta=eta,
            spacing=spacing,
            start=start,
            precision=precision,
        )
        asked = parse_request(request) if isinstance(request, str) else request
        prompt = asked if isinstance(asked, Prompt) else None
        encoder = self._load_text_encoder(text_encoder, prompt)
        condition = _condition_of(asked, count, view, encoder)
        if not len(condition.value):
            raise UserError("request: a condition of no row asks for no image; give one or more.")
        unread = [] if prompt is None else unfollowed(prompt, has_encoder=encoder is not None)
        for caution in [*unread, *rarely_seen(condition, self.manifest)]:
            warnings.warn(caution, stacklevel=2)
        rows = range(len(condition.value))
        images = []
        for batch, padded in padded_batches(rows, min(batch_size, len(rows))):
            wanted = condition.rows(torch.tensor(padded)).to(self.device)
            made = self.sample(wanted, torch.tensor(padded) + first, sampling, seed=seed)
            images.append(to_image(made)[: len(batch), 0].cpu().numpy())
        return SyntheticImages(
            pixels=np.concatenate(images),
            condition=condition,
            numbers=tuple(row + first for row in rows),
            seed=seed,
            prompt=prompt,
            product_sha256=self.manifest.get("sha256"),
        )

    def _load_text_encoder(
        self, folder: Path | str | None, prompt: Prompt | None
    ) -> TextEncoder | None:
        if folder is None:
            return None
        if prompt is None:
            raise UserError(f"text_encoder: {folder} reads prompts, and the request is none.")
        return check_text_encoder(Path(folder), self.text_encoder, "text_encoder")

    @torch.no_grad()
    def sample(
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
            sampling: Sampler, steps, guidance: of the latent prior, and of the denoiser, whose null
                branch keeps x_hat and knows no condition.
            seed: Seed of the set.

        Raises:
            UserError: If the sampling does not fit the model.
        """
        noise = ImageNoise(seed, index, self.device)
        z = self.draw_latent(condition, noise, sampling.guidance)
        return self.refine(z, condition, noise, sampling)

    @torch.no_grad()
    def draw_latent(
        self, condition: Condition, noise: Noise, guidance: float = 1.0
    ) -> Float[Tensor, "b d"] | None:
        """Latent codes from the prior and the next numbers of the noise; None without a prior."""
        if self.prior is None:
            return None
        z: Tensor = self.prior(noise.normal(self.prior.noise_dim), condition, guidance)
        return z

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
        z = self.encode(image)
        noise = ImageNoise(seed, index, self.device)
        return self.refine(z, condition, noise, sampling)

    @torch.no_grad()
    def autoencode(self, image: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
        """The VAE's reconstruction alone, from the posterior mean; model range.

        Raises:
            UserError: If the generator has no autoencoder.
        """
        return self._needed_autoencoder().decode(self.encode(image))

    @torch.no_grad()
    def encode(self, image: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b d"]:
        """Latent codes of images in model range: the posterior means.

        Raises:
            UserError: If the generator has no autoencoder.
        """
        return self._needed_autoencoder().encode(image)[0]

    def _needed_autoencoder(self) -> Autoencoder:
        if self.autoencoder is None:
            raise UserError(
                "generator: an unconditional model (model.form: uncond) has no autoencoder and "
                "reconstructs nothing; use a generator of form1 or form2."
            )
        return self.autoencoder

    @torch.no_grad()
    def refine(
        self,
        z: Float[Tensor, "b d"] | None,
        condition: Condition,
        noise: Noise,
        sampling: Sampling = Sampling(),
        *,
        other: tuple[Condition, Float[Tensor, " b"]] | None = None,
    ) -> Float[Tensor, "b 1 h w"]:
        """Images of given latent codes and noise; model range.

        Args:
            z: Latent codes; None for an unconditional model.
            condition: What the images show.
            noise: Noise of the diffusion, made as strong in every image.
            sampling: Sampler, steps, guidance.
            other: A second condition, and its share s of each image, 0 to 1: the estimate of the
                clean image is (1 - s) that of `condition` plus s that of the other.

        Raises:
            UserError: If the sampling does not fit the model.
        """
        x_hat = None if z is None else self._needed_autoencoder().decode(z)
        if self.denoiser is None:
            assert x_hat is not None
            return x_hat
        denoiser = self.denoiser
        self.check(sampling)
        schedule = alpha_bar(denoiser.schedule, denoiser.timesteps)
        null = Condition.unknown(len(condition.value), condition.value.device)

        predict = partial(predict_x0, denoiser, bf16=sampling.precision == "bf16")

        def estimate(y: Tensor, t: int) -> Tensor:
            a_t = float(schedule[t])
            predicted = predict(y, t, condition, x_hat, z, a_t)
            if other is not None:
                # The score of p(y_t | c)^(1 - s) p(y_t | c')^s (Liu et al. 2022, arXiv 2206.01714).
                second = predict(y, t, other[0], x_hat, z, a_t)
                predicted = torch.lerp(predicted, second, other[1][:, None, None, None])
            if not sampling.guided(t, denoiser.timesteps):
                return predicted
            # The noise is an affine function of x_0, so this is guidance of the noise.
            base = predict(y, t, null, x_hat, z, a_t)
            return base + sampling.guidance * (predicted - base)

        shape = (denoiser.channels, denoiser.image_size, denoiser.image_size)
        even = EvenNoise(noise)
        return sample(estimate, even, shape, schedule, sampling, begin_with=x_hat)


def _condition_of(
    asked: HealthCondition | Prompt | Condition,
    count: int,
    view: View | None,
    encoder: TextEncoder | None,
) -> Condition:
    """One row an image."""
    if view not in (None, *get_args(View)):
        raise UserError(f"view: {view!r} is not known; use {' or '.join(get_args(View))}.")
    if isinstance(asked, HealthCondition):
        return asked.request(count, view)
    if view is not None:
        source = "a prompt" if isinstance(asked, Prompt) else "a condition"
        raise UserError(
            f"view: {view} is given beside {source}, which states views itself; leave it out."
        )
    if isinstance(asked, Prompt):
        return asked.condition(count, encoder)
    condition = asked.to("cpu")
    return condition.rows(torch.arange(len(condition.value)).repeat_interleave(count))


def predict_x0(
    denoiser: Denoiser,
    y: Float[Tensor, "b c h w"],
    t: int,
    condition: Condition,
    x_hat: Float[Tensor, "b c h w"] | None,
    z: Float[Tensor, "b d"] | None,
    a_t: float,
    *,
    bf16: bool = False,
) -> Float[Tensor, "b c h w"]:
    """The denoiser's estimate of the clean image at one step t with alpha_bar `a_t`; fp32.

    With `bf16` the denoiser computes in bfloat16 where autocast does.
    """
    steps = torch.full((len(y),), t, device=y.device)
    with torch.autocast(y.device.type, torch.bfloat16, enabled=bf16):
        output: Tensor = denoiser(y, steps, condition, x_hat, z=z)
    return x0_from_output(denoiser.prediction, y, output, y.new_full((len(y),), a_t))
