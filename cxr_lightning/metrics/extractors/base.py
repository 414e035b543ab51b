"""What all extractors share: the frozen network, and how its weights are found and read."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from cxr_lightning.errors import UserError
from cxr_lightning.networks.frozen import Frozen

SMOKE_TEST = "or use --extractor fixed for a smoke test"


class Extractor(Frozen[nn.Module]):
    """A frozen network that turns raw radiographs into feature vectors.

    Attributes:
        name: What results are filed under; tells extractors of one evaluation apart.
        num_features: Length of a feature vector.
        sha256: Of its weights.
        preprocessing: What happens to an image before the network sees it, for people.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        num_features: int,
        sha256: str,
        preprocessing: str,
    ) -> None:
        """Freezes `network`, a module from raw images (b, 1, h, w) to (b, num_features)."""
        super().__init__(network)
        self.name = name
        self.num_features = num_features
        self.sha256 = sha256
        self.preprocessing = preprocessing

    @torch.no_grad()
    def forward(self, raw: UInt8[Tensor, "b 1 h w"]) -> Float32[Tensor, "b f"]:
        """Features of raw radiographs, in fp32 also under autocast."""
        with torch.autocast(raw.device.type, enabled=False):
            features: Tensor = self.network(raw)
        return features.float()


class Recipe(NamedTuple):
    """An extractor whose package and weights are there, but not loaded yet.

    Attributes:
        name: Of the extractor.
        label: Name of the weights' file without its ending, of a product's run, or of a folder;
            empty if it has none.
        sha256: Of the weights.
        load: Builds it.
    """

    name: str
    label: str
    sha256: str
    load: Callable[[], Extractor]


def require_package(module: str, extractor: str, package: str) -> None:
    """Checks that an optional package is installed; the extra has the extractor's name.

    Raises:
        UserError: If `module` cannot be imported.
    """
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"extractor: {extractor} needs the package {package}; install it with "
            f"'pip install cxr_lightning[{extractor}]', {SMOKE_TEST}."
        )


@contextmanager
def reading(path: Path, content: str, remedy: str) -> Iterator[None]:
    """Turns whatever a damaged or a foreign file makes its reader raise into one sentence.

    Raises:
        UserError: If the body raises any exception.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the readers of torch, pickle and json raise some fifteen kinds
        raise UserError(f"extractor: {str(path)!r} does not hold {content}; {remedy}.") from error
