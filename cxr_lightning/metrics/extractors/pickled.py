"""Reads the tensors of a pickled network without running anything that the file names."""

import pickle
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn


class _Inert(nn.Module):
    """Stands for each layer of a pickled network: holds its tensors and does nothing."""


class _Function:
    """A function that a pickle may call but not change; a bare one takes new attributes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"{self.function} must not be changed")


# What the pickles of torch.save call to build tensors and containers; THNN: torch < 1.4.
_BUILDERS: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "__builtin__.set": set,
    "torch._utils._rebuild_parameter": _Function(torch._utils._rebuild_parameter),
    "torch._utils._rebuild_tensor_v2": _Function(torch._utils._rebuild_tensor_v2),
    "torch.nn.backends.thnn._get_thnn_function_backend": _Function(lambda: None),
}


def read_network(path: Path, classes: Iterable[str]) -> dict[str, Tensor]:
    """The state dict in a file that holds a network, or a state dict, by torch.save.

    Zip files (torch >= 1.6) go through `torch.load(weights_only=True)`. That refuses every network
    in the older format, whatever is declared safe, since there a class is stored beside its source
    code; so those go through an unpickler that is as narrow: it knows the functions that build
    tensors, and `classes`, for all of which it puts an inert module. No code of the file or of the
    classes runs.

    Args:
        path: The file.
        classes: Full names of the layers' classes that may occur.

    Raises:
        Exception: Of many kinds, if the file is damaged or names anything else.
    """
    known = _BUILDERS | dict.fromkeys(classes, _Inert)
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # as torch.load decides
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the inert modules' source is not that of the classes
        content = (_load_zip if zipped else _load_old)(path, known)
    state = content.state_dict() if isinstance(content, nn.Module) else content
    if not isinstance(state, dict):
        raise TypeError(f"{path} holds a {type(state).__name__}")
    return dict(state)


def _load_zip(path: Path, known: dict[str, Any]) -> Any:
    with torch.serialization.safe_globals([(known[name], name) for name in known]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _load_old(path: Path, known: dict[str, Any]) -> Any:
    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if f"{module}.{name}" not in known:
                raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
            return known[f"{module}.{name}"]

    def load(file: IO[bytes], **options: Any) -> Any:
        return Unpickler(file, **options).load()

    reader = types.SimpleNamespace(__name__="pickle", Unpickler=Unpickler, load=load)
    return torch.load(path, map_location="cpu", pickle_module=reader, weights_only=False)
