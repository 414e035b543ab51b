"""Another image of the same patient: of the split alone, each as likely, itself if alone."""

import numpy as np
import pandas as pd
import pytest

from cxr_lightning.data.partners import Partners, group_codes

TABLE = pd.DataFrame(
    {
        "patient": ["a", "b", "a", "a", "c", "b", "a"],
        "study": ["1", "1", "1", "2", "1", "2", "1"],
    }
)
ROWS = np.array([0, 1, 2, 3, 4, 6])  # row 5, b's second image, is in another split


@pytest.mark.parametrize(
    ("positives", "groups"),
    [
        ("image", [{0}, {1}, {2}, {3}, {4}, {6}]),
        ("study", [{0, 2, 6}, {1}, {3}, {4}]),
        ("patient", [{0, 2, 3, 6}, {1}, {4}]),
    ],
)
def test_partners_are_the_others_of_the_group(positives, groups: list[set[int]]) -> None:  # type: ignore[no-untyped-def]
    partners = Partners(group_codes(TABLE, positives), ROWS)
    draws = np.linspace(0, 1, 60, endpoint=False)
    for row in ROWS:
        found = partners(np.full(60, row), draws)
        others = next(group for group in groups if row in group) - {int(row)} or {int(row)}
        counts = {other: int((found == other).sum()) for other in others}
        assert counts == dict.fromkeys(others, 60 // len(others))
    alone = sum(len(group) == 1 for group in groups)
    assert partners.share == pytest.approx(1 - alone / len(ROWS))


def test_same_name_of_a_study_is_another_study_of_another_patient() -> None:
    codes = group_codes(TABLE, "study")
    assert codes[0] == codes[2] == codes[6]
    assert len({codes[0], codes[1], codes[3], codes[4], codes[5]}) == 5
