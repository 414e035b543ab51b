"""What travels between the parts: observations, conditions, batches.

Images have two forms only. Raw: uint8 (b, 1, h, w), 0 to 255, bright = dense. Model: float
(b, 1, h, w) in [-1, 1]. `cxr_lightning.data.transforms` converts between them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

OBSERVATIONS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""The 14 observations in CheXpert's column order (Irvin et al. 2019, arXiv 1901.07031)."""

MODEL_RANGE = (-1.0, 1.0)
"""Grey values that networks see; every product names it."""

NOT_ANNOTATED = -2.0
"""Label of an observation that nobody looked for in an image: neither negative nor "not mentioned"
(NaN). `n/a` in CSV files, so that common readers take it for a missing value."""

FIELDS = (*OBSERVATIONS, "PA", "Male", "Age")
"""What a condition can state: the observations (0 absent to 1 present), view (0 AP, 1 PA), sex
(0 female, 1 male), age (years / 100)."""


class Condition(NamedTuple):
    """What is known of a batch of radiographs; unknown is a value of its own.

    Attributes:
        value: One column a field of `FIELDS`, each in [0, 1]; 0 where unknown.
        known: Whether the value is known.
        uncertain: Whether the radiologist was said to be uncertain, and that is a class of its own
            (the policy U-MultiClass); never where the value is known.
        text: Embedding of a report or prompt, of length 1; 0 where there is no text. Without
            columns where texts are not used at all.
    """

    value: Float[Tensor, "b 17"]
    known: Bool[Tensor, "b 17"]
    uncertain: Bool[Tensor, "b 17"]
    text: Float[Tensor, "b e"]

    @property
    def observations(self) -> Float[Tensor, "b 14"]:
        """Values of the 14 observations."""
        return self.value[:, : len(OBSERVATIONS)]

    @property
    def observations_known(self) -> Bool[Tensor, "b 14"]:
        """Known-mask of the 14 observations."""
        return self.known[:, : len(OBSERVATIONS)]

    @staticmethod
    def of(
        value: Float[Tensor, "b 17"],
        known: Bool[Tensor, "b 17"],
        uncertain: Bool[Tensor, "b 17"] | None = None,
    ) -> "Condition":
        """A condition without text; by default without uncertain fields."""
        if uncertain is None:
            uncertain = torch.zeros_like(known)
        return Condition(value, known, uncertain, value.new_zeros(len(value), 0))

    @staticmethod
    def unknown(count: int, device: torch.device | str = "cpu") -> "Condition":
        """The null condition: nothing is known of any of `count` images."""
        value = torch.zeros(count, len(FIELDS), device=device)
        return Condition.of(value, torch.zeros_like(value, dtype=torch.bool))

    def keep(self, mask: Bool[Tensor, "b f"]) -> "Condition":
        """Makes every field unknown where `mask`, broadcast over (b, fields), is False."""
        known = self.known & mask
        value = torch.where(known, self.value, 0.0)
        return self._replace(value=value, known=known, uncertain=self.uncertain & mask)

    def keep_text(self, mask: Bool[Tensor, "b 1"]) -> "Condition":
        """Forgets the text of each image where `mask` is False."""
        return self._replace(text=self.text * mask)

    def rows(self, index: Int[Tensor, " n"] | Bool[Tensor, " b"] | slice) -> "Condition":
        """The condition of some images of the batch."""
        return Condition(*(part[index] for part in self))

    def to(self, device: torch.device | str) -> "Condition":
        """The condition on a device; to a GPU without waiting for the copy."""
        non_blocking = torch.device(device).type == "cuda"
        return Condition(*(part.to(device, non_blocking=non_blocking) for part in self))

    def features(self) -> Float[Tensor, "b 51"]:
        """Three columns a field: a known value moved to [-1, 1], 0 elsewhere; known; uncertain."""
        known, uncertain = self.known.float(), self.uncertain.float()
        return torch.cat([(2.0 * self.value - 1.0) * known, known, uncertain], dim=1)

    def text_features(self, columns: int) -> Float[Tensor, "b e1"]:
        """The text embedding, of mean square 1, and whether there is a text.

        Args:
            columns: e, what the embedding has; without any of its own all texts are unknown.

        Raises:
            ValueError: If it has another number of columns.
        """
        text = self.text
        if not text.shape[1]:
            text = text.new_zeros(len(text), columns)
        if text.shape[1] != columns:
            raise ValueError(f"`text` has {text.shape[1]} columns, and {columns} are needed")
        known = (text != 0.0).any(dim=1, keepdim=True)
        return torch.cat([columns**0.5 * text, known.to(text.dtype)], dim=1)

    @staticmethod
    def cat(conditions: Sequence["Condition"]) -> "Condition":
        """The rows of several conditions, one after the other."""
        return Condition(*(torch.cat(parts) for parts in zip(*conditions, strict=True)))


class Batch(NamedTuple):
    """A batch of radiographs.

    Attributes:
        image: Model form, float (b, 1, h, w) in [-1, 1]; raw uint8 between loader and device.
        condition: What is known of each image.
        index: Row of the prepared table, int64 (b,).
    """

    image: Float[Tensor, "b 1 h w"]
    condition: Condition
    index: Int[Tensor, " b"]  # type: ignore[assignment]  # hides tuple.index, unused here
