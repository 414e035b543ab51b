"""Health conditions: predicates over the 14 observations, and requests for a generator."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool

from cxr_lightning.data.policies import PATHOLOGIES, Labels, build_condition, imply
from cxr_lightning.errors import UserError
from cxr_lightning.types import OBSERVATIONS, Condition

View = Literal["AP", "PA"]


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

    @property
    def definition(self) -> str:
        """The predicate in words, such as `No Finding = 1, Support Devices not 1`."""
        return ", ".join(
            [*(f"{o} = 1" for o in self.present), *(f"{o} not 1" for o in self.absent)]
        )

    def means(self, other: "HealthCondition") -> bool:
        """Whether another one says the same, in any order."""
        return {*self.present} == {*other.present} and {*self.absent} == {*other.absent}

    def matches(self, table: pd.DataFrame) -> Bool[np.ndarray, " n"]:
        """Which rows of a table with raw observation columns show this condition."""
        rows = np.ones(len(table), dtype=bool)
        for observation in self.present:
            rows &= table[observation].to_numpy() == 1.0
        for observation in self.absent:
            rows &= table[observation].to_numpy() != 1.0
        return rows

    def request(self, count: int, view: View | None = None) -> Condition:
        """The condition to generate `count` images from: this one stated, the rest unknown.

        Args:
            count: Number of images.
            view: AP or PA, stated too.
        """
        value = np.full((1, len(OBSERVATIONS)), np.nan, dtype=np.float32)
        value[:, [OBSERVATIONS.index(o) for o in self.present]] = 1.0
        value[:, [OBSERVATIONS.index(o) for o in self.absent]] = 0.0
        observations, known = imply(value)
        labels = Labels(observations, known, np.zeros_like(known))
        demographics = np.full((1, 3), np.nan, dtype=np.float32)
        if view is not None:
            demographics[0, 0] = float(view == "PA")
        one = build_condition(labels, demographics)
        return one.rows(torch.zeros(count, dtype=torch.long))


def _key(observation: str) -> str:
    return observation.lower().replace(" ", "_")


CONDITIONS: dict[str, HealthCondition] = {
    "healthy": HealthCondition("healthy", ("No Finding",), ("Support Devices",)),
    **{_key(o): HealthCondition(_key(o), (o,)) for o in OBSERVATIONS},
}
"""Every single health condition. Healthy: No Finding = 1 and no support devices. The others: the
observation of that name = 1. Conjunctions are written with a plus sign; only where support devices
are asked for, as in `healthy+support_devices`, may a healthy radiograph show them."""


SYNONYMS = {
    "normal": "No Finding",
    "healthy": "No Finding",
    "effusion": "Pleural Effusion",
    "oedema": "Edema",
    "pulmonary_edema": "Edema",
    "opacity": "Lung Opacity",
    "enlarged_cardiac_silhouette": "Cardiomegaly",
}
"""Other names that observations go by, as keys."""


def find_observation(name: str) -> str | None:
    """The observation that a name means, in any case, with spaces, `_` or `-`; None if none."""
    key = _key(name.strip().replace("-", " "))
    return {**{_key(o): o for o in OBSERVATIONS}, **SYNONYMS}.get(key)


def condition_keys(text: str) -> list[str]:
    """The parts of `Pneumonia + pleural_effusion` as `CONDITIONS` would have them."""
    return [part.strip().lower().replace(" ", "_") for part in text.split("+")]


def state_finding(condition: Condition, observation: str, present: bool) -> Condition:
    """The condition with a finding stated, whatever it said of it before.

    What No Finding means is kept: a present pathology denies it, and it denies all of them.

    Args:
        condition: What is known of each image.
        observation: One of `OBSERVATIONS`.
        present: Whether the finding is stated as present or as absent.
    """
    stated = {observation: present}
    pathologies = [OBSERVATIONS[i] for i in PATHOLOGIES]
    if present and observation == "No Finding":
        stated |= dict.fromkeys(pathologies, False)
    elif present and observation in pathologies:
        stated["No Finding"] = False
    value, known, uncertain = (part.clone() for part in condition[:3])
    for name, state in stated.items():
        column = OBSERVATIONS.index(name)
        value[:, column], known[:, column], uncertain[:, column] = float(state), True, False
    return condition._replace(value=value, known=known, uncertain=uncertain)


def parse_condition(text: str) -> HealthCondition:
    """Reads `pneumonia`, `healthy`, `pneumonia+pleural_effusion`, ...

    Raises:
        UserError: If a part is not in `CONDITIONS`, or the parts contradict each other.
    """
    parts = condition_keys(text)
    unknown = [part for part in parts if part not in CONDITIONS]
    if unknown:
        raise UserError(
            f"condition: {unknown[0]!r} in {text!r} is not a health condition; use one of "
            f"{', '.join(CONDITIONS)}, or several joined by '+'."
        )
    present = tuple(dict.fromkeys(o for part in parts for o in CONDITIONS[part].present))
    denied = dict.fromkeys(o for part in parts for o in CONDITIONS[part].absent)
    absent = tuple(o for o in denied if o not in present)
    pathologies = [o for o in present if o not in ("No Finding", "Support Devices")]
    if "No Finding" in present and pathologies:
        raise UserError(
            f"condition: {text!r} contradicts itself, since a healthy radiograph shows no finding; "
            "ask for the parts one by one."
        )
    return HealthCondition("+".join(dict.fromkeys(parts)), present, absent)


def parse_conditions(text: str) -> list[HealthCondition]:
    """Reads `healthy,pneumonia+edema`; each condition once, however it is spelt.

    Nothing between two commas, or behind the last one, is no condition.

    Raises:
        UserError: As `parse_condition` does.
    """
    conditions: dict[tuple[frozenset[str], ...], HealthCondition] = {}
    parts = [part for part in text.split(",") if part.strip()]
    for condition in map(parse_condition, parts or [text]):
        meaning = frozenset(condition.present), frozenset(condition.absent)
        conditions.setdefault(meaning, condition)
    return list(conditions.values())
