"""Weights that take the view out of the health conditions.

In CheXpert 32 % of the healthy frontal radiographs are PA and 10 % of those with an effusion: a
model can tell the view instead of the disease.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from cxr_lightning.data.vocabulary import parse_condition


def view_weights(table: pd.DataFrame, conditions: Sequence[str]) -> Float[np.ndarray, " n"]:
    """Reweighing (Kamiran and Calders 2012): weights under which view and group are independent.

    A group is a combination of the conditions. With the shares P among the images whose view is AP
    or PA, an image of group g and view v weighs P(g) P(v) / P(g, v): the shares of the groups and
    of the views stay what they are. Other images weigh 1. Warns of a condition of which one view
    is missing: no weight can balance it.

    Args:
        table: Rows of a prepared table, labels raw.
        conditions: Health conditions, such as `healthy`, `pneumonia`.

    Raises:
        UserError: If a condition is none.
    """
    parsed = [parse_condition(text) for text in dict.fromkeys(conditions)]
    shown = pd.DataFrame({c.name: c.matches(table) for c in parsed}, index=table.index)
    view = table["AP/PA"]
    known = view.isin(["AP", "PA"])
    for name in shown:
        missing = {"AP", "PA"} - set(view[known & shown[name]])
        if missing:
            warnings.warn(
                f"data.balance_view: no training image of {name} is "
                f"{' or '.join(sorted(missing))}, so its view stays confounded.",
                stacklevel=2,
            )
    group = shown.to_numpy() @ 2 ** np.arange(shown.shape[1])
    weights = np.ones(len(table))
    cells = pd.DataFrame({"group": group, "view": view})[known]
    joint = cells.groupby(["group", "view"])["view"].transform("size")
    of_group = cells.groupby("group")["view"].transform("size")
    of_view = cells.groupby("view")["view"].transform("size")
    weights[known.to_numpy()] = of_group * of_view / (joint * len(cells))
    return weights
