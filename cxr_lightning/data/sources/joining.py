"""Labels and splits of images from another file of the same data set, by a key."""

from pathlib import Path

import pandas as pd

from cxr_lightning.data.sources.tables import PROBLEM, flag, parse_numbers
from cxr_lightning.errors import UserError
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS

KEY = "key"
"""Column by which a row of another file is found."""


def join_labels(
    table: pd.DataFrame, keys: pd.Series, labels: pd.DataFrame, file: Path
) -> pd.DataFrame:
    """Adds the observations of another table; not annotated where it has no such row.

    Args:
        table: One row an image.
        keys: Key of each image.
        labels: Observations as text and `KEY`.
        file: Where these come from.
    """
    labels = parse_numbers(labels.assign(Age=""))
    rows = look_up(keys, labels, file)
    table = flag(table, rows[PROBLEM] != "", rows[PROBLEM])
    found = keys.isin(labels[KEY])
    return table.assign(**{o: rows[o].where(found, NOT_ANNOTATED) for o in OBSERVATIONS})


def look_up(keys: pd.Series, other: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Each image's row of another table, NaN where there is none.

    `PROBLEM` says why an image's row cannot be used, else it is blank. A damaged row whose key is
    that of no image may be the row of any image that has none, so these have a problem too.

    Args:
        keys: Key of each image.
        other: With the column `KEY`.
        file: Where it comes from.

    Raises:
        UserError: If no key is found.
    """
    other = other.drop_duplicates()
    lost = other.loc[(other[PROBLEM] != "") & ~other[KEY].isin(keys), PROBLEM]
    other = flag(other, other[KEY].duplicated(keep=False), "another row contradicts this one")
    rows = other.drop_duplicates(KEY).set_index(KEY).reindex(keys).set_axis(keys.index)
    if rows[PROBLEM].isna().all():
        raise UserError(
            f"root: {file} names none of the images, such as {keys.iloc[0]}; give the file that "
            "belongs to them."
        )
    reason = f"no row in {file.name}, which is damaged ({lost.iloc[0]})" if len(lost) else ""
    return rows.assign(**{PROBLEM: rows[PROBLEM].fillna(reason)})
