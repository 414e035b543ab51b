"""What an evaluation's axes bring: records, what they skipped, and images."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import UInt8

OVERALL = "all"
"""Condition of a record over all conditions together."""


@dataclass(frozen=True)
class Record:
    """One number of an evaluation with all that is needed to read it.

    Attributes:
        axis: `fidelity`, `representation`, ...
        metric: `fid`, `rrs`, ...
        condition: Name of the condition, or `all`.
        value: The number.
        ci_low: Lower end of its 95 % interval; None where there is none.
        ci_high: Upper end.
        real_floor: The same metric between real images; None where it is not defined.
        n_real: Real images behind it.
        n_synthetic: Synthetic images behind it.
        extractor: Network that the numbers come from.
        extractor_sha256: Of its weights.
        warning: Why the number needs care; several reasons are joined by "; ".
        details: Facts of this metric alone.
    """

    axis: str
    metric: str
    condition: str
    value: float
    ci_low: float | None
    ci_high: float | None
    real_floor: float | None
    n_real: int
    n_synthetic: int
    extractor: str
    extractor_sha256: str
    warning: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The record as `metrics.json` holds it; without warning and details where empty."""
        return {k: v for k, v in asdict(self).items() if v or k not in ("warning", "details")}


@dataclass(frozen=True)
class Skipped:
    """A number that could not be made, and why."""

    axis: str
    metric: str
    condition: str
    reason: str


@dataclass
class AxisResult:
    """What an axis brings: records, what it skipped, and images by file name."""

    records: list[Record] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    grids: dict[str, UInt8[np.ndarray, "k h w"]] = field(default_factory=dict)
