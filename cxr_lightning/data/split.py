"""Splits by patient, never by row."""

import hashlib

import pandas as pd

from cxr_lightning.errors import UserError

SPLITS = ("train", "valid", "test")


def patient_fraction(patient: str, seed: int) -> float:
    """A number in [0, 1) that depends on (seed, patient) alone: 64 bits of a SHA-256."""
    digest = hashlib.sha256(f"{seed}/{patient}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assign_splits(table: pd.DataFrame, valid_fraction: float, seed: int) -> pd.Series:
    """Fills the blank splits of a table.

    A stated split is kept, and a patient's blank rows follow it. Any other patient is in `valid`
    where `patient_fraction` is below `valid_fraction`, else in `train`, whatever the other patients
    and the order of the rows.

    Args:
        table: With the columns `patient` and `split` (train, valid, test or blank).
        valid_fraction: Expected share of the patients in `valid`, in [0, 1).
        seed: Another seed draws another split.

    Returns:
        The split of each row.

    Raises:
        UserError: If a patient is in two stated splits.
    """
    stated = table[table["split"] != ""].groupby("patient")["split"].agg(["first", "nunique"])
    crossing = stated.index[stated["nunique"] > 1]
    if len(crossing):
        patient = crossing[0]
        splits = sorted(set(table.loc[table["patient"] == patient, "split"]) - {""})
        raise UserError(
            f"root: patient {patient!r} is in {' and '.join(splits)} ({len(crossing)} such "
            "patients), which would leak; give each patient one split."
        )
    official = stated["first"].to_dict()
    drawn = {
        patient: "valid" if patient_fraction(patient, seed) < valid_fraction else "train"
        for patient in table["patient"].unique()
        if patient not in official
    }
    return table["patient"].map(official | drawn).astype(str)
