"""Embeddings of a condition and of a latent code."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cxr_lightning.types import FIELDS, Condition


class ConditionEmbedding(nn.Module):
    """A two-layer perceptron over the fields of a condition and their masks.

    A known field enters as its value moved to [-1, 1], a one and a zero, an uncertain one as two
    zeros and a one, an unknown one as three zeros. The first layer starts at zero: a field that the
    training data never knows leaves no trace. The same holds for the text.

    Args:
        width: Width of the embedding.
        text_dim: Columns of the text embedding; 0: texts are not looked at.
    """

    def __init__(self, width: int, text_dim: int = 0) -> None:
        super().__init__()
        self.text_dim = text_dim
        self.fields = _zero_linear(3 * len(FIELDS), width)
        self.text = _zero_linear(text_dim + 1, width) if text_dim else None
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(width, width))

    def forward(self, condition: Condition) -> Float[Tensor, "b width"]:
        """Embedding of each image's condition."""
        dtype = self.fields.weight.dtype
        h = self.fields(condition.features().to(dtype))
        if self.text is not None:
            h = h + self.text(condition.text_features(self.text_dim).to(dtype))
        return self.mlp(h)


class LatentEmbedding(nn.Module):
    """A two-layer perceptron over a latent code; a code that may not be seen is a value of its own.

    Args:
        latent_dim: Dimension of the code.
        width: Width of the embedding.
    """

    def __init__(self, latent_dim: int, width: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.code = _zero_linear(latent_dim + 1, width)
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(width, width))

    def forward(
        self, z: Float[Tensor, "b d"], known: Bool[Tensor, " b"]
    ) -> Float[Tensor, "b width"]:
        """Embedding of each image's latent code.

        Args:
            z: Latent codes.
            known: Which of them may be seen.
        """
        mask = known[:, None].to(z.dtype)
        return self.mlp(self.code(torch.cat([z * mask, mask], dim=1)))


def _zero_linear(inputs: int, width: int) -> nn.Linear:
    layer = nn.Linear(inputs, width, bias=False)
    nn.init.zeros_(layer.weight)
    return layer
