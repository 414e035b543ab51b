"""Line plots as inline SVG: drawn once, styled by the page, read without colour."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 58, 18, 8, 36
MARKERS = {
    "circle": "M-3.5,0a3.5,3.5 0 1,0 7,0a3.5,3.5 0 1,0 -7,0z",
    "square": "M-3.2,-3.2h6.4v6.4h-6.4z",
    "triangle": "M0,-4.4L4.2,3.2h-8.4z",
    "diamond": "M0,-4.6L4.6,0L0,4.6L-4.6,0z",
    "cross": "M-4,-1.3h2.7v-2.7h2.6v2.7h2.7v2.6h-2.7v2.7h-2.6v-2.7h-2.7z",
}

Point = tuple[float, float]
Kind = Literal["line", "steps", "dots", "guide"]


@dataclass(frozen=True)
class Series:
    """One line of a plot.

    Attributes:
        style: Class of the page's style: `real`, or `s1`, `s2`, ... for synthetic images.
        points: In the units of the axes.
        kind: A line, the outline of a histogram, a line with marked points, or a thin guide.
        errors: Low and high end at each point.
    """

    style: str
    points: Sequence[Point]
    kind: Kind = "line"
    errors: Sequence[Point | None] = ()

    @property
    def marker(self) -> str:
        """The shape of its points."""
        if self.style == "real":
            return "square"
        names = ("circle", "triangle", "diamond", "cross", "square")
        return names[(int(self.style[1:]) - 1) % len(names)]


@dataclass(frozen=True)
class Axis:
    """An axis: both ends, what it shows, and where it is labelled.

    Attributes:
        label: What it shows.
        low: Its lower end.
        high: Its upper end.
        log: Whether it is logarithmic; both ends are above 0 then.
        ticks: Positions and their texts; chosen if there are none.
    """

    label: str
    low: float
    high: float
    log: bool = False
    ticks: Sequence[tuple[float, str]] = ()

    @property
    def marks(self) -> list[tuple[float, str]]:
        """Positions and texts of the labels."""
        if self.ticks:
            return list(self.ticks)
        if not self.high > self.low:
            return [(self.low, _plain(self.low))]
        if self.log:
            return _log_ticks(self.low, self.high)
        return _ticks(self.low, self.high)

    def share(self, value: float) -> float:
        """Where a value stands, from 0 to 1."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        return min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.5


def span(label: str, values: Sequence[float], zero: bool = True) -> Axis:
    """An axis over all values, from 0 if asked for; logarithmic where they span decades."""
    low, high = min(values), max(values)
    if low > 0 and high / low > 50:
        return Axis(label, low, high, log=True)
    low = min(low, 0.0) if zero else low
    return Axis(label, low, high if high > low else low + 1.0)


def swatch(style: str, dots: bool) -> Markup:
    """A piece of a line for the legend."""
    line = Markup('<path class="line {}" d="M1,7H33"/>').format(style)
    shape = MARKERS[Series(style, ()).marker]
    dot = Markup('<path class="dot {}" transform="translate(17,7)" d="{}"/>').format(style, shape)
    return Markup('<svg viewBox="0 0 34 14" aria-hidden="true">{}{}</svg>').format(
        line, dot if dots else ""
    )


def chart(title: str, series: Sequence[Series], x: Axis, y: Axis) -> Markup:
    """A plot.

    Args:
        title: What it shows, for those who cannot see it.
        series: Its lines, the last one on top.
        x: The horizontal axis.
        y: The vertical axis.
    """
    body = Markup("").join([*_frame(x, y), *(_draw(line, x, y) for line in series)])
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH, HEIGHT, title, body)


def _frame(x: Axis, y: Axis) -> list[Markup]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value, text in y.marks:
        at = _y(y, value)
        parts.append(
            Markup('<path class="grid" d="M{},{}H{}"/><text x="{}" y="{}" class="end">{}</text>')
            .format(LEFT, at, right, LEFT - 6, round(at + 3.8, 1), text)
        )  # fmt: skip
    for value, text in x.marks:
        parts.append(
            Markup('<text x="{}" y="{}" class="middle">{}</text>').format(
                _x(x, value), bottom + 14, text
            )
        )
    parts.append(Markup('<path class="axis" d="M{},{}H{}"/>').format(LEFT, bottom, right))
    middle = (LEFT + right) / 2
    parts.append(
        Markup('<text x="{}" y="{}" class="middle title">{}</text>').format(
            middle, HEIGHT - 5, x.label
        )
    )
    if y.label:
        parts.append(
            Markup('<text transform="translate(11,{}) rotate(-90)" class="middle title">{}</text>')
            .format((TOP + bottom) / 2, y.label)
        )  # fmt: skip
    return parts


def _draw(line: Series, x: Axis, y: Axis) -> Markup:
    places = [(_x(x, a), _y(y, b)) for a, b in line.points]
    path = _steps(places) if line.kind == "steps" else "M" + "L".join(f"{a},{b}" for a, b in places)
    style = "guide" if line.kind == "guide" else f"line {line.style}"
    parts = [Markup('<path class="{}" d="{}"/>').format(style, path)] if len(places) > 1 else []
    for (a, _), error in zip(places, line.errors, strict=False):
        if error is not None:
            parts.append(
                Markup('<path class="error {}" d="M{},{}V{}"/>').format(
                    line.style, a, _y(y, error[0]), _y(y, error[1])
                )
            )
    if line.kind == "dots":
        parts += [
            Markup('<path class="dot {}" transform="translate({},{})" d="{}"/>').format(
                line.style, a, b, MARKERS[line.marker]
            )
            for a, b in places
        ]
    return Markup("").join(parts)


def _steps(places: Sequence[Point]) -> str:
    """An outline: each point is the left end of its step, the last one closes it."""
    (start, top), *rest = places
    bottom = HEIGHT - BOTTOM
    path = f"M{start},{bottom}V{top}"
    return path + "".join(f"H{a}V{b}" for a, b in rest)


def _x(axis: Axis, value: float) -> float:
    return round(LEFT + axis.share(value) * (WIDTH - LEFT - RIGHT), 1)


def _y(axis: Axis, value: float) -> float:
    return round(HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - TOP - BOTTOM), 1)


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Three to six round numbers."""
    size = 10.0 ** math.floor(math.log10((high - low) / 2))
    for factor in (1, 2, 2.5, 5, 10):
        step = size * factor
        first = math.ceil(low / step - 1e-9)
        last = math.floor(high / step + 1e-9)
        if last - first < 5:
            break
    return [(i * step, _plain(i * step)) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Powers of ten, or numbers in between where there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, (last - first) // 4)
    powers = [10.0**i for i in range(first, last + 1, every)]
    factors = (1, 3) if last - first <= 2 else (1,)
    values = [p * f for p in powers for f in factors]
    return [(v, _plain(v)) for v in values if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]


def _plain(value: float) -> str:
    """A short number for an axis."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:.6g}".replace("-", "−")
    mantissa, exponent = f"{value:.0e}".split("e")
    power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return (f"{mantissa}·10" if mantissa != "1" else "10").replace("-", "−") + power
