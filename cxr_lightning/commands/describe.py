"""`cxr prepare --describe`: what is in a prepared data set."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int, Shaped
from PIL import Image

from cxr_lightning.data.description import (
    DESCRIBED,
    count_conditions,
    count_observations,
    count_policies,
    count_splits,
    describe_duplicates,
    find_duplicates,
    find_near_constant,
    summarise_ages,
)
from cxr_lightning.data.prepared import PreparedDataset, open_prepared, read_failures
from cxr_lightning.data.sheet import contact_sheet
from cxr_lightning.data.vocabulary import HealthCondition, parse_conditions
from cxr_lightning.errors import UserError
from cxr_lightning.ranges import check_range

COMMON_SIZES = 5
COLUMNS = 8


def describe(
    describe: Path,
    out: Path | None = None,
    conditions: str | None = None,
    per_condition: int = 32,
) -> None:
    """Says what is in a prepared data set, and makes a contact sheet for each health condition.

    Printed: labels by observation, as they are and under the policies for uncertain and blank
    labels; each health condition with its definition and its images by view; splits, sexes, ages,
    sizes of the originals, images that occur twice, images that show nothing, failures. Written:
    the same as `description.json`, and `<condition>.png`.

    Args:
        describe: Folder of the prepared data set.
        out: Folder to write; default: `description` in that folder. What was there is overwritten.
        conditions: More health conditions to count, separated by commas, such as
            `pneumonia+edema,edema+pleural_effusion`.
        per_condition: Images on a contact sheet, at most; drawn at random, at most one a patient
            as far as there are patients.

    Raises:
        UserError: If there is no prepared data set, or `out` cannot be written.
    """
    check_range("per_condition", per_condition, 1)
    asked = parse_conditions(conditions) if conditions else []
    described = [*DESCRIBED, *(c for c in asked if c not in DESCRIBED)]
    prepared = open_prepared(describe, "describe")
    folder = out or describe / "description"
    failures = read_failures(describe, "describe")
    duplicates = describe_duplicates(prepared.table, find_duplicates(prepared.images))
    empty = prepared.table["Path"].iloc[find_near_constant(prepared.images)].tolist()
    facts = _facts(prepared, described) | {
        "duplicates": duplicates,
        "near_constant": empty,
        "failures": len(failures),
    }
    _print(prepared, facts, described)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "description.json").write_text(json.dumps(facts, indent=1) + "\n")
        sheets = _write_sheets(prepared, folder, described, per_condition)
    except OSError as error:
        raise UserError(
            f"out: {folder} cannot be written ({error}); give another --out."
        ) from error
    print(f"\nwrote description.json and {sheets} contact sheets to {folder}")


def _facts(prepared: PreparedDataset, described: list[HealthCondition]) -> dict[str, Any]:
    """All counts, as JSON."""
    table = prepared.table
    sizes = (table["width"].astype(str) + " x " + table["height"].astype(str)).value_counts()
    conditions = count_conditions(table, described).astype(object)
    return {
        "header": prepared.header,
        "images": len(table),
        "patients": int(table["patient"].nunique()),
        "splits": count_splits(table).to_dict(orient="index"),
        "observations": count_observations(table).to_dict(orient="index"),
        "policies": count_policies(table).to_dict(orient="index"),
        "conditions": conditions.where(conditions.notna(), None).to_dict(orient="index"),
        "views": table["AP/PA"].replace("", "blank").value_counts().to_dict(),
        "sexes": table["Sex"].replace("", "Unknown").value_counts().to_dict(),
        "ages": summarise_ages(table),
        "sizes": {size: int(count) for size, count in sizes.items()},
        "reports": int((table["report"] != "").sum()) if "report" in table else 0,
    }


def _print(
    prepared: PreparedDataset, facts: dict[str, Any], described: list[HealthCondition]
) -> None:
    table = prepared.table
    size = prepared.size
    print(f"{facts['images']} images of {facts['patients']} patients, {size} x {size} px")
    _print_table("splits", count_splits(table))
    _print_table("labels as they are", count_observations(table))
    _print_table(
        "positive/negative labels under a policy for uncertain ones", count_policies(table)
    )
    _print_table("health conditions", count_conditions(table, described))
    for name in ("views", "sexes", "ages"):
        print(f"\n{name}: {', '.join(f'{k} {v:g}' for k, v in facts[name].items())}")
    common = list(facts["sizes"].items())[:COMMON_SIZES]
    more = len(facts["sizes"]) - len(common)
    sizes = ", ".join(f"{size} ({count})" for size, count in common)
    print(f"\nsizes of the originals: {sizes}{f' and {more} others' if more else ''}")
    twice = facts["duplicates"]
    print(
        f"\nduplicates: {twice['images']} images in {twice['groups']} groups of the same pixels, "
        f"{twice['groups across patients']} groups across patients, "
        f"{twice['groups across splits']} across splits"
    )
    print(f"near-constant images: {len(facts['near_constant'])}")
    print(f"failures: {facts['failures']}")


def _print_table(title: str, counts: pd.DataFrame) -> None:
    print(f"\n{title}\n{format_table(counts)}")


def format_table(counts: pd.DataFrame) -> str:
    """Counts for a terminal, shares in percent."""
    if counts.empty:
        return "none"
    return counts.to_string(
        float_format=lambda share: f"{share:.0%}", na_rep="-", max_colwidth=60, index_names=False
    )


def _write_sheets(
    prepared: PreparedDataset,
    folder: Path,
    described: list[HealthCondition],
    per_condition: int,
) -> int:
    """Writes a contact sheet for each health condition that occurs; returns how many."""
    sheets = 0
    for condition in described:
        rows = np.flatnonzero(condition.matches(prepared.table))
        if len(rows):
            chosen = choose_rows(prepared.table["patient"].to_numpy(dtype=str), rows, per_condition)
            images = torch.from_numpy(prepared.images[chosen]).unsqueeze(1)
            Image.fromarray(contact_sheet(images, COLUMNS)).save(folder / f"{condition.name}.png")
            sheets += 1
    return sheets


def choose_rows(
    patients: Shaped[np.ndarray, " t"], rows: Int[np.ndarray, " n"], count: int
) -> Int[np.ndarray, " m"]:
    """At most `count` of some rows at random: one of each patient before a second of any."""
    shuffled = np.random.default_rng(0).permutation(rows)
    turn = pd.Series(patients[shuffled]).groupby(patients[shuffled]).cumcount().to_numpy()
    return shuffled[np.argsort(turn, kind="stable")[:count]]
