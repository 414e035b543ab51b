"""Health conditions: predicates over the 14 observations, and requests for a generator."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool

from cxr_lightning.data.policies import build_condition, imply
from cxr_lightning.errors import UserError
from cxr_lightning.types import OBSERVATIONS, Condition


@dataclass(frozen=True)
class HealthCondition:
    """A stated health condition.

    Attributes:
        name: Its name, such as `pneumonia+pleural_effusion`.
        present: Observations that must be 1.
        absent: Observations that must not be 1.
    """

    name: str
    present: tuple[str, ...]
    absent: tuple[str, ...] = ()

    def matches(self, table: pd.DataFrame) -> Bool[np.ndarray, " n"]:
        """Which rows of a table with raw observation columns show this condition."""
        rows = np.ones(len(table), dtype=bool)
        for observation in self.present:
            rows &= table[observation].to_numpy() == 1.0
        for observation in self.absent:
            rows &= table[observation].to_numpy() != 1.0
        return rows

    def request(self, count: int) -> Condition:
        """The condition to generate `count` images from: this one stated, the rest unknown."""
        value = np.full((1, len(OBSERVATIONS)), np.nan, dtype=np.float32)
        value[:, [OBSERVATIONS.index(o) for o in self.present]] = 1.0
        value[:, [OBSERVATIONS.index(o) for o in self.absent]] = 0.0
        observations, known = imply(value)
        demographics = np.full((1, 3), np.nan, dtype=np.float32)
        one = build_condition(observations, known, demographics)
        return Condition(one.value.repeat(count, 1), one.known.repeat(count, 1))


def _key(observation: str) -> str:
    return observation.lower().replace(" ", "_")


CONDITIONS: dict[str, HealthCondition] = {
    "healthy": HealthCondition("healthy", ("No Finding",), ("Support Devices",)),
    **{_key(o): HealthCondition(_key(o), (o,)) for o in OBSERVATIONS},
}
"""Every single health condition. Healthy: No Finding = 1 and no support devices. The others: the
observation of that name = 1. Conjunctions are written with a plus sign."""


def parse_condition(text: str) -> HealthCondition:
    """Reads `pneumonia`, `healthy`, `pneumonia+pleural_effusion`, ...

    Raises:
        UserError: If a part is not in `CONDITIONS`, or the parts contradict each other.
    """
    parts = [part.strip().lower().replace(" ", "_") for part in text.split("+")]
    unknown = [part for part in parts if part not in CONDITIONS]
    if unknown:
        raise UserError(
            f"condition: {unknown[0]!r} in {text!r} is not a health condition; use one of "
            f"{', '.join(CONDITIONS)}, or several joined by '+'."
        )
    present = tuple(dict.fromkeys(o for part in parts for o in CONDITIONS[part].present))
    absent = tuple(dict.fromkeys(o for part in parts for o in CONDITIONS[part].absent))
    pathologies = [o for o in present if o not in ("No Finding", "Support Devices")]
    if set(present) & set(absent) or ("No Finding" in present and pathologies):
        raise UserError(
            f"condition: {text!r} contradicts itself, since a healthy radiograph shows no finding; "
            "ask for the parts one by one."
        )
    return HealthCondition("+".join(dict.fromkeys(parts)), present, absent)
