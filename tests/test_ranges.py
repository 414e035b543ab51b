"""Numbers that must lie in a range."""

import math

import pytest

from cxr_lightning.errors import UserError
from cxr_lightning.ranges import check_range


@pytest.mark.parametrize(
    ("limits", "flags", "good", "bad", "use"),
    [
        ((1,), {}, (1, 2.5, 1e9), (0, -1), "1 or more"),
        ((0,), {"above": True}, (0.1,), (0.0, -1), "more than 0"),
        ((0, 1), {}, (0, 0.5, 1), (-0.1, 1.01), "0 to 1"),
        ((0, 1), {"below": True}, (0, 0.99), (1, 2), "0 to below 1"),
        ((0, 0.5), {"above": True}, (0.1, 0.5), (0, 0.6), "more than 0, at most 0.5"),
        ((0, 2**32 - 1), {}, (7,), (2**32,), "0 to 4294967295"),
        ((0, 1), {"above": True, "below": True}, (0.5,), (0, 1), "more than 0, less than 1"),
    ],
)
def test_range(limits, flags, good, bad, use):
    for value in good:
        check_range("a", value, *limits, **flags)
    for value in (*bad, math.nan, math.inf, -math.inf):
        with pytest.raises(UserError) as error:
            check_range("model.a", value, *limits, **flags)
        assert str(error.value) == f"model.a: {value} is not possible; use {use}."
