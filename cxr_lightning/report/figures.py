"""The plots of an evaluation's curves: a figure a condition, a line an evaluation."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cxr_lightning.evaluation.records import OVERALL
from cxr_lightning.report.plots import Axis, Point, Series, chart, span
from cxr_lightning.report.read import Evaluation, Measurement, unique
from cxr_lightning.report.tables import source_title, space_title
from cxr_lightning.report.verdicts import REGIMES, regime_of
from cxr_lightning.report.words import label, number, percent

GREYS = 256


@dataclass(frozen=True)
class Figure:
    """A plot and what stands below it."""

    title: str
    svg: Markup


def style(position: int) -> str:
    """The style of an evaluation's lines; there are five."""
    return f"s{position % 5 + 1}"


def numbers(value: object) -> list[float]:
    """A list of numbers; empty if it is anything else."""
    if not isinstance(value, list):
        return []
    plain = all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    return [float(v) for v in value] if plain else []


def histograms(evaluations: Sequence[Evaluation]) -> list[Figure]:
    """Shares of grey levels."""

    def draw(condition: str, name: str, lines: list[Series]) -> Markup:
        highest = max(b for line in lines for _, b in line.points)
        y = Axis("share of pixels", 0.0, highest or 1.0)
        return chart(
            name, lines, Axis("grey level, dark to bright", 0.0, 255.0, ticks=GREY_TICKS), y
        )

    def points(values: list[float]) -> list[Point]:
        width = GREYS / len(values)
        return [((i + 0.5) * width, v) for i, v in enumerate(values)]

    return _two_sides(evaluations, "histogram", "Grey levels", points, draw)


GREY_TICKS = [(float(v), str(v)) for v in (0, 64, 128, 192, 255)]


def spectra(evaluations: Sequence[Evaluation]) -> list[Figure]:
    """Power by spatial frequency."""

    def draw(condition: str, name: str, lines: list[Series]) -> Markup:
        values = [b for line in lines for _, b in line.points]
        last = max(a for line in lines for a, _ in line.points)
        x = Axis("cycles per image, coarse to fine", 1.0, max(last, 2.0), log=True)
        return chart(name, lines, x, span("power", values, zero=False))

    def points(values: list[float]) -> list[Point]:
        return [(i + 1.0, v) for i, v in enumerate(values)]

    return _two_sides(evaluations, "power_spectrum", "Power spectrum", points, draw)


def _two_sides(
    evaluations: Sequence[Evaluation],
    curve: str,
    title: str,
    points: Callable[[list[float]], list[Point]],
    draw: Callable[[str, str, list[Series]], Markup],
) -> list[Figure]:
    """A figure a condition with the real curve and one synthetic curve an evaluation."""
    figures = []
    for condition in _overall_first(c for e in evaluations for c in e.curve(curve)):
        real: list[Series] = []
        synthetic: list[Series] = []
        for i, evaluation in enumerate(evaluations):
            sides = evaluation.curve(curve, condition)
            for side, found, kind in (
                ("real", real, "real"),
                ("synthetic", synthetic, style(i)),
            ):
                if values := numbers(sides.get(side)):
                    found.append(Series(kind, points(values)))
        lines = [*{tuple(line.points): line for line in real}.values(), *synthetic]
        if lines:
            name = f"{title} of real and synthetic images, {label(condition)}"
            figures.append(Figure(label(condition), draw(condition, name, lines)))
    return figures


def _overall_first(names: Iterable[str]) -> list[str]:
    return sorted(unique(names), key=lambda name: name != OVERALL)


def fid_infinity(evaluations: Sequence[Evaluation]) -> list[Figure]:
    """FID against 1 / n with its extrapolation to infinitely many images."""
    figures = []
    extractors = unique(x for e in evaluations for x in e.curve("fid_infinity"))
    for extractor in extractors:
        names = (c for e in evaluations for c in e.curve("fid_infinity", extractor))
        for condition in _overall_first(names):
            lines, counts = [], []
            for i, evaluation in enumerate(evaluations):
                curve = evaluation.curve("fid_infinity", extractor, condition)
                n, fid = numbers(curve.get("n")), numbers(curve.get("fid"))
                if n and len(n) == len(fid) and min(n) > 0:
                    counts += n
                    lines += _extrapolated(style(i), n, fid, numbers([curve.get("value")]))
            if lines:
                title = label(condition)
                title += f", {source_title((extractor, ''))}" if len(extractors) > 1 else ""
                figures.append(Figure(title, _against_n(title, lines, counts)))
    return figures


def _extrapolated(name: str, n: list[float], fid: list[float], value: list[float]) -> list[Series]:
    measured = sorted((1 / count, distance) for count, distance in zip(n, fid, strict=True))
    dots = Series(name, measured, "dots")
    if not value:
        return [dots]
    squares = sum(a * a for a, _ in measured)
    slope = sum(a * (b - value[0]) for a, b in measured) / squares
    end = measured[-1][0]
    return [Series(name, [(0.0, value[0]), (end, value[0] + slope * end)], "guide"), dots]


def _against_n(title: str, lines: list[Series], counts: list[float]) -> Markup:
    values = [b for line in lines for _, b in line.points]
    high = 1 / min(counts)
    ticks = [(0.0, "∞")]
    for count in sorted(set(counts), reverse=True):
        if all(abs(1 / count - place) > 0.12 * high for place, _ in ticks):
            ticks.append((1 / count, f"{count:,.0f}"))
    x = Axis("images (spaced as 1 / n)", 0.0, high, ticks=ticks)
    return chart(f"FID against the number of images, {title}", lines, x, span("FID", values))


def calibrations(evaluations: Sequence[Evaluation]) -> list[Figure]:
    """How often the finding is there, by the classifier's confidence."""
    figures = []
    for finding in unique(f for e in evaluations for f in e.curve("calibration")):
        lines = [Series("real", [(0.0, 0.0), (1.0, 1.0)], "guide")]
        for i, evaluation in enumerate(evaluations):
            for side, name in (("real", "real"), ("synthetic", style(i))):
                curve = evaluation.curve("calibration", finding, side)
                places = numbers(curve.get("confidence")), numbers(curve.get("frequency"))
                if places[0] and len(places[0]) == len(places[1]):
                    lines.append(Series(name, [*zip(*places, strict=True)], "dots"))
        if len(lines) > 1:
            title = f"Frequency of {label(finding)} by the classifier's confidence"
            ends = [(v, percent(v)) for v in (0.0, 0.5, 1.0)]
            x = Axis("classifier's confidence", 0.0, 1.0, ticks=ends)
            svg = chart(title, lines, x, Axis("with the finding", 0.0, 1.0, ticks=ends))
            figures.append(Figure(label(finding), svg))
    return figures


def nearest(evaluations: Sequence[Evaluation]) -> list[Figure]:
    """Distances to the nearest training image, of synthetic and of held-out real images."""
    figures = []
    for space in unique(s for e in evaluations for s in e.curve("nearest")):
        lines = []
        for i, evaluation in enumerate(evaluations):
            curve = evaluation.curve("nearest", space)
            edges = numbers(curve.get("edges"))
            for side, name in (("held_out_train", "real"), ("synthetic_train", style(i))):
                counts = numbers(curve.get(side))
                if len(edges) > 1 and len(counts) == len(edges) - 1 and sum(counts) > 0:
                    shares = [c / sum(counts) for c in counts]
                    lines.append(Series(name, [*zip(edges, [*shares, 0.0], strict=True)], "steps"))
        if lines:
            lines.sort(key=lambda line: line.style != "real")
            places = [a for line in lines for a, _ in line.points]
            x = Axis("distance to the nearest training image", min(places), max(places))
            y = Axis("share", 0.0, max(b for line in lines for _, b in line.points))
            title = space_title((space, ""))
            figures.append(Figure(title, chart(f"Nearest training image, {title}", lines, x, y)))
    return figures


def utility(evaluations: Sequence[Evaluation]) -> list[Figure]:
    """Macro AUROC by share of real patients, a line a regime; a figure an evaluation."""
    figures = []
    for evaluation in evaluations:
        records = [r for r in evaluation.select("utility_auroc") if r.condition == OVERALL]
        if records:
            title = evaluation.name if len(evaluations) > 1 else "All findings"
            figures.append(Figure(title, _regimes(records)))
    return figures


def _regimes(records: Sequence[Measurement]) -> Markup:
    fractions = sorted({f for r in records if (f := _fraction(r)) > 0})
    ticks = [(float(i), percent(f)) for i, f in enumerate(fractions)]
    if any(_fraction(r) == 0 for r in records):
        fractions = [0.0, *fractions]
        ticks = [(0.0, "none"), *((i + 1.0, text) for i, (_, text) in enumerate(ticks))]
    regimes = regimes_of(records)
    lines, values = [], []
    for i, regime in enumerate(regimes):
        chosen = sorted((r for r in records if regime_of(r) == regime), key=_fraction)
        shift = 0.07 * (i - (len(regimes) - 1) / 2)
        points = [(fractions.index(_fraction(r)) + shift, r.value or 0.0) for r in chosen]
        errors = [r.interval for r in chosen]
        values += [b for _, b in points] + [v for error in errors if error for v in error]
        lines.append(Series(regime_style(regime), points, "dots", errors))
    margin = 0.08 * ((max(values) - min(values)) or 0.1)
    x = Axis("real training patients used", -0.3, len(fractions) - 0.7, ticks=ticks)
    y = Axis("AUROC", min(values) - margin, max(values) + margin)
    lowest, highest = number(min(values)), number(max(values))
    return chart(f"AUROC of classifiers by regime, {lowest} to {highest}", lines, x, y)


def _fraction(record: Measurement) -> float:
    value = record.details.get("fraction")
    return max(float(value), 0.0) if isinstance(value, int | float) else 0.0


def regimes_of(records: Iterable[Measurement]) -> list[str]:
    """The regimes of records, in the order of the report."""
    found: list[str] = unique(regime_of(r) for r in records)
    return [r for r in REGIMES if r in found] + [r for r in found if r not in REGIMES]


def regime_style(regime: str) -> str:
    """The style of a regime's line."""
    if regime == "real":
        return "real"
    others = [name for name in REGIMES if name != "real"]
    return style(others.index(regime) if regime in others else len(others))
