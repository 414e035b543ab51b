"""Frozen: a network that only answers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from torch import nn

NetworkT = TypeVar("NetworkT", bound=nn.Module)


class Frozen(nn.Module, Generic[NetworkT]):
    """Holds a network in eval mode without parameter gradients, whatever is called on the outside.

    Gradients still pass through to the network's input. Its weights stay out of the state dict:
    they are in the product that they came from.

    Attributes:
        network: The frozen network.
    """

    def __init__(self, network: NetworkT) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.register_state_dict_post_hook(_drop_network)
        self.register_load_state_dict_pre_hook(_keep_network)

    def train(self, mode: bool = True) -> "Frozen[NetworkT]":
        """Stays in eval mode."""
        del mode
        return super().train(False)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Everything in a module in eval mode for a while, then each part as it was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _drop_network(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}network.")]:
        del state[key]


def _keep_network(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Loads the network's own weights back, since the state dict has none."""
    assert isinstance(module, Frozen)
    own = module.network.state_dict(prefix=f"{prefix}network.")
    state.update(own)
