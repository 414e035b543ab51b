"""Raw labels (1 / 0 / -1 / blank) to values with a known-mask.

Labels are stored raw; a policy applies at load time. The uncertain-label policies are those of the
CheXpert paper (Irvin et al. 2019, arXiv 1901.07031, section 3.2).
"""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float

from cxr_lightning.errors import UserError
from cxr_lightning.types import OBSERVATIONS, Condition

UncertainPolicy = Literal["ignore", "zeros", "ones", "soft"]
BlankPolicy = Literal["unknown", "negative"]

UNCERTAIN_VALUES: dict[str, float] = {"ignore": np.nan, "zeros": 0.0, "ones": 1.0, "soft": 0.5}
"""Value that replaces -1; NaN makes it unknown."""

NO_FINDING = OBSERVATIONS.index("No Finding")
PATHOLOGIES = [i for i, o in enumerate(OBSERVATIONS) if o not in ("No Finding", "Support Devices")]
"""Columns of the 12 observations that No Finding denies; support devices are no pathology."""


def apply_policy(
    raw: Float[np.ndarray, "n 14"],
    uncertain: UncertainPolicy | Mapping[str, UncertainPolicy] = "ignore",
    blank: BlankPolicy = "unknown",
) -> tuple[Float[np.ndarray, "n 14"], Bool[np.ndarray, "n 14"]]:
    """Applies the label policies and the implications of `imply`.

    Args:
        raw: Labels as stored: 1 positive, 0 negative, -1 uncertain, NaN blank.
        uncertain: What -1 means: `ignore` (unknown), `zeros`, `ones`, `soft` (0.5); one policy for
            all observations or a map from observation to policy (others: `ignore`).
        blank: What a blank means: `unknown`, or `negative`.

    Returns:
        Values in [0, 1] (0 where unknown) and the known-mask.

    Raises:
        UserError: If an observation or a policy is not one of those above.
    """
    per_observation = _expand(uncertain)
    value = np.asarray(raw, dtype=np.float32).copy()
    if blank == "negative":
        value[np.isnan(value)] = 0.0
    for column, policy in enumerate(per_observation):
        rows = value[:, column] == -1.0
        value[rows, column] = UNCERTAIN_VALUES[policy]
    return imply(value)


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


def build_condition(
    observations: Float[np.ndarray, "n 14"],
    known: Bool[np.ndarray, "n 14"],
    demographics: Float[np.ndarray, "n 3"],
) -> Condition:
    """Joins observations and (PA, Male, Age / 100; NaN unknown) into a condition."""
    rest_known = ~np.isnan(demographics)
    value = np.concatenate([observations, np.where(rest_known, demographics, 0.0)], axis=1)
    return Condition(
        torch.from_numpy(value.astype(np.float32)),
        torch.from_numpy(np.concatenate([known, rest_known], axis=1)),
    )


def _expand(uncertain: UncertainPolicy | Mapping[str, UncertainPolicy]) -> list[str]:
    """One policy an observation, in column order."""
    policies = dict.fromkeys(OBSERVATIONS, uncertain) if isinstance(uncertain, str) else uncertain
    for observation, policy in policies.items():
        if observation not in OBSERVATIONS:
            raise UserError(
                f"data.uncertain: {observation!r} is not an observation; use one of "
                f"{', '.join(OBSERVATIONS)}."
            )
        if policy not in get_args(UncertainPolicy):
            raise UserError(
                f"data.uncertain: {policy!r} for {observation!r} is not a policy; use one of "
                f"{', '.join(get_args(UncertainPolicy))}."
            )
    return [policies.get(observation, "ignore") for observation in OBSERVATIONS]
