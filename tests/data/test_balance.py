"""Weights against the definition, image by image."""

import numpy as np
import pandas as pd
import pytest

from cxr_lightning.data.balance import view_weights
from cxr_lightning.errors import UserError
from cxr_lightning.types import OBSERVATIONS

ROWS = 400
NAMES = ["healthy", "pneumonia", "pleural_effusion"]


def confounded(seed=0):
    """Healthy mostly PA, ill mostly AP; some of no stated view."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({o: np.full(ROWS, np.nan) for o in OBSERVATIONS})
    kind = rng.integers(0, 5, ROWS)  # healthy, pneumonia, effusion, both, none of these
    table.loc[kind == 0, "No Finding"] = 1.0
    table.loc[(kind == 1) | (kind == 3), "Pneumonia"] = 1.0
    table.loc[(kind == 2) | (kind == 3), "Pleural Effusion"] = 1.0
    pa = rng.random(ROWS) < np.where(kind == 0, 0.7, 0.2)
    table["AP/PA"] = np.where(pa, "PA", "AP")
    table.loc[rng.random(ROWS) < 0.1, "AP/PA"] = ""
    return table, kind


def test_the_definition_image_by_image():
    table, kind = confounded()
    weights = view_weights(table, NAMES)
    view = table["AP/PA"].to_numpy()
    known = view != ""
    for i in range(ROWS):
        if not known[i]:
            assert weights[i] == 1
            continue
        same_group, same_view = known & (kind == kind[i]), known & (view == view[i])
        share = same_group.sum() * same_view.sum() / known.sum() ** 2
        expected = share / ((same_group & same_view).sum() / known.sum())
        assert weights[i] == pytest.approx(expected)


def test_view_and_condition_are_independent_and_shares_stay():
    table, kind = confounded()
    weights = view_weights(table, NAMES)
    known, pa = (table["AP/PA"] != "").to_numpy(), (table["AP/PA"] == "PA").to_numpy()
    overall = pa[known].mean()
    for group in range(5):
        rows = known & (kind == group)
        assert np.average(pa[rows], weights=weights[rows]) == pytest.approx(overall)
        assert weights[rows].sum() == pytest.approx(rows.sum())
    assert weights.min() > 0


def test_a_condition_in_one_view_only_is_warned_of():
    table, kind = confounded()
    table.loc[kind == 1, "AP/PA"] = "AP"
    table.loc[kind == 3, "AP/PA"] = "AP"
    with pytest.warns(UserWarning, match="no training image of pneumonia is PA"):
        view_weights(table, NAMES)


def test_a_condition_named_twice_counts_once():
    table, _ = confounded()
    twice = view_weights(table, [*NAMES, "healthy"])
    np.testing.assert_array_equal(twice, view_weights(table, NAMES))


def test_no_condition():
    with pytest.raises(UserError, match="'flu' in 'flu' is not a health condition"):
        view_weights(confounded()[0], ["flu"])
