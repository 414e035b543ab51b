"""What is asked for: rows drawn from a table, and their columns."""

import numpy as np
import pandas as pd
import pytest

from cxr_lightning.data.policies import read_policy
from cxr_lightning.data.requests import ImageRequests
from cxr_lightning.data.vocabulary import parse_condition
from cxr_lightning.errors import UserError
from cxr_lightning.types import OBSERVATIONS


def table(shown: list[str | None]) -> pd.DataFrame:
    """A row an entry, with one observation, or with none."""
    frame = pd.DataFrame({"Sex": "Male", "Age": np.arange(len(shown)), "AP/PA": "AP"}, dtype=object)
    frame["Frontal/Lateral"] = "Frontal"
    for observation in OBSERVATIONS:
        frame[observation] = [1.0 if one == observation else np.nan for one in shown]
    return frame


def test_rows_are_drawn_as_often_as_any_other():
    requests = ImageRequests.like(table(["Edema", None, "Fracture"]), 7, seed=0, balance=False)
    ages = [row["Age"] for row in requests.rows()]
    counts = [ages.count(age) for age in range(3)]
    assert sorted(counts) == [2, 2, 3]
    again = ImageRequests.like(table(["Edema", None, "Fracture"]), 7, seed=0, balance=False)
    assert again.rows() == requests.rows()


def test_balance_makes_rare_findings_common():
    rows = table(["Edema"] * 98 + ["Fracture", None])
    requests = ImageRequests.like(rows, 2000, seed=0, balance=True)
    drawn = pd.DataFrame(requests.rows())
    # five binomial standard errors of .5
    assert (drawn["Fracture"] == 1).mean() == pytest.approx(0.5, abs=5 * 0.5 / 2000**0.5)
    assert ((drawn["Edema"] == 1) | (drawn["Fracture"] == 1)).all()


def test_lateral_views_are_not_drawn_since_no_condition_states_them():
    rows = table(["Edema", None, "Fracture"])
    rows.loc[2, ["Frontal/Lateral", "AP/PA"]] = ["Lateral", "LL"]
    drawn = ImageRequests.like(rows, 8, seed=0, balance=False).rows()
    assert sorted(row["Age"] for row in drawn) == [0] * 4 + [1] * 4
    with pytest.raises(UserError, match="^like: the prepared set has no frontal image"):
        ImageRequests.like(rows.iloc[2:], 3, seed=0, balance=False)


def test_nothing_to_draw_from_is_refused():
    with pytest.raises(UserError, match="^like: the prepared set has no frontal image"):
        ImageRequests.like(table([]), 3, seed=0, balance=False)
    with pytest.raises(UserError, match="^balance: no image .* shows any observation"):
        ImageRequests.like(table([None, None]), 3, seed=0, balance=True)


def test_the_hash_is_of_what_each_image_shall_show():
    def drawn(observation: str | None) -> str:
        return ImageRequests.like(table([observation]), 2, seed=0, balance=False).sha256

    assert drawn("Edema") == drawn("Edema")
    pneumonia = [parse_condition("pneumonia")]
    views = [ImageRequests.of_conditions(pneumonia, 2, view).sha256 for view in (None, "AP", "PA")]
    assert len({drawn("Edema"), drawn("Fracture"), drawn(None), *views}) == 6


@pytest.mark.parametrize(
    ("data", "uncertain", "blank"),
    [
        ({}, "", ""),
        ({"uncertain": "ones", "blank": "negative"}, 1.0, 0.0),
        ({"uncertain": "soft", "soft": [0.6, 0.7]}, -1.0, ""),
        ({"uncertain": "multi_class"}, -1.0, ""),
        ({"uncertain": {"Edema": "zeros"}}, 0.0, ""),
        ({"uncertain": "self_trained"}, "", ""),
    ],
)
def test_rows_mean_what_they_meant_in_training(data, uncertain, blank):
    rows = table([None])
    rows["Edema"] = -1.0
    drawn = ImageRequests.like(rows, 1, seed=0, balance=False, policy=read_policy(data)).rows()[0]
    assert (drawn["Edema"], drawn["Fracture"]) == (uncertain, blank)


def test_columns_are_those_of_chexpert():
    conditions = [parse_condition(name) for name in ("healthy", "edema+fracture")]
    requests = ImageRequests.of_conditions(conditions, 2, "PA")
    assert len(requests) == 4
    assert requests.names == ["healthy", "healthy", "edema+fracture", "edema+fracture"]
    healthy, _, ill, _ = requests.rows()
    assert (healthy["Sex"], healthy["Age"], healthy["AP/PA"]) == ("Unknown", "", "PA")
    assert (healthy["No Finding"], healthy["Edema"]) == (1.0, 0.0)
    assert (ill["Edema"], ill["Fracture"], ill["No Finding"]) == (1.0, 1.0, 0.0)
    assert ill["Pneumonia"] == ""
