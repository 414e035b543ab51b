"""Names in functions exist: linters cannot say so, since to them jaxtyping's shapes are names."""

import builtins
import dis
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

import cxr_lightning

MODULES = [
    module.name
    for module in pkgutil.walk_packages(cxr_lightning.__path__, "cxr_lightning.")
    if module.name != "cxr_lightning.__main__"  # runs the command line
]


def loaded_globals(code: CodeType) -> Iterator[str]:
    """Names that a code and the functions in it look for in the module."""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL":
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from loaded_globals(constant)


def undefined(source: str, there: set[str]) -> set[str]:
    """Names that functions use and the module does not have."""
    return set(loaded_globals(compile(source, "source", "exec"))) - there - set(dir(builtins))


@pytest.mark.parametrize("name", MODULES)
def test_every_name_is_defined(name: str) -> None:
    module = importlib.import_module(name)
    source = Path(str(module.__file__)).read_text()
    assert undefined(source, set(vars(module))) == set()


def test_an_undefined_name_is_found() -> None:
    source = "def f(y):\n    return [(x, y, len(z)) for _ in range(w)]\n"
    assert undefined(source, {"x"}) == {"z", "w"}
