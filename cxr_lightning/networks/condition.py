"""Embedding of a condition."""

from jaxtyping import Float
from torch import Tensor, nn

from cxr_lightning.types import FIELDS, Condition


class ConditionEmbedding(nn.Module):
    """A two-layer perceptron over the fields of a condition and their masks.

    A known field enters as its value moved to [-1, 1], a one and a zero, an uncertain one as two
    zeros and a one, an unknown one as three zeros. The first layer starts at zero: a field that the
    training data never knows leaves no trace.

    Args:
        width: Width of the embedding.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fields = nn.Linear(3 * len(FIELDS), width, bias=False)
        nn.init.zeros_(self.fields.weight)
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(width, width))

    def forward(self, condition: Condition) -> Float[Tensor, "b width"]:
        """Embedding of each image's condition."""
        return self.mlp(self.fields(condition.features().to(self.fields.weight.dtype)))
