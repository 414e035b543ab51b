"""What the file of a synthetic image says of it."""

from dataclasses import dataclass
from typing import Any, Literal

from cxr_lightning import __version__

Share = Literal["yes", "partly"]


@dataclass(frozen=True)
class ImageFacts:
    """What the file of a synthetic image says of it.

    Attributes:
        product: SHA-256 of the generator product.
        seed: Of the set.
        index: Number of the image in the set, from 0.
        row: What was asked for in CheXpert's columns but `Path`; see `ImageRequests.rows`.
    """

    product: str
    seed: int
    index: int
    row: dict[str, Any]

    def texts(self) -> dict[str, str]:
        """Name and value of what any format can hold as text."""
        return synthetic_texts(self.product)


def synthetic_texts(product: str | None, share: Share = "yes") -> dict[str, str]:
    """Name and value of what every file of a synthetic image says.

    Args:
        product: SHA-256 of the generator product; None of networks in training.
        share: Whether all of the picture is synthetic.
    """
    texts: dict[str, str] = {"Synthetic": share, "Software": f"cxr_lightning {__version__}"}
    return texts if product is None else texts | {"Product-SHA256": product}
