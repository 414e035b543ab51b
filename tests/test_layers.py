"""Imports go one way."""

import ast
import re
import tomllib
from pathlib import Path

import cxr_lightning

ROOT = Path(cxr_lightning.__file__).parent
LAYERS = [
    {"errors", "files", "markdown", "progress", "ranges", "types"},
    {"model_card", "hub"},
    {"artifacts"},
    {"data", "networks"},
    {"diffusion", "losses"},
    {"metrics"},
    {"evaluation"},
    {"synthesis"},
    {"stages"},
    {"callbacks"},
    {"report"},
    {"commands"},
    {"arguments"},
    {"training"},
    {"benchmark"},
    {"cli"},
    {"__main__", "__init__"},  # the front door: it imports on demand
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
SEPARATE = {("data", "networks"), ("networks", "data")}
OF_AN_EXTRA = {"commands/endpoint.py"}  # imported where it is used itself
LIGHTNING_BELOW_STAGES = {"data/datamodule.py"}


def modules_of(path: Path) -> set[str]:
    """Dotted names that a file imports."""
    return imported(ast.parse(path.read_text()))


def imported(part: ast.AST) -> set[str]:
    """Dotted names that a part of a file imports."""
    names = set()
    for node in ast.walk(part):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def part_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0].removesuffix(".py")


def test_every_part_has_a_layer() -> None:
    parts = {part_of(path) for path in ROOT.rglob("*.py")}
    assert parts == set(RANK)


def test_imports_go_one_way() -> None:
    wrong = []
    for path in ROOT.rglob("*.py"):
        part = part_of(path)
        for name in modules_of(path):
            parts = name.split(".")
            if parts[0] != "cxr_lightning" or len(parts) == 1:
                continue
            other = parts[1]
            if RANK[other] > RANK[part] or (part, other) in SEPARATE:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_lightning_stays_in_stages_and_above() -> None:
    for path in ROOT.rglob("*.py"):
        below = RANK[part_of(path)] < RANK["stages"]
        if below and str(path.relative_to(ROOT)) not in LIGHTNING_BELOW_STAGES:
            assert not any(name.split(".")[0] == "lightning" for name in modules_of(path)), path


def test_only_one_lightning_namespace_and_wandb_in_callbacks_alone() -> None:
    for path in ROOT.rglob("*.py"):
        tops = {name.split(".")[0] for name in modules_of(path)}
        assert "pytorch_lightning" not in tops, path
        assert "wandb" not in tops or part_of(path) == "callbacks", path


def test_extras_are_imported_where_they_are_used() -> None:
    """So that the package works without them."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    needed = {name_of(requirement) for requirement in project["dependencies"]}
    extras = {
        name_of(requirement)
        for extra, requirements in project["optional-dependencies"].items()
        for requirement in requirements
        if extra != "dev"
    }
    assert {"pydicom", "transformers", "diffusers"} <= extras - needed
    for path in ROOT.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            at_once = not isinstance(node, ast.FunctionDef | ast.ClassDef)
            names = {name.split(".")[0] for name in imported(node)} if at_once else set()
            of_an_extra = str(path.relative_to(ROOT)) in OF_AN_EXTRA
            assert of_an_extra or not names & (extras - needed), path


def name_of(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return found[0].replace("-", "_")
