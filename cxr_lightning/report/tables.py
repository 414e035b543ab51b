"""Tables of records with their plots: groups of rows, a line an evaluation."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from cxr_lightning.report.read import Evaluation, Measurement
from cxr_lightning.report.verdicts import Verdict, compare
from cxr_lightning.report.words import (
    DIRECTIONS,
    METRICS,
    label,
    metric_title,
    number,
    range_text,
    value_text,
)

Key = Callable[[Measurement], str]


@dataclass(frozen=True)
class Marks:
    """Where the parts of a plot stand, in per cent of its width."""

    dot: float
    whisker: tuple[float, float] | None
    band: tuple[float, float] | None
    floor: float | None
    zero: float | None


@dataclass(frozen=True)
class Line:
    """What one evaluation says in a row."""

    evaluation: str
    record: Measurement
    marks: Marks | None
    verdict: Verdict | None
    value: str
    interval: str
    at_n: str
    real: str
    real_range: str
    images: str


@dataclass
class Row:
    """A row: one line an evaluation."""

    label: str
    lines: list[Line] = field(default_factory=list)


@dataclass
class Group:
    """Rows under one heading.

    Attributes:
        title: The heading.
        note: What it means.
        ends: Both ends of the scale, if all rows share it.
        rows: The rows.
    """

    title: str
    note: str
    ends: tuple[str, str] | None
    rows: list[Row] = field(default_factory=list)


NO_FLOOR = ("utility_gain",)
"""Metrics whose floor is a fixed zero, which the plot shows."""

Scale = tuple[float, float]
Scales = dict[tuple[str, tuple[str, str]], Scale]


def scales(records: Iterable[Measurement]) -> Scales:
    """The scale of each metric in each space: all values, intervals and floors lie on it."""
    spans: dict[tuple[str, tuple[str, str]], list[float]] = {}
    for record in records:
        spans.setdefault((record.metric, record.source), []).extend(record.span)
    return {key: _scale(key[0], span) for key, span in spans.items() if span}


def _scale(metric: str, span: Sequence[float]) -> Scale:
    kind = METRICS[metric].kind if metric in METRICS else "signed"
    low, high = min(span), max(span)
    if kind == "share" and low >= 0 and high <= 1:
        return (0.5, 1.0) if "auroc" in metric and low >= 0.5 else (0.0, 1.0)
    low, high = min(low, 0.0), max(high, 0.0)
    return (low, high) if high > low else (low, low + 1.0)


def build_groups(
    evaluations: Sequence[Evaluation],
    choose: Callable[[Evaluation, Measurement], bool],
    by_metric: bool,
    row: Key,
    scale_of: Scales | None = None,
    part: Key = lambda _: "",
) -> list[Group]:
    """Groups the chosen records of all evaluations.

    Args:
        evaluations: The evaluations.
        choose: Which records.
        by_metric: A group a metric with one scale; or else a group an extractor.
        row: Label of a record's row.
        scale_of: Scales to use; by default those of the chosen records.
        part: What divides the records of a group further; part of its title.
    """
    chosen = [
        (e.name, r)
        for e in evaluations
        for r in e.records
        if r.value is not None and r.metric in METRICS and choose(e, r)
    ]
    places = [*METRICS]
    chosen.sort(key=lambda pair: places.index(pair[1].metric))
    scale_of = scale_of or scales(r for _, r in chosen)
    sources = {r.source for _, r in chosen}
    groups: dict[tuple[str, ...], Group] = {}
    rows: dict[tuple[str, ...], Row] = {}
    for name, record in chosen:
        key = (record.metric if by_metric else "", *record.source, part(record))
        if key not in groups:
            ends = scale_of[record.metric, record.source] if by_metric else None
            groups[key] = _group(record, part(record), ends, sources)
        title = row(record)
        if (*key, title) not in rows:
            rows[*key, title] = Row(title)
            groups[key].rows.append(rows[*key, title])
        rows[*key, title].lines.append(
            _build_line(name, record, scale_of[record.metric, record.source])
        )
    return list(groups.values())


def source_title(source: tuple[str, str], others: Iterable[tuple[str, str]] = ()) -> str:
    """An extractor's name, with its hash where another one has the same name."""
    name, sha256 = source
    if name in ("", "pixels"):
        return "pixels"
    twice = any(other != source and other[0] == name for other in others)
    return f"{name} ({sha256[:8]})" if twice else name


def space_title(source: tuple[str, str], others: Iterable[tuple[str, str]] = ()) -> str:
    """Where numbers come from, as a heading."""
    title = source_title(source, others)
    return "Grey levels, no network" if title == "pixels" else f"Features of {title}"


def _group(
    record: Measurement, part: str, ends: Scale | None, sources: set[tuple[str, str]]
) -> Group:
    """The heading of a group: of a metric where its scale is given, else of an extractor."""
    if ends is None:
        return Group(space_title(record.source, sources), record.preprocessing, None)
    title = metric_title(record.metric) + (f", {part}" if part else "")
    if len(sources) > 1:
        title += f" ({source_title(record.source, sources)})"
    notes = [METRICS[record.metric].meaning, DIRECTIONS.get(record.better or "", "")]
    return Group(title, "; ".join(filter(None, notes)), (number(ends[0]), number(ends[1])))


def _build_line(name: str, record: Measurement, scale: Scale) -> Line:
    is_count = METRICS[record.metric].kind == "count"
    has_floor = record.real_floor is not None and record.metric not in NO_FLOOR
    at_n = ""
    if record.value_at_floor_n is not None and record.value_at_floor_n != record.value:
        at_n = number(record.value_at_floor_n)
    return Line(
        evaluation=name,
        record=record,
        marks=None if is_count and record.real_floor is None else _marks(record, scale),
        verdict=compare(record),
        value=value_text(record, record.value),
        interval=range_text(record, record.ci_low, record.ci_high),
        at_n=at_n,
        real=value_text(record, record.real_floor) if has_floor else "",
        real_range=range_text(record, record.floor_low, record.floor_high) if has_floor else "",
        images=_images(record),
    )


def _images(record: Measurement) -> str:
    counts = (record.n_real, record.n_synthetic)
    return " / ".join("–" if n is None else f"{n:,}" for n in counts)


def _marks(record: Measurement, scale: Scale) -> Marks:
    return Marks(
        dot=_place(record.compared or 0.0, scale),
        whisker=_stretch(record.compared_interval or (None, None), scale),
        band=_stretch((record.floor_low, record.floor_high), scale),
        floor=None if record.real_floor is None else _place(record.real_floor, scale),
        zero=_place(0.0, scale) if scale[0] < 0 < scale[1] else None,
    )


def _place(value: float, scale: Scale) -> float:
    low, high = scale
    return round(min(max(100 * (value - low) / (high - low), 0.0), 100.0), 2)


def _stretch(ends: tuple[float | None, float | None], scale: Scale) -> tuple[float, float] | None:
    """Start and width."""
    if ends[0] is None or ends[1] is None:
        return None
    start, end = _place(ends[0], scale), _place(ends[1], scale)
    return start, round(end - start, 2)


def condition_label(record: Measurement) -> str:
    """Label of a row by condition."""
    return label(record.condition)


def count_lines(groups: Sequence[Group]) -> int:
    """How long a table is."""
    return sum(len(row.lines) for group in groups for row in group.rows)
