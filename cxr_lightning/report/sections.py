"""The sections of the page by axis, as plain values."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from cxr_lightning.evaluation.records import OVERALL
from cxr_lightning.report import figures
from cxr_lightning.report.joint import joint_presence
from cxr_lightning.report.read import Evaluation, Measurement, unique
from cxr_lightning.report.tables import (
    Group,
    Scales,
    build_groups,
    condition_label,
    count_lines,
    scales,
    space_title,
)
from cxr_lightning.report.verdicts import REGIMES, fraction_label, regime_label
from cxr_lightning.report.words import METRICS, fact, label, metric_title, subgroup_label

CALIBRATION = {
    "rrs_floor_pixel": "resize round trip",
    "rrs_floor_augment": "two views of one image",
    "rrs_vae": "autoencoder alone",
    "rrs": "reconstruction",
    "rrs_ceil_view": "other patient, same condition and view",
    "rrs_ceil_same": "other patient, same condition",
    "rrs_ceil_random": "any other patient",
}
"""What an original is compared with, mostly from nearest to farthest."""

ENCODERS = {"encoder": "given", "encoder_held_out": "held out"}
"""What the table calls the encoders of the score."""

OPEN_LINES = 72
"""Lines of a table by condition that is shown without a click."""

FIRST_PAIRS = 6
PAIR_FACTS = ("condition", "space", "synthetic", "rank", "train_row", "flagged")
PAIR_NUMBERS = ("distance_train", "distance_held_out", "relative")


def _of_axis(axis: str, record: Measurement) -> bool:
    return record.metric in METRICS and METRICS[record.metric].axis == axis


def fidelity(evaluations: Sequence[Evaluation], wholes: dict[str, str]) -> dict[str, Any]:
    """All images together, by condition, and by view, sex and age."""

    def is_fidelity(record: Measurement) -> bool:
        return record.value is not None and _of_axis("fidelity", record)

    def is_whole(evaluation: Evaluation, record: Measurement) -> bool:
        place = (record.condition, record.subgroup)
        return is_fidelity(record) and place == (wholes[evaluation.name], OVERALL)

    def is_condition(evaluation: Evaluation, record: Measurement) -> bool:
        whole = is_whole(evaluation, record)
        return is_fidelity(record) and record.subgroup == OVERALL and not whole

    def is_subgroup(_: Evaluation, record: Measurement) -> bool:
        return is_fidelity(record) and record.subgroup != OVERALL

    found = [r for e in evaluations for r in e.records if is_fidelity(r)]
    overall = [r for e in evaluations for r in e.records if is_whole(e, r)]
    scale_of = scales(r for r in found if r.subgroup == OVERALL)
    used = [metric for metric in METRICS if any(r.metric == metric for r in found)]
    return {
        "fidelity": build_groups(
            evaluations, is_whole, False, lambda r: metric_title(r.metric), scale_of
        ),
        "by_condition": _by_source(evaluations, is_condition, condition_label, scale_of),
        "by_subgroup": _by_source(
            evaluations, is_subgroup, lambda r: subgroup_label(r.subgroup), None
        ),
        "meanings": [(metric_title(metric), METRICS[metric].meaning) for metric in used],
        "floor_meanings": unique(r.floor_meaning for r in overall if r.floor_meaning),
    }


def _by_source(
    evaluations: Sequence[Evaluation], choose: Any, row: Any, scale_of: Scales | None
) -> list[dict[str, Any]]:
    """A table an extractor, with a group a metric; short ones are open."""
    chosen = [r for e in evaluations for r in e.records if r.metric in METRICS and choose(e, r)]
    sources = unique(r.source for r in chosen)
    blocks: list[dict[str, Any]] = []
    for source in sources:
        groups = build_groups(
            evaluations,
            partial(_from_source, choose, source),
            True,
            row,
            scale_of,
        )
        if groups:
            title = space_title(source, sources)
            blocks.append({"title": title, "groups": groups, "lines": count_lines(groups)})
    for block in blocks:
        block["open"] = block["lines"] <= OPEN_LINES and block is blocks[0]
    return blocks


def _from_source(
    choose: Any, source: tuple[str, str], evaluation: Evaluation, record: Measurement
) -> bool:
    return bool(record.source == source and choose(evaluation, record))


def curves(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """The first plot of each kind, which is that of all conditions, and the others."""
    kinds = {
        "Grey levels": figures.histograms(evaluations),
        "Power spectrum": figures.spectra(evaluations),
        "FID by number of images": figures.fid_infinity(evaluations),
    }
    return {
        "curves": [
            {"title": title, "first": found[0], "more": found[1:]}
            for title, found in kinds.items()
            if found
        ]
    }


def representation(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """The scale of the representation score, by condition, evaluation and encoder."""

    def is_subgroup(_: Evaluation, record: Measurement) -> bool:
        return _of_axis("representation", record) and record.subgroup != OVERALL

    records = [r for e in evaluations for r in e.select(*CALIBRATION)]
    measured = {r.metric for r in records}
    largest = max((r.value or 0.0 for r in records), default=0.0)
    rows = []
    for name in unique(r.condition for r in records if r.metric == "rrs"):
        cells = [
            _calibrated(e, name, record.source, largest)
            for e in evaluations
            for record in e.select("rrs")
            if record.condition == name
        ]
        rows.append({"label": label(name), "cells": cells})
    several = len({r.extractor for r in records}) > 1
    return {
        "calibration": {m: title for m, title in CALIBRATION.items() if m in measured},
        "representation": rows,
        "encoders": several,
        "representation_subgroups": build_groups(
            evaluations,
            is_subgroup,
            True,
            lambda r: f"{label(r.condition)}, {subgroup_label(r.subgroup)}",
        ),
    }


def _calibrated(
    evaluation: Evaluation, condition: str, source: tuple[str, str], largest: float
) -> dict[str, Any]:
    """The scale of one encoder; with the pictures where it is the first one."""
    metrics = (*CALIBRATION, "nrrs")
    scores = {m: evaluation.find(m, condition, source=source) for m in metrics}
    marks = {
        m: round(100 * max(r.value or 0.0, 0.0) / largest, 2) if largest > 0 else 0.0
        for m in CALIBRATION
        if (r := scores[m])
    }
    first = evaluation.find("rrs", condition) is scores["rrs"]
    grids = evaluation.grids if first else {}
    return {
        "evaluation": evaluation.name,
        "encoder": ENCODERS.get(source[0], source[0]),
        "scores": scores,
        "marks": marks,
        "original": grids.get(f"{condition}_original"),
        "reconstruction": grids.get(f"{condition}_reconstruction"),
    }


def condition(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Whether the images show what was asked for."""

    def groups(subgroups: bool) -> list[Group]:
        return build_groups(
            evaluations,
            lambda _, r: _of_axis("condition", r) and (r.subgroup != OVERALL) is subgroups,
            True,
            (lambda r: f"{label(r.condition)}, {subgroup_label(r.subgroup)}")
            if subgroups
            else condition_label,
        )

    return {
        "conditions": groups(False),
        "condition_subgroups": groups(True),
        "joint": joint_presence(evaluations),
        "calibrations": figures.calibrations(evaluations),
    }


def utility(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """What synthetic images do for a classifier."""

    def groups(metric: str, whole: bool) -> list[Group]:
        def row(record: Measurement) -> str:
            parts = [regime_label(record)]
            if record.condition != OVERALL:
                parts.insert(0, label(record.condition))
            if record.subgroup != OVERALL:
                parts.insert(0, subgroup_label(record.subgroup))
            return ": ".join(parts)

        return build_groups(
            evaluations,
            lambda _, r: (
                r.metric == metric and ((r.condition, r.subgroup) == (OVERALL, OVERALL)) is whole
            ),
            True,
            row,
            part=fraction_label,
        )

    records = [r for e in evaluations for r in e.select("utility_auroc")]
    regimes = figures.regimes_of(r for r in records if r.condition == OVERALL)
    return {
        "utility": groups("utility_gain", True),
        "utility_scores": groups("utility_auroc", True),
        "utility_parts": [*groups("utility_gain", False), *groups("utility_auroc", False)],
        "utility_figures": figures.utility(evaluations),
        "regimes": [(figures.regime_style(r), REGIMES.get(r, r)) for r in regimes],
        "utility_seeds": _setting(records, "seeds"),
    }


def _setting(records: Sequence[Measurement], name: str) -> str:
    values = unique(fact(r.details[name]) for r in records if name in r.details)
    return values[0] if len(values) == 1 else ""


def privacy(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Whether training images were copied."""

    def groups(by_metric: bool, choose: Any, row: Any) -> list[Group]:
        return build_groups(
            evaluations, lambda _, r: _of_axis("privacy", r) and choose(r), by_metric, row
        )

    def is_whole(record: Measurement) -> bool:
        return (record.condition, record.subgroup) == (OVERALL, OVERALL)

    def part(record: Measurement) -> str:
        subgroup = "" if record.subgroup == OVERALL else f", {subgroup_label(record.subgroup)}"
        return label(record.condition) + subgroup

    return {
        "privacy": groups(False, is_whole, lambda r: metric_title(r.metric)),
        "privacy_parts": groups(True, lambda r: not is_whole(r), part),
        "nearest": figures.nearest(evaluations),
        "pairs": sorted(
            (p for e in evaluations for p in _pairs(e, len(evaluations) > 1)), key=_urgency
        ),
        "first_pairs": FIRST_PAIRS,
    }


def _pairs(evaluation: Evaluation, several: bool) -> list[dict[str, Any]]:
    """Close pairs with a picture."""
    found = []
    for pair in evaluation.metrics["pairs"]:
        picture = evaluation.pairs.get(str(pair.get("picture")).removesuffix(".png"))
        if picture is not None:
            known = {k: pair[k] for k in PAIR_FACTS if isinstance(pair.get(k), str | int)}
            numbers = {k: pair.get(k) for k in PAIR_NUMBERS}
            known |= {k: float(v) for k, v in numbers.items() if isinstance(v, int | float)}
            name = evaluation.name if several else ""
            found.append({**known, "picture": picture, "evaluation": name})
    return found


def _urgency(pair: dict[str, Any]) -> tuple[bool, float]:
    rank = pair.get("rank")
    return pair.get("flagged") is not True, float(rank) if isinstance(rank, int | float) else 0.0
