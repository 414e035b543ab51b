"""Whether images made for several findings show them together: stacked bars."""

from collections.abc import Sequence
from dataclasses import dataclass

from cxr_lightning.report.read import Evaluation, Measurement, unique
from cxr_lightning.report.words import label, percent

ONLY = "joint_only_"
TEXT_FROM = 12
"""Width in per cent from which a segment holds its number."""


@dataclass(frozen=True)
class Segment:
    """A part of a bar.

    Attributes:
        style: Class of the page's style.
        title: What it counts.
        text: Its share.
        width: In per cent of the bar.
    """

    style: str
    title: str
    text: str
    width: float

    @property
    def inside(self) -> bool:
        """Whether its number fits into it."""
        return self.width >= TEXT_FROM


@dataclass(frozen=True)
class Bar:
    """One set of images."""

    title: str
    count: int | None
    segments: list[Segment]


@dataclass(frozen=True)
class Joint:
    """The bars of one condition."""

    label: str
    bars: list[Bar]
    legend: list[tuple[str, str]]


def joint_presence(evaluations: Sequence[Evaluation]) -> list[Joint]:
    """Bars of all conditions with several findings: real images first."""
    records = {e.name: _joint(e) for e in evaluations}
    names = unique(r.condition for found in records.values() for r in found)
    joints = []
    for name in names:
        bars = []
        for evaluation in evaluations:
            chosen = [r for r in records[evaluation.name] if r.condition == name]
            chosen.sort(key=lambda r: _order(r.metric))
            suffix = f", {evaluation.name}" if len(evaluations) > 1 else ""
            real = [(r, r.real_floor) for r in chosen if r.real_floor is not None]
            if chosen and len(real) == len(chosen):
                bars.append(_bar("Real" + suffix, chosen[0].n_real, real))
            if chosen:
                synthetic = [(r, r.value) for r in chosen]
                bars.append(_bar("Synthetic" + suffix, chosen[0].n_synthetic, synthetic))
        legend = unique((s.style, s.title) for bar in bars for s in bar.segments)
        joints.append(Joint(label(name), _merged(bars), legend))
    return joints


def _joint(evaluation: Evaluation) -> list[Measurement]:
    names = unique(r.metric for r in evaluation.records if r.metric.startswith("joint_"))
    return [*evaluation.select(*names)]


def _order(metric: str) -> tuple[int, str]:
    places = {"joint_all": 0, "joint_some": 2, "joint_none": 3}
    return places.get(metric, 1), metric


def _bar(title: str, count: int | None, parts: Sequence[tuple[Measurement, float | None]]) -> Bar:
    total = sum(max(value or 0.0, 0.0) for _, value in parts) or 1.0
    only = [r.metric for r, _ in parts if r.metric.startswith(ONLY)]
    segments = []
    for record, value in parts:
        share = max(value or 0.0, 0.0)
        style = record.metric.removeprefix("joint_")
        if record.metric in only:
            style = f"only{only.index(record.metric) % 3 + 1}"
        segments.append(
            Segment(style, _title(record.metric), percent(share), round(100 * share / total, 2))
        )
    return Bar(title, count, segments)


def _title(metric: str) -> str:
    names = {"joint_all": "all asked for", "joint_some": "some", "joint_none": "none"}
    return names.get(metric, f"only {label(metric.removeprefix(ONLY)).lower()}")


def _merged(bars: list[Bar]) -> list[Bar]:
    """The bars, with one for the real images if they are the same in all evaluations."""
    real = [bar for bar in bars if bar.title.startswith("Real")]
    if len(real) > 1 and len({(bar.count, tuple(bar.segments)) for bar in real}) == 1:
        others = [bar for bar in bars if bar not in real]
        return [Bar("Real", real[0].count, real[0].segments), *others]
    return bars
