"""cxr_lightning: synthetic chest X-rays for stated health conditions, with an honest evaluation."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cxr_lightning.diffusion.generator import Generator
    from cxr_lightning.errors import UserError
    from cxr_lightning.types import Condition

__version__ = "0.1.0"

__all__ = ["Condition", "Generator", "UserError", "__version__"]

HOMES = {
    "Condition": "cxr_lightning.types",
    "Generator": "cxr_lightning.diffusion.generator",
    "UserError": "cxr_lightning.errors",
}
"""Where the public names are: imported when they are first asked for, since torch takes seconds."""


def __getattr__(name: str) -> Any:
    """A public name of another module."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES})
