"""The headline: a line an axis, with its key number and what real images reach."""

from collections.abc import Callable, Sequence

from cxr_lightning.evaluation.records import OVERALL, TOO_CLOSE
from cxr_lightning.report.privacy_line import privacy_line
from cxr_lightning.report.read import Evaluation, Measurement
from cxr_lightning.report.verdicts import (
    REGIMES,
    AxisLine,
    Verdict,
    compare,
    fraction_label,
    gain,
    regime_of,
    simultaneous,
)
from cxr_lightning.report.words import (
    AXES,
    METRICS,
    SPACE,
    label,
    metric_title,
    number,
    percent,
    range_text,
    value_text,
)

HELD_OUT = "encoder_held_out"

GAINS = {
    "helps": "helps a classifier",
    "harms": "harms a classifier",
    "no measurable effect": "no measurable gain for a classifier",
}


def headline(
    evaluation: Evaluation, overall: str, source: tuple[str, str] | None
) -> list[AxisLine]:
    """A line for each axis.

    Args:
        evaluation: The evaluation.
        overall: Condition of the records over all images.
        source: Extractor of the Fréchet distance.
    """
    lines: dict[str, Callable[[], AxisLine | None]] = {
        "fidelity": lambda: _fidelity(evaluation, overall, source),
        "representation": lambda: _representation(evaluation),
        "condition": lambda: _conditions(evaluation),
        "utility": lambda: _utility(evaluation),
        "privacy": lambda: privacy_line(evaluation),
    }
    return [line() or _any(evaluation, axis) for axis, line in lines.items()]


def _fidelity(
    evaluation: Evaluation, overall: str, source: tuple[str, str] | None
) -> AxisLine | None:
    record = evaluation.find("fid", overall, source=source)
    if record is None:
        return None
    if record.better is None:
        parts = _by_condition(evaluation, record)
        asked = len(evaluation.metrics["conditions"])
        return _fidelity_of_conditions(parts, asked) if parts else _other_mix(record)
    at_n = f" at n = {record.floor_n}" if record.floor_n else ""
    note = f"FID{at_n}, features of {record.extractor}"
    if record.value_at_floor_n is not None:
        note += f"; {number(record.value)} with all images"
    return _line("fidelity", record, _distance_words(record), note)


def _by_condition(evaluation: Evaluation, overall: Measurement) -> list[Measurement]:
    """The distances of the conditions by the same extractor, at one number of images if it can."""
    for metric in ("fid_equal_n", "fid"):
        found = [
            r
            for r in evaluation.select(metric)
            if r.source == overall.source and r.passed is not None
        ]
        if found:
            return found
    return []


def _other_mix(record: Measurement) -> AxisLine:
    """The line where no condition can be compared, nor all of them together."""
    words = "no comparison: other shares of the conditions, of which none has enough images"
    note = f"FID with all images, features of {record.extractor}"
    verdict = Verdict("none", words)
    return AxisLine(AXES["fidelity"], verdict, number(record.value), note, "", "")


def _fidelity_of_conditions(parts: Sequence[Measurement], asked: int) -> AxisLine:
    """The line where the sets mix the conditions otherwise, so that only these are compared.

    Args:
        parts: The distances of conditions that can be compared.
        asked: Conditions that the evaluation has.
    """
    closest = min(parts, key=lambda r: r.ratio if r.ratio is not None else TOO_CLOSE)
    worst = max(parts, key=lambda r: (r.passed is False, r.ratio or 0.0))
    if closest.ratio is not None and closest.ratio < TOO_CLOSE:
        worst = closest
    verdict = _distance_words(worst)
    if verdict.symbol == "worse" and len({r.ratio for r in parts}) > 1:
        verdict = Verdict("worse", f"{verdict.text}, in the worst of {len(parts)} conditions")
    if verdict.symbol == "ok" and len(parts) < asked:
        count = f"{len(parts)} of {asked} conditions"
        words = f"{verdict.text} in {count}; the others cannot be compared"
        verdict = Verdict("none", words)
    floors = [r.real_floor for r in parts if r.real_floor is not None]
    sizes = {r.floor_n for r in parts}
    at_n = f" at n = {worst.floor_n}" if len(sizes) == 1 else ""
    of = f"{len(parts)} conditions" if len(parts) > 1 else label(worst.condition)
    return AxisLine(
        AXES["fidelity"],
        verdict,
        _range([r.compared for r in parts if r.compared is not None]),
        f"FID, {of}{at_n}, features of {worst.extractor}",
        _range(floors),
        "real against real, other patients",
    )


def _distance_words(record: Measurement) -> Verdict:
    ratio = record.ratio
    if ratio is None:
        return Verdict("none", "no comparison: too few real images for a floor")
    if ratio < TOO_CLOSE:
        return Verdict("worse", "much closer than real images to each other, as copies are")
    if record.passed:
        return Verdict("ok", "as close as real images are to each other")
    return Verdict("worse", f"{number(ratio)}{SPACE}× as far as real images are from each other")


def _representation(evaluation: Evaluation) -> AxisLine | None:
    scores = held_out(evaluation, "rrs")
    if not scores:
        return None
    count = sum(record.n_synthetic or 0 for record in scores)
    note = "RRS" + (f", {len(scores)} conditions" if len(scores) > 1 else "")
    note += f", {count} reconstructions" if count else ""
    note += ", held-out encoder" if scores[0].extractor == HELD_OUT else ""
    source = scores[0].source
    ratios, ceilings = (
        [r for r in evaluation.select(metric) if r.source == source]
        for metric in ("nrrs", "rrs_ceil_same")
    )
    others = [r.value for r in ceilings if r.value is not None]
    return AxisLine(
        "Representation",
        _ratio_words(ratios, len(scores)),
        _range([r.value for r in scores if r.value is not None]),
        note,
        _range(others) if others else "",
        "another patient of the same condition" if others else "",
    )


def held_out(evaluation: Evaluation, metric: str) -> list[Measurement]:
    """The records of a score by the held-out encoder, which flatters nobody, if there is one."""
    records = list(evaluation.select(metric))
    return [r for r in records if r.extractor == HELD_OUT] or records


def _ratio_words(ratios: Sequence[Measurement], conditions: int) -> Verdict:
    """What the ratios to another patient say, where there is one in so many conditions."""
    values = [r.value for r in ratios if r.value is not None]
    if not values:
        return Verdict("none", "no comparison: no other patient of the same condition")
    shares = percent(round(min(values), 2))
    if len({percent(round(v, 2)) for v in values}) > 1:
        shares = f"{shares.removesuffix(SPACE + '%')} to {percent(round(max(values), 2))}"
    text = f"{shares} of the distance to another patient"
    near = all((r.ci_high if r.ci_high is not None else r.value or 0.0) < 1 for r in ratios)
    if not near:
        return Verdict("worse", f"{text}: no closer in some condition")
    if len(values) < conditions:
        count = f"{len(values)} of {conditions} conditions"
        return Verdict("none", f"{text} in {count}; the others cannot be compared")
    return Verdict("ok", text)


def _conditions(evaluation: Evaluation) -> AxisLine | None:
    for metric in ("auroc", "presence", "accuracy"):
        records = list(evaluation.select(metric))
        parts = [r for r in records if r.condition != OVERALL] or records
        if parts:
            break
    else:
        return None
    values = [r.value for r in parts if r.value is not None]
    floors = [r.real_floor for r in parts if r.real_floor is not None]
    title = metric_title(metric).split("(")[-1].rstrip(")")
    of = f", mean of {len(parts)} findings" if len(parts) > 1 else f", {label(parts[0].condition)}"
    return AxisLine(
        "Conditions",
        _finding_words(parts),
        number(sum(values) / len(values)),
        title + of,
        number(sum(floors) / len(floors)) if floors else "",
        "held-out real images" if floors else "",
    )


def _finding_words(records: Sequence[Measurement]) -> Verdict:
    judged = [r for r in records if r.passed is not None]
    failed = [r for r in judged if not r.passed]
    if not judged:
        return Verdict("none", "no comparison: too few real images with these findings")
    if not failed and len(judged) < len(records):
        count = f"{len(judged)} of {len(records)} findings"
        return Verdict(
            "none", f"{count} recognised as in real images; the others cannot be compared"
        )
    if not failed:
        return Verdict("ok", "findings recognised as in real images")
    names = ", ".join(label(r.condition) for r in failed[:3]) + (" …" if len(failed) > 3 else "")
    count = f"{len(failed)} of {len(judged)} findings"
    return Verdict("worse", f"{count} less recognisable than in real images: {names}")


def _utility(evaluation: Evaluation) -> AxisLine | None:
    gains = [r for r in evaluation.select("utility_gain") if r.condition == OVERALL]
    if not gains:
        return None
    whole = max(float(r.details.get("fraction") or 0.0) for r in gains)
    gains = [r for r in gains if float(r.details.get("fraction") or 0.0) == whole]
    best = max(gains, key=lambda r: r.value or 0.0)
    regime = REGIMES.get(regime_of(best), regime_of(best))
    setting = ", ".join(filter(None, [regime, fraction_label(best)]))
    base = _base(evaluation, best)
    verdict = gain(simultaneous(best)) or Verdict("none", "no interval")
    return AxisLine(
        "Utility",
        Verdict(verdict.symbol, f"{GAINS.get(verdict.text, verdict.text)}: {setting}"),
        ("+" if (best.value or 0.0) > 0 else "") + number(best.value),
        f"AUROC gained, best of {len(gains)} settings" if len(gains) > 1 else "AUROC gained",
        number(base.value) if base else "",
        "AUROC with the same real images alone" if base else "",
    )


def _base(evaluation: Evaluation, best: Measurement) -> Measurement | None:
    """The classifier that a gain is measured from."""
    alone = "continued" if regime_of(best) == "pretrained" else "real"
    for record in evaluation.select("utility_auroc"):
        details = record.details
        same = details.get("fraction") == best.details.get("fraction")
        if same and regime_of(record) == alone and record.condition == best.condition:
            return record
    return None


def _any(evaluation: Evaluation, axis: str) -> AxisLine:
    """A line for an axis without its key metric: another number of it, or why there is none."""
    asked = evaluation.look_up("axes")
    if isinstance(asked, list) and axis not in asked:
        return AxisLine(AXES[axis], Verdict("none", "not measured: not asked for"))
    for record in evaluation.records:
        known = record.axis == axis and record.metric in METRICS and record.value is not None
        if known and record.subgroup == OVERALL:
            words = compare(record) or Verdict("none", "see the section for more")
            title = f"{metric_title(record.metric)}, {label(record.condition)}"
            return _line(axis, record, words, title)
    reasons = [s.get("reason") for s in evaluation.metrics["skipped"] if s.get("axis") == axis]
    reason = f"not measured: {reasons[0]}" if reasons else "not measured"
    return AxisLine(AXES[axis], Verdict("none", reason))


def _line(axis: str, record: Measurement, verdict: Verdict, note: str) -> AxisLine:
    spread = range_text(record, record.floor_low, record.floor_high)
    real_note = "real against real, other patients" if axis == "fidelity" else "real images"
    return AxisLine(
        AXES[axis],
        verdict,
        value_text(record, record.compared),
        note,
        value_text(record, record.real_floor) if record.real_floor is not None else "",
        (f"{spread}; " if spread else "") + real_note if record.real_floor is not None else "",
    )


def _range(values: Sequence[float]) -> str:
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} – {high}"
