"""What the commands share that draw images from a generator."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from cxr_lightning.data.prompt import UNFOLLOWED, Prompt, parse_prompt
from cxr_lightning.data.vocabulary import parse_conditions
from cxr_lightning.diffusion.batches import padded_batches
from cxr_lightning.diffusion.cautions import rarely_seen
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.samplers import SamplerName, Sampling, SamplingPrecision
from cxr_lightning.diffusion.spacing import Spacing
from cxr_lightning.errors import UserError
from cxr_lightning.progress import progress_bar
from cxr_lightning.synthesis.devices import Rank, choose_devices
from cxr_lightning.types import Condition

T = TypeVar("T")


@dataclass(frozen=True)
class SamplingOptions:
    """How the images are drawn from the model.

    Args:
        sampler: ddpm (ancestral), ddim, dpmpp_2m, dpmpp_3m (DPM-Solver++),
            sde_dpmpp_2m (the same with fresh noise at each step) or unipc; consistency,
            with 1 to 4 steps, for products of configs/distill.yaml. Default: sde_dpmpp_2m, or what
            the model was tuned to.
        steps: Number of denoising steps; default: 20, or as the model was tuned.
        guidance: Weight of classifier-free guidance, of the latent prior (of new images) and the
            denoiser; 1 for none, larger for plainer conditions and less variety.
        guidance_interval: From and to which share of the diffusion steps there is guidance, such as
            0.2 0.8 (0 the clean image, 1 pure noise); default: all of them.
        eta: Stochasticity of ddim, 0 to 1.
        spacing: Of the steps: beta (closer at both ends), trailing (evenly in time) or logsnr
            (evenly in the log signal-to-noise ratio).
        start: Share of the diffusion to begin at; below 1 from the VAE's image, noised to there.
        precision: Of the denoiser: fp32, or bf16, faster on GPUs and on CPUs with instructions for
            it; grey values differ by rounding.
    """

    sampler: SamplerName | None = None
    steps: int | None = None
    guidance: float = Sampling.guidance
    guidance_interval: list[float] | None = None
    eta: float = Sampling.eta
    spacing: Spacing = Sampling.spacing
    start: float = Sampling.start
    precision: SamplingPrecision = Sampling.precision

    def choose(self, generator: Generator) -> Sampling:
        """How to sample this model; see `Generator.choose_sampling`."""
        return generator.choose_sampling(**vars(self))


USUAL = SamplingOptions()


def open_generator(
    model: str | Path, device: str, options: SamplingOptions
) -> tuple[Generator, Sampling]:
    """A generator on its device, and how to sample it.

    Raises:
        UserError: If there is no such product or device, or it cannot be sampled this way.
    """
    (target,) = choose_devices(device, 1, Rank())
    generator = Generator.from_pretrained(model, "model")
    sampling = options.choose(generator)
    return generator.to(target), sampling


def read_conditions(
    condition: str | None, prompt: list[str] | None, most: int = 1
) -> dict[str, Condition]:
    """What images shall show: name, or text, and one row each; nothing stated by default.

    Args:
        condition: Health conditions, separated by commas.
        prompt: Texts, in place of them; what was understood is printed.
        most: Number of them, at most.

    Raises:
        UserError: If one cannot be understood, both arguments are given, or too many.
    """
    check_exclusive({"condition": condition, "prompt": prompt})
    stated = {understood.text: understood.condition(1) for understood in read_prompts(prompt or [])}
    for asked in parse_conditions(condition) if condition is not None else []:
        stated[asked.name] = asked.request(1)
    if len(stated) > most:
        argument = "prompt" if condition is None else "condition"
        raise UserError(f"{argument}: {len(stated)} are given; give {most} at most.")
    return stated or {"unknown": Condition.unknown(1)}


def read_prompts(texts: list[str], *, has_encoder: bool = False) -> list[Prompt]:
    """Prompts, each text once; prints what was understood of each, and what no image follows.

    Args:
        texts: The prompts.
        has_encoder: Whether a text encoder reads them too.

    Raises:
        UserError: If one cannot be understood.
    """
    prompts = [parse_prompt(text) for text in dict.fromkeys(texts)]
    for understood in prompts:
        print(understood.describe())
        if understood.has_details and not has_encoder:
            print(UNFOLLOWED)
    return prompts


def warn_of_unseen(condition: Condition, generator: Generator) -> None:
    """Says which findings, views and sexes of a request were rare in training."""
    for caution in rarely_seen(condition, generator.manifest):
        print(f"warning: {caution}", file=sys.stderr)


def draw_all(
    draw: Callable[[list[T]], Float[Tensor, "b 1 h w"]], tiles: list[T], batch_size: int
) -> Float[Tensor, "n 1 h w"]:
    """An image of each of `tiles`, on the CPU, batch by batch of one shape."""
    drawn = []
    with progress_bar(total=len(tiles), unit="image") as bar:
        for part, padded in padded_batches(tiles, batch_size):
            drawn.append(draw(padded)[: len(part)].cpu())
            bar.update(len(part))
    return torch.cat(drawn)


def check_exclusive(sources: dict[str, Any]) -> Sequence[str]:
    """The arguments of these that were given, at most one.

    Raises:
        UserError: If there are two.
    """
    given = [name for name, value in sources.items() if value is not None]
    if len(given) > 1:
        raise UserError(
            f"{given[1]}: {sources[given[1]]} is given beside {given[0]}; give one of the two."
        )
    return given
