"""Names and numbers as the report writes them."""

import pytest
from evaluation_writer import full_metrics

from cxr_lightning.report.read import Measurement
from cxr_lightning.report.words import (
    AXES,
    METRICS,
    fact,
    label,
    number,
    percent,
    subgroup_label,
    value_text,
)


def test_labels() -> None:
    assert label("pleural_effusion+edema") == "Pleural effusion + edema"
    assert label("all") == "All conditions"
    names = ("all", "view=PA", "sex=Female", "age=40-59", "age=80+")
    titles = ["All patients", "View PA", "Female", "Age 40–59", "Age 80+"]
    assert [subgroup_label(name) for name in names] == titles
    assert subgroup_label("else") == "else"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.0, "0"),
        (1.7e-18, "0"),
        (418.71, "418.7"),
        (25149.2, "25,149"),
        (1.5, "1.50"),
        (0.0351, "0.0351"),
        (2.18e-4, "0.000218"),
        (-0.5, "−0.500"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.01, "1 %"),
        (0.014, "1.4 %"),
        (0.123, "12 %"),
        (1.0, "100 %"),
        (0.0, "0 %"),
        (0.996, "99.6 %"),
        (0.9999, "99.9 %"),
        (0.0104, "1.0 %"),
        (0.00014, "0.014 %"),
    ],
)
def test_shares(share: float, text: str) -> None:
    assert percent(share).replace("\u00a0", " ") == text


def test_values_with_units_and_counts() -> None:
    distance = Measurement("fidelity", "spectral_distance", 1.9, unit="dB")
    assert value_text(distance, distance.value) == "1.90 dB"
    assert value_text(distance, None) == "–"
    count = Measurement("privacy", "copied_patients", 1200.0)
    assert value_text(count, count.value) == "1,200"


def test_facts() -> None:
    assert fact({"train": 3, "test": None}) == "train: 3, test: –"
    assert fact([True, "x"]) == "yes, x"
    assert [fact(v) for v in (None, "", {}, [])] == ["–"] * 4


def test_words_for_every_metric() -> None:
    used = {(r["axis"], r["metric"]) for r in full_metrics()["records"]}
    for axis, metric in used:
        assert axis in AXES
        assert metric.startswith("joint_") or METRICS[metric].axis == axis
    assert all(not m.meaning.endswith(".") and m.title for m in METRICS.values())
