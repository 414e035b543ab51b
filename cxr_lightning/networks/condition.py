"""Embedding of a condition."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cxr_lightning.types import FIELDS, Condition


class ConditionEmbedding(nn.Module):
    """A two-layer perceptron over the fields of a condition and their known-masks.

    A known field enters as its value moved to [-1, 1] and a one, an unknown field as two zeros. The
    first layer starts at zero: a field that the training data never knows leaves no trace.

    Args:
        width: Width of the embedding.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fields = nn.Linear(2 * len(FIELDS), width, bias=False)
        nn.init.zeros_(self.fields.weight)
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(width, width))

    def forward(self, condition: Condition) -> Float[Tensor, "b width"]:
        """Embedding of each image's condition."""
        known = condition.known.to(self.fields.weight.dtype)
        features = torch.cat([(2.0 * condition.value - 1.0) * known, known], dim=1)
        return self.mlp(self.fields(features))
