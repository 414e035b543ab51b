"""What the images of a synthetic data set depend on."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from cxr_lightning.data.vocabulary import View
from cxr_lightning.data.writers import ImageFormat

FORMAT = 1
"""Of the manifest."""


@dataclass(frozen=True)
class RejectionRequest:
    """The classifier that confirms what images show.

    Attributes:
        classifier: SHA-256 of it.
        threshold: One for all observations; None for the classifier's own.
        tries: Draws of an image at most.
    """

    classifier: str
    threshold: float | None
    tries: int


@dataclass(frozen=True)
class Request:
    """What the images of a synthetic data set depend on; the same request gives the same files.

    Attributes:
        asked: SHA-256 of what each image shall show, which the labels of a prepared set decide too.
    """

    format: int
    kind: str
    version: str
    product: dict[str, str]
    conditions: list[str]
    prompts: list[str]
    text_encoder: str | None
    like: str | None
    balance: bool
    view: View | None
    count: int
    seed: int
    sampler: str
    steps: int
    guidance: float
    guidance_interval: tuple[float, float]
    eta: float
    spacing: str
    start: float
    precision: str
    batch_size: int
    size: int
    image_format: ImageFormat
    reject: RejectionRequest | None
    asked: str

    def facts(self) -> dict[str, Any]:
        """As the manifest states it."""
        facts: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return facts

    def difference(self, other: dict[str, Any]) -> str | None:
        """The first thing that another request has otherwise, in words; None if there is none.

        Args:
            other: Facts of the other request, or a whole manifest. Where the product lies does not
                matter.
        """
        for name, wanted in self.facts().items():
            there = other.get(name)
            if name == "product" and isinstance(there, dict):
                wanted, there = wanted["sha256"], there.get("sha256")
            if there != wanted:
                return f"{name} {there} there, {wanted} here"
        return None
