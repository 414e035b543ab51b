"""The direction of a finding in latent space."""

import torch
from jaxtyping import Float
from torch import Tensor

from cxr_lightning.types import FIELDS, Condition

CONFOUNDERS = ("Support Devices", "PA", "Male", "Age")
"""Fields that go with many findings, and are none of their parts or consequences."""

ALONE = 1e-3
"""Share of a finding's variance that the confounders must leave, for a direction of its own."""

ROUNDING = 1e-9
"""What is left of a finding that does not vary at all."""


def condition_direction(
    z: Float[Tensor, "n d"], condition: Condition, field: str
) -> Float[Tensor, " d"] | None:
    """How the latent code moves from absent to present, all confounders equal.

    The attribute vector of Larsen et al. 2016 (arXiv 1512.09300), the mean code with
    an attribute less the mean without, would carry along what goes with the finding: bedside (AP)
    films for an effusion, say. So it is the coefficient of the finding in a least-squares
    regression of z on the finding and `CONFOUNDERS`, each with a mask of its own, so that unknown
    is no value. It equals the regression on what of the finding the confounders do not tell (Frisch
    and Waugh 1933). Without confounders that vary it is the difference of the means.

    Args:
        z: Latent codes of images (posterior means).
        condition: What is known of each; images where the finding is not known do not count.
        field: The finding, of `FIELDS`.

    Returns:
        The direction; None if the finding does not vary, or the confounders tell it wholly.
    """
    column = FIELDS.index(field)
    known = condition.known[:, column]
    condition, z = condition.rows(known), z[known].double().cpu()
    finding = condition.value[:, column].double().cpu()
    others = [FIELDS.index(name) for name in CONFOUNDERS if name != field]
    stated = condition.known[:, others].double().cpu()
    value = condition.value[:, others].double().cpu()
    design = torch.cat([torch.ones(len(z), 1).double(), stated, value * stated], dim=1)
    fitted = torch.linalg.lstsq(design, finding[:, None], driver="gelsd").solution
    alone = finding - (design @ fitted)[:, 0]
    left, whole = alone.square().sum(), (finding - finding.mean()).square().sum()
    if left <= ALONE * whole + ROUNDING:
        return None
    direction: Tensor = (alone @ z) / left
    return direction.float()
