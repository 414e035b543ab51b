"""Numbers that must lie in a range."""

import math

from cxr_lightning.errors import UserError


def check_range(
    argument: str,
    value: float | int,
    least: float | int,
    most: float | int = math.inf,
    *,
    above: bool = False,
    below: bool = False,
) -> None:
    """Raises an error for a number outside a range, for NaN and for infinity.

    Args:
        argument: Where the user gave it.
        value: The number.
        least: The smallest that is possible.
        most: The largest.
        above: Whether `least` itself is too small.
        below: Whether `most` itself is too large.

    Raises:
        UserError: Naming argument, value and range.
    """
    large_enough = value > least if above else value >= least
    small_enough = value < most if below else value <= most
    if large_enough and small_enough and math.isfinite(value):
        return
    low = f"more than {least}" if above else f"{least}"
    if math.isinf(most):
        use = low if above else f"{low} or more"
    elif above:
        use = f"{low}, {'less than' if below else 'at most'} {most}"
    else:
        use = f"{low} to {'below ' if below else ''}{most}"
    raise UserError(f"{argument}: {value} is not possible; use {use}.")
