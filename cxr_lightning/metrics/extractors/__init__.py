"""Feature extractors: named, frozen, with the hash of their weights and their preprocessing.

To add one, write a function from the weights' path to a `Recipe` in a file of its own and enter it
in `EXTRACTORS`. Libraries are imported when an extractor is loaded, not before.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from cxr_lightning.errors import UserError
from cxr_lightning.metrics.extractors.base import Extractor, Recipe
from cxr_lightning.metrics.extractors.encoder import encoder_recipe
from cxr_lightning.metrics.extractors.fixed import fixed_recipe
from cxr_lightning.metrics.extractors.inception import inception_recipe
from cxr_lightning.metrics.extractors.module import module_recipe
from cxr_lightning.metrics.extractors.pixels import pixel_extractor
from cxr_lightning.metrics.extractors.rad_dino import rad_dino_recipe
from cxr_lightning.metrics.extractors.xrv import xrv_recipe

__all__ = [
    "EXTRACTORS",
    "Extractor",
    "build_extractor",
    "build_extractors",
    "extractor_names",
    "pixel_extractor",
]

EXTRACTORS: dict[str, Callable[[Path | None], Recipe]] = {
    "inception": inception_recipe,
    "xrv": xrv_recipe,
    "rad_dino": rad_dino_recipe,
    "encoder": encoder_recipe,
    "module": module_recipe,
    "fixed": fixed_recipe,
}


def extractor_names() -> tuple[str, ...]:
    """Names of all extractors."""
    return tuple(EXTRACTORS)


def build_extractor(name: str, weights: Path | None = None) -> Extractor:
    """Builds an extractor by name.

    Args:
        name: One of `extractor_names()`.
        weights: `inception`, `xrv`: a file (default: where their libraries keep it); `rad_dino`: a
            folder; `encoder`: an encoder product; `module`: a file; `fixed`: none.

    Raises:
        UserError: If the name is unknown, or the weights are missing or not usable.
    """
    return _recipe(name, weights).load()


def build_extractors(specs: list[str], encoder: Path | None = None) -> list[Extractor]:
    """Builds the extractors of a command line; all are checked before the first one is loaded.

    Those that share a name get distinct ones: `module:a` and `module:b` for a.pt and b.pt.

    Args:
        specs: Values of --extractor: a name, or name=weights.
        encoder: Product for `encoder` without weights.

    Raises:
        UserError: If one cannot be built or is there twice.
    """
    recipes: list[Recipe] = []
    for spec in specs:
        recipe = _recipe(*_parse(spec, encoder))
        if (recipe.name, recipe.sha256) in {(other.name, other.sha256) for other in recipes}:
            raise UserError(f"extractor: {spec!r} is there twice; leave one of them out.")
        recipes.append(recipe)
    extractors = [recipe.load() for recipe in recipes]
    for extractor, name in zip(extractors, _distinct_names(recipes), strict=True):
        extractor.name = name
    return extractors


def _recipe(name: str, weights: Path | None) -> Recipe:
    if name not in EXTRACTORS:
        raise UserError(
            f"extractor: {name!r} is not an extractor; use one of {', '.join(EXTRACTORS)}."
        )
    return EXTRACTORS[name](weights)


def _parse(spec: str, encoder: Path | None) -> tuple[str, Path | None]:
    name, equals, weights = spec.partition("=")
    if equals and not weights:
        raise UserError(f"extractor: {spec!r} names no weights; give {name}=PATH or {name} alone.")
    if weights:
        return name, Path(weights).expanduser()
    return name, encoder if name == "encoder" else None


def _distinct_names(recipes: list[Recipe]) -> list[str]:
    """Each name alone if it is the only one, else with its weights' label, else with their hash."""
    names = [recipe.name for recipe in recipes]
    for suffixes in ([r.label for r in recipes], [r.sha256[:8] for r in recipes]):
        count = Counter(names)
        names = [
            f"{name}:{suffix}" if count[name] > 1 else name
            for name, suffix in zip(names, suffixes, strict=True)
        ]
    return names
