"""Raw labels (1, 0, -1, blank, not annotated) to values with masks.

Labels are stored raw; a policy applies at load time. The uncertain-label policies are those of the
CheXpert paper (Irvin et al. 2019, arXiv 1901.07031, section 3.2) and the label smoothing of Pham et
al. 2021 (arXiv 1911.06475, section 3.2). What was not annotated is unknown under every policy: No
Finding denies only what was looked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float

from cxr_lightning.errors import UserError
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS, Condition

UncertainPolicy = Literal["ignore", "zeros", "ones", "soft", "multi_class", "self_trained"]
BlankPolicy = Literal["unknown", "negative"]
Preset = Literal["chexpert_paper", "common"]

PRESETS: dict[Preset, dict[str, UncertainPolicy]] = {
    "chexpert_paper": {
        "Atelectasis": "ones",
        "Cardiomegaly": "multi_class",
        "Consolidation": "self_trained",
        "Edema": "ones",
        "Pleural Effusion": "multi_class",
    },
    "common": {**dict.fromkeys(OBSERVATIONS, "zeros"), "Atelectasis": "ones", "Edema": "ones"},
}
"""`chexpert_paper`: the final choice of Irvin et al. 2019 (table 3) for its five tasks; it has none
for the other observations, which are ignored. `common`: what most later work does."""

NO_FINDING = OBSERVATIONS.index("No Finding")
PATHOLOGIES = [i for i, o in enumerate(OBSERVATIONS) if o not in ("No Finding", "Support Devices")]
"""Columns of the 12 observations that No Finding denies; support devices are no pathology."""

PolicyT = TypeVar("PolicyT", UncertainPolicy, BlankPolicy)


class Labels(NamedTuple):
    """Observations under a policy.

    Attributes:
        value: In [0, 1]; 0 where unknown.
        known: Whether the value is known.
        uncertain: Whether it is uncertain, as a class of its own; never where known.
    """

    value: Float[np.ndarray, "n 14"]
    known: Bool[np.ndarray, "n 14"]
    uncertain: Bool[np.ndarray, "n 14"]


@dataclass(frozen=True)
class LabelPolicy:
    """What -1 and blank mean.

    Attributes:
        uncertain: What -1 means: `ignore` (unknown), `zeros`, `ones`, `soft` (a number drawn once
            for each label from the range `soft`), `multi_class` (a class of its own beside 0 and
            1), `self_trained` (a probability that another model gave). One policy for all
            observations, a map from observation to policy (others: `ignore`), or a preset.
        blank: What a blank means: `unknown`, or `negative`; for all observations or a map (others:
            `unknown`).
        soft: Range of `soft`, in [0, 1].
        seed: Seed of these draws.

    Raises:
        UserError: If an observation, a policy or the range is none.
    """

    uncertain: UncertainPolicy | Preset | Mapping[str, UncertainPolicy] = "ignore"
    blank: BlankPolicy | Mapping[str, BlankPolicy] = "unknown"
    soft: tuple[float, float] = (0.55, 0.85)
    seed: int = 0

    def __post_init__(self) -> None:
        expand_uncertain(self.uncertain)
        _expand("data.blank", self.blank, get_args(BlankPolicy), "unknown")
        low, high = self.soft
        if not 0.0 <= low <= high <= 1.0:
            raise UserError(
                f"data.soft: {low} to {high} is not a range of probabilities; give two numbers "
                "from 0 to 1, the lower one first."
            )

    def apply(
        self,
        raw: Float[np.ndarray, "n 14"],
        probabilities: Float[np.ndarray, "n 14"] | None = None,
    ) -> Labels:
        """Applies the policies, then the implications of `imply`.

        Args:
            raw: Labels as stored: 1 positive, 0 negative, -1 uncertain, NaN blank, `NOT_ANNOTATED`.
            probabilities: For `self_trained`, in [0, 1]; NaN where there is none.

        Raises:
            UserError: If a probability is needed that there is not.
        """
        blank = _expand("data.blank", self.blank, get_args(BlankPolicy), "unknown")
        value = np.asarray(raw, dtype=np.float32).copy()
        negative = np.array([policy == "negative" for policy in blank])
        value[np.isnan(value) & negative] = 0.0
        annotated = value != NOT_ANNOTATED
        value[~annotated] = np.nan
        drawn = np.random.default_rng(self.seed).uniform(*self.soft, size=value.shape)
        is_uncertain = value == -1.0
        is_class = np.zeros_like(is_uncertain)
        for column, policy in enumerate(expand_uncertain(self.uncertain)):
            rows = is_uncertain[:, column]
            if policy == "self_trained":
                value[rows, column] = _given(probabilities, rows, column)
            else:
                replacement = {"zeros": 0.0, "ones": 1.0, "soft": drawn[rows, column]}
                value[rows, column] = replacement.get(policy, np.nan)
            is_class[rows, column] = policy == "multi_class"
        value, known = imply(value)
        known &= annotated
        return Labels(np.where(known, value, 0.0).astype(np.float32), known, is_class & ~known)


def imply(
    value: Float[np.ndarray, "n 14"],
) -> tuple[Float[np.ndarray, "n 14"], Bool[np.ndarray, "n 14"]]:
    """Fills what the definition of No Finding implies; NaN means unknown.

    No Finding = 1 makes unknown pathologies 0; a present pathology makes an unknown No Finding 0.
    """
    value = value.copy()
    normal = value[:, NO_FINDING] == 1.0
    pathologies = value[:, PATHOLOGIES]
    value[:, PATHOLOGIES] = np.where(normal[:, None] & np.isnan(pathologies), 0.0, pathologies)
    abnormal = (value[:, PATHOLOGIES] == 1.0).any(axis=1)
    value[abnormal & np.isnan(value[:, NO_FINDING]), NO_FINDING] = 0.0
    known = ~np.isnan(value)
    return np.where(known, value, 0.0).astype(np.float32), known


def build_condition(labels: Labels, demographics: Float[np.ndarray, "n 3"]) -> Condition:
    """Joins observations and (PA, Male, Age / 100; NaN unknown) into a condition."""
    rest_known = ~np.isnan(demographics)
    value = np.concatenate([labels.value, np.where(rest_known, demographics, 0.0)], axis=1)
    return Condition.of(
        torch.from_numpy(value.astype(np.float32)),
        torch.from_numpy(np.concatenate([labels.known, rest_known], axis=1)),
        torch.from_numpy(np.concatenate([labels.uncertain, np.zeros_like(rest_known)], axis=1)),
    )


def expand_uncertain(
    uncertain: UncertainPolicy | Preset | Mapping[str, UncertainPolicy],
) -> list[UncertainPolicy]:
    """One policy for -1 an observation, in column order.

    Raises:
        UserError: If an observation or a policy is none.
    """
    if isinstance(uncertain, str) and uncertain in PRESETS:
        uncertain = PRESETS[uncertain]
    return _expand("data.uncertain", uncertain, get_args(UncertainPolicy), "ignore")


def _expand(
    argument: str,
    policy: PolicyT | Mapping[str, PolicyT],
    known: tuple[PolicyT, ...],
    default: PolicyT,
) -> list[PolicyT]:
    """One policy an observation, in column order."""
    policies = dict.fromkeys(OBSERVATIONS, policy) if isinstance(policy, str) else policy
    for observation, name in policies.items():
        if observation not in OBSERVATIONS:
            raise UserError(
                f"{argument}: {observation!r} is not an observation; use one of "
                f"{', '.join(OBSERVATIONS)}."
            )
        if name not in known:
            raise UserError(
                f"{argument}: {name!r} for {observation!r} is not a policy; use one of "
                f"{', '.join(known)}."
            )
    return [policies.get(observation, default) for observation in OBSERVATIONS]


def _given(
    probabilities: Float[np.ndarray, "n 14"] | None, rows: Bool[np.ndarray, " n"], column: int
) -> Float[np.ndarray, " m"]:
    """Probabilities of the uncertain rows of an observation."""
    if not rows.any():
        return np.empty(0)
    if probabilities is None:
        raise UserError(
            f"data.probabilities: none were given, but the policy 'self_trained' for "
            f"{OBSERVATIONS[column]!r} needs them; name a CSV file with a Path column and one "
            "column an observation, as a model trained with 'ignore' gives them."
        )
    given = probabilities[rows, column]
    if np.isnan(given).any():
        raise UserError(
            f"data.probabilities: {int(np.isnan(given).sum())} of {len(given)} uncertain labels of "
            f"{OBSERVATIONS[column]!r} have no probability; add them, or use another policy."
        )
    return given


def read_policy(settings: Mapping[str, Any]) -> LabelPolicy:
    """The label policy of a run's settings of `data`, as far as they state one.

    Probabilities stay where the run was, so that `self_trained` is `ignore` here.
    """
    stated = {name: settings[name] for name in ("uncertain", "blank", "soft") if name in settings}
    policies = expand_uncertain(stated.get("uncertain", LabelPolicy.uncertain))
    stated["uncertain"] = {
        observation: "ignore" if policy == "self_trained" else policy
        for observation, policy in zip(OBSERVATIONS, policies, strict=True)
    }
    return LabelPolicy(**stated | {"soft": tuple(stated.get("soft", LabelPolicy.soft))})
