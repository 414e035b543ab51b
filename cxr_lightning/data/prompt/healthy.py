"""Statements that the radiograph is normal, beside what else a prompt states."""

from dataclasses import replace

from cxr_lightning.data.policies import PATHOLOGIES
from cxr_lightning.data.prompt.mentions import Extent, Mention
from cxr_lightning.data.prompt.prompt import Finding
from cxr_lightning.data.prompt.synonyms import ACUTE, LUNG
from cxr_lightning.errors import UserError
from cxr_lightning.types import OBSERVATIONS

Statement = tuple[Mention, Finding]

ALL = tuple(OBSERVATIONS[i] for i in PATHOLOGIES)
DENIED: dict[Extent, tuple[str, ...]] = {"all": ALL, "acute": ACUTE, "lung": LUNG}
"""What cannot be present beside each extent of No Finding."""


def settle_healthy(
    statements: list[Statement], remainder: bool, label: str
) -> tuple[list[Statement], list[Mention]]:
    """Decides what each No Finding of a prompt means beside the other statements.

    Alone it is No Finding, also where only the lungs are said to be clear. Beside a pathology that
    it does not deny, clear lungs are an absent Lung Opacity, and anything else is dropped: "no
    acute process, old fracture" is not healthy, and no field says "the rest is normal".

    Args:
        statements: What the prompt states.
        remainder: Whether "normal" speaks of the rest only, as in "otherwise normal".
        label: How messages begin.

    Returns:
        The statements that stay, and the mentions that are dropped.

    Raises:
        UserError: If a pathology is present that is denied.
    """
    ill = [f for _, f in statements if f.observation in ALL and f.state != "absent"]
    kept, dropped = list[Statement](), list[Mention]()
    for mention, finding in statements:
        if finding.observation != "No Finding":
            kept.append((mention, finding))
            continue
        one_side = finding.side in ("left", "right")
        if not remainder and not one_side:
            _check(finding, [f for f in ill if f.observation in DENIED[mention.extent]], label)
        if not ill and not one_side:
            kept.append((mention, replace(finding, side=None, severity=None)))
        elif mention.extent == "lung" and not any(f.observation in LUNG for f in ill):
            opacity = replace(finding, observation="Lung Opacity", state="absent")
            kept.append((mention, opacity))
        else:
            dropped.append(mention)
    return kept, dropped


def _check(healthy: Finding, denied: list[Finding], label: str) -> None:
    for finding in denied:
        if finding.state == "present":
            raise UserError(
                f"{label} asks for a healthy radiograph ({healthy.words!r}) and for "
                f"{finding.observation} ({finding.words!r}); leave one of them out."
            )
