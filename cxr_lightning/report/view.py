"""All that the templates show, as plain values."""

from collections.abc import Sequence
from typing import Any

from cxr_lightning.evaluation.records import OVERALL
from cxr_lightning.report import cards, sections
from cxr_lightning.report.headline import HELD_OUT, headline, held_out
from cxr_lightning.report.read import Evaluation, unique
from cxr_lightning.report.tables import source_title
from cxr_lightning.report.words import fact, label

CONDITION_PARTS = ("conditions", "condition_subgroups", "joint", "calibrations")
UTILITY_PARTS = ("utility", "utility_scores", "utility_parts")
PRIVACY_PARTS = ("privacy", "privacy_parts", "nearest", "pairs")
SECTIONS = (
    ("results", "Results by health condition", ("rows",)),
    ("fidelity", "Fidelity", ("fidelity",)),
    ("subgroups", "By view, sex and age", ("by_subgroup",)),
    ("curves", "Grey levels, frequencies, number of images", ("curves",)),
    ("representation", "What the representation score means", ("representation",)),
    ("conditions", "Conditions: do the images show what was asked for?", CONDITION_PARTS),
    ("utility", "Utility: do they train a classifier?", UTILITY_PARTS),
    ("privacy", "Privacy: do they copy patients?", PRIVACY_PARTS),
    ("care", "Read with care", ("cautions", "left_out", "extractors_used")),
    ("cards", "Data and models", ("data_card", "model_card")),
    ("reproduce", "How to reproduce it", ("commands", "settings")),
    ("records", "All records", ("records",)),
    ("limits", "Limits", ("evaluations",)),
)
"""Sections of the page in order, with the parts of the view of which one is needed."""


def build_view(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """All that the templates show."""
    wholes = {e.name: overall(e) for e in evaluations}
    sources = {e.name: primary_source(e, evaluations) for e in evaluations}
    view = {
        "evaluations": [e.name for e in evaluations],
        "heads": [_head(e, wholes[e.name], sources[e.name]) for e in evaluations],
        "rows": _picture_rows(evaluations, sources),
        "fid_source": _shared_title(sources),
        "rrs_held_out": any(r.extractor == HELD_OUT for e in evaluations for r in e.select("rrs")),
        **sections.fidelity(evaluations, wholes),
        **sections.curves(evaluations),
        **sections.representation(evaluations),
        **sections.condition(evaluations),
        **sections.utility(evaluations),
        **sections.privacy(evaluations),
        **_cards(evaluations),
        "records": [(e.name, r) for e in evaluations for r in e.records],
    }
    return view | {"sections": [(i, title) for i, title, keys in SECTIONS if _any(view, keys)]}


def _any(view: dict[str, Any], keys: Sequence[str]) -> bool:
    return any(view[key] for key in keys)


def overall(evaluation: Evaluation) -> str:
    """The condition of the records over all images: `all`, or the only condition there is."""
    names = {r.condition for r in evaluation.records if r.axis == "fidelity"}
    return OVERALL if OVERALL in names or not evaluation.conditions else evaluation.conditions[0]


def primary_source(
    evaluation: Evaluation, evaluations: Sequence[Evaluation]
) -> tuple[str, str] | None:
    """The extractor of the Fréchet distance to show first: one that all share, if there is one."""
    order = [str(x.get("name")) for x in evaluation.metrics["extractors"]]
    found = _fid_sources(evaluation)
    found.sort(key=lambda s: order.index(s[0]) if s[0] in order else len(order))
    shared = [s for s in found if all(s in _fid_sources(e) for e in evaluations)]
    return next(iter(shared or found), None)


def _fid_sources(evaluation: Evaluation) -> list[tuple[str, str]]:
    return unique(r.source for r in evaluation.select("fid"))


def _shared_title(sources: dict[str, tuple[str, str] | None]) -> str:
    names = unique(source_title(s) for s in sources.values() if s)
    return ", ".join(names)


def _head(evaluation: Evaluation, whole: str, source: tuple[str, str] | None) -> dict[str, Any]:
    look = evaluation.look_up
    count, size = look("synthetic", "count"), look("real", "size")
    product = look("synthetic", "product_sha256")
    parts = [
        f"{count:,} synthetic images" if isinstance(count, int) else "",
        f"{size} × {size} pixels" if size else "",
        f"real data: {fact(look('real', 'source'))}" if look("real", "source") else "",
        fact(look("synthetic", "sampler")) if look("synthetic", "sampler") else "",
        f"{fact(look('synthetic', 'steps'))} steps" if look("synthetic", "steps") else "",
        f"guidance {fact(look('synthetic', 'guidance'))}"
        if look("synthetic", "guidance") is not None
        else "",
        f"product {str(product)[:8]}" if product else "",
    ]
    return {
        "name": evaluation.name,
        "facts": " · ".join(filter(None, parts)),
        "lines": headline(evaluation, whole, source),
    }


def _picture_rows(
    evaluations: Sequence[Evaluation], sources: dict[str, tuple[str, str] | None]
) -> list[dict[str, Any]]:
    """The method's table: condition, original, generated, FID, RRS."""
    rows: list[dict[str, Any]] = []
    names = unique(c for e in evaluations for c in e.conditions)
    for name in names or [OVERALL]:
        cells = [_picture_cell(e, name, sources[e.name]) for e in evaluations]
        if names or any(any(part for part in cell.values()) for cell in cells):
            original = next((c["original"] for c in cells if c["original"]), None)
            rows.append({"label": label(name), "original": original, "cells": cells})
    return rows


def _picture_cell(
    evaluation: Evaluation, condition: str, source: tuple[str, str] | None
) -> dict[str, Any]:
    return {
        "original": evaluation.grids.get(f"{condition}_original"),
        "generated": evaluation.grids.get(f"{condition}_generated"),
        "fid": evaluation.find("fid", condition, source=source),
        "rrs": next((r for r in held_out(evaluation, "rrs") if r.condition == condition), None),
    }


def _cards(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    return {
        "cautions": cards.cautions(evaluations),
        "left_out": cards.left_out(evaluations),
        "extractors_used": cards.extractors_used(evaluations),
        "data_card": cards.data_card(evaluations),
        "model_card": cards.model_card(evaluations),
        "settings": cards.settings(evaluations),
        "commands": [(e.name, c) for e in evaluations if (c := e.look_up("command"))],
        "definitions": cards.definitions(evaluations),
    }
