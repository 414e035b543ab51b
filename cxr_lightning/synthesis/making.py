"""Making the images of a synthetic data set, or a share of them."""

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from cxr_lightning.data.requests import ImageRequests
from cxr_lightning.data.transforms import to_image
from cxr_lightning.data.writers import FORMATS, ImageFacts
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.samplers import Sampling
from cxr_lightning.errors import UserError
from cxr_lightning.synthesis.folder import SyntheticFolder
from cxr_lightning.synthesis.processes import Report
from cxr_lightning.synthesis.rejection import KEPT, Confirmer, Rejection, Verdict

ATTEMPT = 2**32
"""Attempt a of image i is the generator's image i + a 2^32: `ImageNoise` makes its stream from the
32-bit words of (seed, number), and so from (seed, i, a)."""


@dataclass(frozen=True)
class Plan:
    """All that a process needs to make images of a set.

    Attributes:
        model: The generator product.
        folder: Where the images go.
        requests: What each image shall show.
        sampling: How they are drawn.
        rejection: What a classifier has to confirm; None for nothing.
    """

    model: Path
    folder: SyntheticFolder
    requests: ImageRequests
    sampling: Sampling
    rejection: Rejection | None = None

    @property
    def tries(self) -> int:
        """Draws of an image at most."""
        return 1 if self.rejection is None else self.rejection.tries


class Candidate(NamedTuple):
    """A drawn image.

    Attributes:
        attempt: Which draw of the image it is, from 0.
        verdict: What the classifier says of it.
        pixels: Raw.
    """

    attempt: int
    verdict: Verdict
    pixels: UInt8[Tensor, "1 h w"]


class Draw(NamedTuple):
    """An image that is to be drawn.

    Attributes:
        image: Its number in the set.
        attempt: How often it was drawn before.
        best: The best of what was rejected before.
    """

    image: int
    attempt: int = 0
    best: Candidate | None = None

    def choose(self, new: Candidate) -> Candidate:
        """The better one of the new draw and the best before; the earlier one if they are alike."""
        before = self.best
        return new if before is None or new.verdict.rank() > before.verdict.rank() else before


def make_share(plan: Plan, device: str, images: Sequence[int], report: Report) -> None:
    """Makes some images of the set on a device.

    A rejected image is in the next batch again, before any new one, so that a kill costs the
    attempts of one batch at most.

    Raises:
        UserError: If a batch does not fit the GPU's memory, or the classifier is unusable.
    """
    generator = Generator.from_pretrained(plan.model).to(device)
    confirm = Confirmer(plan.rejection, torch.device(device)) if plan.rejection else None
    rows = plan.requests.rows()
    request = plan.folder.request
    encode = FORMATS[request.image_format].encode
    width = min(request.batch_size, len(plan.requests))
    waiting = deque(Draw(i) for i in images)
    with plan.folder.log() as log:
        while waiting:
            batch = [waiting.popleft() for _ in range(min(width, len(waiting)))]
            again = []
            for draw, candidate in zip(
                batch, _draw(generator, confirm, plan, batch, width), strict=False
            ):
                best = draw.choose(candidate)
                if candidate.verdict.confirmed is False and draw.attempt + 1 < plan.tries:
                    again.append(Draw(draw.image, draw.attempt + 1, best))
                    continue
                i, verdict = draw.image, best.verdict
                if confirm is not None:
                    record = {"index": i, "draws": draw.attempt + 1, "attempt": best.attempt}
                    log.write(json.dumps(record | {"confirmed": verdict.confirmed}) + "\n")
                    log.flush()  # before the image, so that no image lacks its record
                facts = ImageFacts(request.product["sha256"], request.seed, i, rows[i])
                plan.folder.write(i, encode(best.pixels[0].numpy(), facts))
            waiting.extendleft(reversed(again))
            report(len(batch) - len(again))


def _draw(
    generator: Generator, confirm: Confirmer | None, plan: Plan, batch: list[Draw], width: int
) -> list[Candidate]:
    """Draws images; the last one fills the batch, so that all batches have one shape and rounding.

    Returns:
        `width` candidates, those of the batch first.
    """
    padded = batch + batch[-1:] * (width - len(batch))
    asked = plan.requests.condition.rows(torch.tensor([draw.image for draw in padded]))
    number = torch.tensor([draw.image + ATTEMPT * draw.attempt for draw in padded])
    try:
        made = generator.sample(
            asked.to(generator.device), number, plan.sampling, seed=plan.folder.request.seed
        )
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"batch_size: {width} images at once do not fit the GPU's memory; use fewer."
        ) from error
    pixels = to_image(made).cpu()
    verdicts = [KEPT] * width if confirm is None else confirm(pixels, asked)
    return [
        Candidate(draw.attempt, verdict, image)
        for draw, verdict, image in zip(padded, verdicts, pixels, strict=True)
    ]
