"""What a prompt says, as far as a condition can hold it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from cxr_lightning.data.policies import Labels, build_condition, imply
from cxr_lightning.data.text_encoder import TextEncoder
from cxr_lightning.data.vocabulary import CONDITIONS, View
from cxr_lightning.types import OBSERVATIONS, Condition

FindingState = Literal["present", "absent", "uncertain"]
Side = Literal["left", "right", "bilateral"]
Severity = Literal["mild", "moderate", "severe"]
Sex = Literal["Female", "Male"]

SEVERITIES: tuple[Severity, ...] = ("mild", "moderate", "severe")
STATES: tuple[FindingState, ...] = ("present", "uncertain", "absent")
"""Which of several statements about an observation counts, as the CheXpert labeller joins the
mentions of a report (Irvin et al. 2019, arXiv 1901.07031, section 2.2): the first of these."""

UNFOLLOWED = "side and severity are not followed: they need a model with a text encoder"


@dataclass(frozen=True)
class Finding:
    """An observation that a prompt states.

    Attributes:
        observation: One of `OBSERVATIONS`.
        state: What is said of it.
        side: Where it is, or is not.
        severity: How severe or large it is; in three steps.
        words: The text that says so.
    """

    observation: str
    state: FindingState
    side: Side | None
    severity: Severity | None
    words: str


@dataclass(frozen=True)
class Prompt:
    """A prompt as it was understood.

    Attributes:
        text: As given.
        findings: In the order of the text; an observation is there twice where two sides or
            severities of it are stated.
        view: AP or PA.
        sex: As CheXpert writes it.
        age: In years.
        unused: Words that carry meaning, but that no field of a condition holds.
    """

    text: str
    findings: tuple[Finding, ...]
    view: View | None
    sex: Sex | None
    age: float | None
    unused: tuple[str, ...]

    @property
    def states(self) -> dict[str, FindingState]:
        """The state of each stated observation; see `STATES`."""
        states: dict[str, FindingState] = {}
        for finding in self.findings:
            known = states.get(finding.observation, finding.state)
            states[finding.observation] = min(known, finding.state, key=STATES.index)
        return states

    @property
    def name(self) -> str:
        """A name for tables, such as `pleural_effusion+possible_edema-pneumothorax`."""
        names = {condition.present[0]: name for name, condition in CONDITIONS.items()}
        names["No Finding"] = "healthy"
        states = self.states.items()
        stated = [names[o] for o, state in states if state == "present"]
        stated += [f"possible_{names[o]}" for o, state in states if state == "uncertain"]
        absent = [f"-{names[o]}" for o, state in states if state == "absent"]
        return ("+".join(stated) or "any") + "".join(absent)

    @property
    def has_details(self) -> bool:
        """Whether a side or a severity is stated; see `UNFOLLOWED`."""
        return any(finding.side or finding.severity for finding in self.findings)

    def condition(self, count: int, encoder: TextEncoder | None = None) -> Condition:
        """The condition to generate `count` images from: what is stated, the rest unknown.

        What No Finding implies is filled in as for any labels (`imply`); a healthy radiograph shows
        support devices only where they are asked for, as in `CONDITIONS`. Sides and severities have
        no field; with a text encoder the condition holds the text too.
        """
        states = self.states
        if states.get("No Finding") == "present":
            states = dict.fromkeys(CONDITIONS["healthy"].absent, STATES[-1]) | states
        raw = np.full((1, len(OBSERVATIONS)), np.nan, dtype=np.float32)
        uncertain = np.zeros_like(raw, dtype=bool)
        for observation, state in states.items():
            column = OBSERVATIONS.index(observation)
            if state == "uncertain":
                uncertain[0, column] = True
            else:
                raw[0, column] = float(state == "present")
        value, known = imply(raw)
        demographics = np.full((1, 3), np.nan, dtype=np.float32)
        if self.view is not None:
            demographics[0, 0] = float(self.view == "PA")
        if self.sex is not None:
            demographics[0, 1] = float(self.sex == "Male")
        if self.age is not None:
            demographics[0, 2] = min(self.age, 100.0) / 100.0
        one = build_condition(Labels(value, known, uncertain & ~known), demographics)
        if encoder is not None:
            one = one._replace(text=encoder.encode([self.text]))
        return one.rows(torch.zeros(count, dtype=torch.long))

    def describe(self) -> str:
        """A few lines: what was understood, and what could not be used."""
        lines = {"prompt": " ".join(self.text.split())}
        for state in STATES:
            lines[state] = ", ".join(o for o, stated in self.states.items() if stated == state)
        lines["view"] = self.view or ""
        lines["sex"] = self.sex or ""
        lines["age"] = "" if self.age is None else f"{self.age:.3g} years"
        lines["side and severity"] = "; ".join(filter(None, map(_detail, self.findings)))
        lines["not used"] = ", ".join(self.unused)
        return "\n".join(f"{name}: {value}" for name, value in lines.items() if value)


def _detail(finding: Finding) -> str:
    details = [detail for detail in (finding.side, finding.severity) if detail is not None]
    negation = " (absent)" if finding.state == "absent" else ""
    return f"{finding.observation} {', '.join(details)}{negation}" if details else ""
