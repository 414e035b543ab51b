"""Comparisons with real images in words."""

from dataclasses import dataclass, replace
from typing import Literal

from cxr_lightning.evaluation.records import TOO_CLOSE
from cxr_lightning.report.read import Measurement
from cxr_lightning.report.words import METRICS, SPACE, number, percent

Symbol = Literal["ok", "worse", "none"]

REGIMES = {
    "real": "real images alone",
    "synthetic": "synthetic images alone",
    "mixed": "half of the real images replaced",
    "augmented": "synthetic images added",
    "continued": "real images alone, twice the steps",
    "pretrained": "synthetic first, then real",
}


@dataclass(frozen=True)
class Verdict:
    """A comparison: a symbol, which never stands without the words."""

    symbol: Symbol
    text: str


@dataclass(frozen=True)
class AxisLine:
    """What the headline says of an axis.

    Attributes:
        axis: Its name.
        verdict: The comparison in words.
        key: The key number.
        key_note: What it is.
        real: What real images reach.
        real_note: What that is.
    """

    axis: str
    verdict: Verdict
    key: str = ""
    key_note: str = ""
    real: str = ""
    real_note: str = ""


def compare(record: Measurement) -> Verdict | None:
    """A record against its floor; None where there is nothing to compare with."""
    if record.metric == "utility_gain":
        return gain(record)
    if record.passed is None:
        return None
    # real against real is about 0 at infinite n, so that a ratio says nothing there
    ratio = record.ratio if _is_distance(record) and record.metric != "fid_infinity" else None
    if record.passed:
        close = record.metric in ("fid", "fid_equal_n") and ratio is not None and ratio < TOO_CLOSE
        return Verdict("worse", "suspiciously close") if close else Verdict("ok", "as real")
    if ratio is not None and ratio >= 1.05:
        return Verdict("worse", f"{number(ratio)}{SPACE}×{SPACE}real")
    below = (record.compared or 0.0) < (record.real_floor or 0.0)
    return Verdict("worse", "below real" if below else "above real")


def _is_distance(record: Measurement) -> bool:
    return record.metric in METRICS and METRICS[record.metric].kind == "distance"


def gain(record: Measurement) -> Verdict | None:
    """Whether synthetic images help a classifier; None without an interval."""
    if record.interval is None:
        return None
    low, high = record.interval
    if low > 0:
        return Verdict("ok", "helps")
    return Verdict("worse", "harms") if high < 0 else Verdict("none", "no measurable effect")


def simultaneous(record: Measurement) -> Measurement:
    """A utility record with the interval that holds for all settings at once, where it has one.

    The best of several gains is large by chance, so it is judged by this one.
    """
    ends = record.details.get("simultaneous")
    if not isinstance(ends, dict) or ends.get("low") is None or ends.get("high") is None:
        return record
    return replace(record, ci_low=float(ends["low"]), ci_high=float(ends["high"]))


def fraction_label(record: Measurement) -> str:
    """The share of real patients of a utility record."""
    fraction = record.details.get("fraction")
    if not isinstance(fraction, int | float) or not fraction:
        return ""
    return f"{percent(float(fraction))} of the real patients"


def regime_of(record: Measurement) -> str:
    """What the classifier of a utility record was trained on."""
    return str(record.details.get("regime", "–"))


def regime_label(record: Measurement) -> str:
    """The regime of a utility record in words."""
    text = REGIMES.get(regime_of(record), regime_of(record))
    return text[:1].upper() + text[1:]
