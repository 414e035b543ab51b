"""Counts against plain loops over the rows."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxr_lightning.data.description import (
    NEAR_CONSTANT,
    count_conditions,
    count_observations,
    count_policies,
    count_shown,
    count_splits,
    describe_duplicates,
    describe_training,
    find_duplicates,
    find_near_constant,
    summarise_ages,
)
from cxr_lightning.data.prepared import PreparedDataset
from cxr_lightning.data.vocabulary import parse_condition
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS

ROWS = 300


@pytest.fixture
def table():
    """Random labels, views and patients."""
    rng = np.random.default_rng(0)
    codes = np.array([1.0, 0.0, -1.0, np.nan, NOT_ANNOTATED])
    table = pd.DataFrame({o: rng.choice(codes, ROWS) for o in OBSERVATIONS})
    table["AP/PA"] = rng.choice(["AP", "PA", "", "LL"], ROWS)
    table["patient"] = rng.choice([f"p{i}" for i in range(90)], ROWS)
    table["split"] = np.where(table["patient"] < "p5", "train", "valid")
    table["Age"] = rng.choice([20.0, 50.0, 90.0, np.nan], ROWS)
    table["Path"] = [f"{i}.png" for i in range(ROWS)]
    return table


def test_observations(table):
    counts = count_observations(table)
    for observation in OBSERVATIONS:
        raw = table[observation].tolist()
        assert counts.loc[observation].tolist() == [
            raw.count(1.0),
            raw.count(0.0),
            raw.count(-1.0),
            sum(np.isnan(value) for value in raw),
            raw.count(NOT_ANNOTATED),
        ]
    assert (counts.sum(axis=1) == ROWS).all()


def test_images_and_patients_that_show_an_observation(table):
    images, patients = count_shown(table)
    for observation in OBSERVATIONS:
        rows = zip(table[observation], table["patient"], strict=True)
        shown = [patient for value, patient in rows if value == 1.0]
        assert images[observation] == len(shown)
        assert patients[observation] == len(set(shown))


def test_what_a_model_has_seen_is_the_training_split(table):
    table["Sex"] = np.where(table.index % 3 == 0, "", "Female")
    table["Frontal/Lateral"] = "Frontal"
    header = {"source": "chexpert", "origins": ["CheXpert"], "size": 8, "resize": {"filter": "box"}}
    pixels = np.zeros((ROWS, 8, 8), dtype=np.uint8)
    said = describe_training(PreparedDataset(Path("/home/alice"), header, pixels, table))
    train = [row for row in table.to_dict(orient="records") if row["split"] == "train"]
    assert said["images"] == len(train) < ROWS
    assert said["patients"] == len({row["patient"] for row in train})
    assert said["views"] == dict(Counter(row["AP/PA"] or "unknown" for row in train))
    assert said["sexes"] == dict(Counter(row["Sex"] or "unknown" for row in train))
    assert said["projections"] == {"Frontal": len(train)}
    ages = [row["Age"] for row in train if not np.isnan(row["Age"])]
    assert said["ages"]["median"] == np.median(ages)
    assert set(said["ages"]) == {"lower quartile", "median", "upper quartile"}  # not the oldest
    assert {k: said[k] for k in header} == header
    assert json.loads(json.dumps(said)) == said
    assert "alice" not in json.dumps(said)


def test_no_age_is_known(table):
    table["Age"], table["Sex"], table["Frontal/Lateral"] = np.nan, "", "Frontal"
    header = {"source": "rsna", "origins": [], "size": 8, "resize": {}}
    pixels = np.zeros((ROWS, 8, 8), dtype=np.uint8)
    assert describe_training(PreparedDataset(Path(), header, pixels, table))["ages"] == {}


def test_policies_without_implications(table):
    table["No Finding"] = NOT_ANNOTATED
    counts = count_policies(table)
    raw = table["Edema"].tolist()
    positive, negative, uncertain = raw.count(1.0), raw.count(0.0), raw.count(-1.0)
    blank = sum(np.isnan(value) for value in raw)
    assert counts.loc["Edema"].to_dict() == {
        "ignore": f"{positive}/{negative}",
        "zeros": f"{positive}/{negative + uncertain}",
        "ones": f"{positive + uncertain}/{negative}",
        "common": f"{positive + uncertain}/{negative}",
        "blank negative": f"{positive}/{negative + blank}",
    }


def test_conditions(table):
    counts = count_conditions(table)
    rows = table.to_dict(orient="records")
    wanted = {
        "healthy": lambda r: r["No Finding"] == 1 and r["Support Devices"] != 1,
        "pneumonia": lambda r: r["Pneumonia"] == 1,
        "pneumonia+pleural_effusion": lambda r: r["Pneumonia"] == 1 and r["Pleural Effusion"] == 1,
    }
    for name, predicate in wanted.items():
        found = [row for row in rows if predicate(row)]
        ap = sum(row["AP/PA"] == "AP" for row in found)
        pa = sum(row["AP/PA"] == "PA" for row in found)
        assert counts.loc[name, ["images", "AP", "PA", "other"]].tolist() == [
            len(found),
            ap,
            pa,
            len(found) - ap - pa,
        ]
        assert counts.loc[name, "PA share"] == pytest.approx(pa / (ap + pa))
        assert counts.loc[name, "patients"] == len({row["patient"] for row in found})
    assert counts.loc["healthy", "definition"] == "No Finding = 1, Support Devices not 1"


def test_conditions_that_do_not_occur(table):
    table["Pneumonia"] = 0.0
    counts = count_conditions(table)
    assert counts["images"]["edema"] > 0
    assert counts["images"][["pneumonia", "pneumonia+pleural_effusion"]].tolist() == [0, 0]
    assert np.isnan(counts["PA share"]["pneumonia"])


def test_conditions_of_ones_own(table):
    asked = parse_condition("edema+fracture")
    both = (table["Edema"] == 1) & (table["Fracture"] == 1)
    counts = count_conditions(table, [asked])
    assert counts["images"].to_dict() == {"edema+fracture": both.sum()}


def test_share_without_a_view_is_unknown(table):
    assert count_conditions(table.assign(**{"AP/PA": ""}))["PA share"].isna().all()


def test_splits_and_ages(table):
    counts = count_splits(table)
    assert counts["images"].sum() == ROWS
    assert counts.loc["train", "patients"] == len({p for p in table["patient"] if p < "p5"})
    ages = summarise_ages(table)
    assert ages["unknown"] == table["Age"].isna().sum()
    assert (ages["youngest"], ages["oldest"]) == (20, 90)
    assert summarise_ages(table.assign(Age=np.nan)) == {"unknown": ROWS}


def test_duplicates(table, monkeypatch):
    monkeypatch.setattr("cxr_lightning.data.description.BLOCK_BYTES", 7 * 16)  # pairs span blocks
    images = np.random.default_rng(1).integers(0, 256, (20, 4, 4), dtype=np.uint8)
    images[15] = images[3]
    images[19] = images[3]
    images[8] = images[7]
    images[9] = images[10].T  # other pixels
    groups = find_duplicates(images)
    assert sorted(groups) == [[3, 15, 19], [7, 8]]
    table = table.head(20).assign(patient=["a"] * 15 + ["b"] * 5, split="train")
    facts = describe_duplicates(table, groups)
    assert (facts["groups"], facts["images"]) == (2, 5)
    assert facts["groups across patients"] == 1
    assert facts["groups across splits"] == 0
    assert ["7.png", "8.png"] in facts["paths"]


def test_near_constant(monkeypatch):
    monkeypatch.setattr("cxr_lightning.data.description.BLOCK_BYTES", 3 * 64)
    images = np.full((5, 8, 8), 100, dtype=np.uint8)
    images[1, ::2] += 9  # standard deviation 4.5
    images[2, ::2] += 7  # 3.5
    images[4] = np.arange(64).reshape(8, 8)
    assert NEAR_CONSTANT == 4.0
    assert find_near_constant(images).tolist() == [0, 2, 3]
