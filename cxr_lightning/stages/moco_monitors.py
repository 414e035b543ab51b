"""What stage 3 sees of the validation images, and the warning that it has collapsed."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Float, Int
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from cxr_lightning.metrics.collapse import describe_collapse
from cxr_lightning.networks.gather import all_rows

MONITORED = 4096
"""Validation images, over all ranks, that the monitors look at, and training images that the probe
is fitted on."""


class Seen(NamedTuple):
    """Validation images as the encoder sees them.

    Attributes:
        first: Embeddings of one view of each image.
        second: Those of another view.
        key: Those of the second view by the key encoder.
        features: Of the image itself.
        row: Its row in the prepared table.
    """

    first: Float[Tensor, "n d"]
    second: Float[Tensor, "n d"]
    key: Float[Tensor, "n d"]
    features: Float[Tensor, "n f"]
    row: Int[Tensor, " n"]


class Monitors:
    """The images of a validation, batch by batch, and whether the encoder is known to be collapsed.

    Attributes:
        collapsed: Whether the last validation found it so.
    """

    def __init__(self) -> None:
        self.collapsed = False
        self._batches: list[Seen] = []

    def clear(self) -> None:
        """Forgets the images."""
        self._batches = []

    def add(self, batch: Seen) -> None:
        """Takes the images of a batch."""
        self._batches.append(batch)

    def seen_by_all(self) -> Seen:
        """The images of all batches and ranks."""
        return Seen(*(all_rows(parts) for parts in zip(*self._batches, strict=True)))

    def warn_of_collapse(
        self, spreads: Mapping[str, Tensor], seen: Seen, categories: int, step: int
    ) -> None:
        """Warns when embeddings have become collapsed, once until they recover.

        Args:
            spreads: What `metrics.collapse.spread` says of the images.
            seen: The images.
            categories: Number of categories that they are drawn to.
            step: Training steps made.
        """
        images, dim = seen.first.shape
        reason = describe_collapse(dict(spreads), images, dim, categories)
        if reason is not None and not self.collapsed:
            rank_zero_warn(
                f"At step {step} {reason}: the encoder is collapsed or not trained yet; if this "
                "stays, lower --model.clustering.weight or train longer."
            )
        self.collapsed = reason is not None
