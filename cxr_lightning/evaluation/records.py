"""What an evaluation's axes bring: records, what they skipped, curves and images."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

FORMAT = 2
"""Of `metrics.json`."""

TOO_CLOSE = 0.5
"""Share of the floor below which a distance is suspicious. The synthetic images may resemble both
halves of the real set, so somewhat less than the floor is natural for patients of many images."""

OVERALL = "all"
"""Condition of a record over all conditions together, and subgroup of one over all patients."""

Better = Literal["lower", "higher", "equal"]
"""What a good generator's value is, seen from the value that real images reach."""


@dataclass(frozen=True)
class Floor:
    """The value that real images reach in the place of synthetic ones.

    Attributes:
        value: Mean over the random splits, or the only value there is.
        low: Lower end of its range: over the splits, or its 95 % interval.
        high: Upper end.
        n: Images a side; None where the metric does not depend on their number.
        at_n: The record's value at that number of images; None where it is the value itself.
        meaning: How it was made, in words.
        is_null: Whether the range is that of the metric itself where nothing is wrong. It then
            holds all of its chance, so the value alone is compared with it.
    """

    value: float
    low: float
    high: float
    n: int | None = None
    at_n: float | None = None
    meaning: str = ""
    is_null: bool = False

    @classmethod
    def around(cls, value: float, interval: tuple[float, float] | None, meaning: str) -> "Floor":
        """A floor with its interval, or without one its value alone."""
        return cls(value, *(interval or (value, value)), meaning=meaning)


@dataclass(frozen=True)
class Source:
    """Where numbers come from: a network, or the pixels.

    Attributes:
        name: Of the extractor; `pixels` where no network is in between.
        sha256: Of its weights; empty where there are none.
        preprocessing: What happens to an image before.
    """

    name: str
    sha256: str = ""
    preprocessing: str = ""


PIXELS = Source("pixels", "", "8-bit grey as prepared")


@dataclass(frozen=True)
class Record:
    """One number of an evaluation with all that is needed to read it.

    Attributes:
        axis: `fidelity`, `representation`, `condition`, `utility` or `privacy`.
        metric: `fid`, `rrs`, ...
        value: The number.
        n_real: Real images behind it.
        n_synthetic: Synthetic images behind it.
        source: Where it comes from.
        condition: Name of the health condition or finding, or `all`.
        subgroup: `all`, `view=PA`, `sex=Female`, `age=40-59`, ...
        interval: Its 95 % interval, by bootstrap over patients; None where there is none.
        floor: The same between real images; None where it is not defined.
        better: How to compare it with the floor; None where it is not compared.
        unit: Such as `dB`; empty for a pure number.
        warning: Why the number needs care; several reasons are joined by "; ".
        details: Facts of this metric alone.
    """

    axis: str
    metric: str
    value: float
    n_real: int
    n_synthetic: int
    source: Source = PIXELS
    condition: str = OVERALL
    subgroup: str = OVERALL
    interval: tuple[float, float] | None = None
    floor: Floor | None = None
    better: Better | None = None
    unit: str = ""
    warning: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool | None:
        """Whether the number is no worse than what real images reach, given both ranges.

        False only where its whole interval, moved to the number of images of the floor, lies on the
        worse side of the floor's whole range; where that is the range of chance (`is_null`), where
        the value lies there. None where there is nothing to compare.
        """
        if self.floor is None or self.better is None:
            return None
        shift = 0.0 if self.floor.at_n is None else self.floor.at_n - self.value
        low, high = self.interval or (self.value, self.value)
        if self.floor.is_null:
            low, high = self.value, self.value
        worse_above = low + shift > self.floor.high
        worse_below = high + shift < self.floor.low
        if self.better == "equal":
            return not (worse_above or worse_below)
        return not (worse_above if self.better == "lower" else worse_below)

    def as_json(self) -> dict[str, Any]:
        """The record as `metrics.json` holds it: flat; without warning and details where empty."""
        low, high = self.interval or (None, None)
        floor = self.floor
        flat = {
            "axis": self.axis,
            "metric": self.metric,
            "condition": self.condition,
            "subgroup": self.subgroup,
            "value": self.value,
            "ci_low": low,
            "ci_high": high,
            "unit": self.unit,
            "better": self.better,
            "passed": self.passed,
            "real_floor": floor.value if floor else None,
            "floor_low": floor.low if floor else None,
            "floor_high": floor.high if floor else None,
            "floor_n": floor.n if floor else None,
            "value_at_floor_n": floor.at_n if floor else None,
            "floor_meaning": floor.meaning if floor else None,
            "n_real": self.n_real,
            "n_synthetic": self.n_synthetic,
            "extractor": self.source.name,
            "extractor_sha256": self.source.sha256,
            "preprocessing": self.source.preprocessing,
        }
        optional = {"warning": self.warning, "details": self.details}
        return flat | {k: v for k, v in optional.items() if v}


@dataclass(frozen=True)
class Skipped:
    """A number, or a whole axis, that could not be made, and why.

    Attributes:
        axis: The axis.
        metric: The metric; `all` for the whole axis.
        condition: The condition; `all` for every one.
        reason: Why; no full stop.
    """

    axis: str
    metric: str
    condition: str
    reason: str

    def as_json(self) -> dict[str, Any]:
        """As `metrics.json` holds it."""
        return asdict(self)


@dataclass
class AxisResult:
    """What an axis brings.

    Attributes:
        records: Its numbers.
        skipped: What could not be made.
        grids: Images by file name without suffix.
        curves: Plain values for the plots of the report, by name.
        pairs: Of each close pair: what `pairs` in `metrics.json` says of its picture in `grids`.
    """

    records: list[Record] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    grids: dict[str, UInt8[np.ndarray, "k h w"]] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)
    pairs: list[dict[str, Any]] = field(default_factory=list)

    def skip(self, axis: str, metric: str, reason: str, condition: str = OVERALL) -> None:
        """Notes what could not be made, and says so."""
        print(f"{axis}, {metric} of {condition}: left out, since {reason}")
        self.skipped.append(Skipped(axis, metric, condition, reason))
