"""Frozen: a network that only answers."""

from typing import Generic, TypeVar

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
        self.register_load_state_dict_post_hook(_not_missing)

    def train(self, mode: bool = True) -> "Frozen[NetworkT]":
        """Stays in eval mode."""
        del mode
        return super().train(False)


def _drop_network(module: nn.Module, state: dict, prefix: str, metadata: dict) -> None:  # type: ignore[type-arg]
    for key in [key for key in state if key.startswith(f"{prefix}network.")]:
        del state[key]


def _not_missing(module: nn.Module, incompatible: "IncompatibleKeys") -> None:
    incompatible.missing_keys[:] = [k for k in incompatible.missing_keys if "network." not in k]
