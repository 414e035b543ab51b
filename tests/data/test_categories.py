"""Labels to categories: each scheme on labels written out by hand."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from cxr_lightning.data.categories import CATEGORIES, category_weights, column_weights
from cxr_lightning.data.policies import LabelPolicy, Labels, build_condition
from cxr_lightning.errors import UserError
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS, Condition


def condition_of(*labels: dict[str, float], uncertain="ignore") -> Condition:  # type: ignore[no-untyped-def]
    raw = np.full((len(labels), 14), np.nan, dtype=np.float32)
    for row, named in enumerate(labels):
        for name, value in named.items():
            raw[row, OBSERVATIONS.index(name)] = value
    observed = LabelPolicy(uncertain, soft=(0.5, 0.5)).apply(raw)
    return build_condition(observed, np.full((len(labels), 3), np.nan, np.float32))


NORMAL = {"No Finding": 1.0}
EDEMA = {"Edema": 1.0}
TWO = {"Edema": 1.0, "Pneumonia": 1.0, "Support Devices": 1.0}
DEVICES = {"Support Devices": 1.0}
UNCERTAIN = {"Edema": -1.0}
CONTRADICTION = {"No Finding": 1.0, "Edema": 1.0}
ROWS = (NORMAL, EDEMA, TWO, DEVICES, UNCERTAIN, CONTRADICTION, {})


def test_binary() -> None:
    weights = category_weights(condition_of(*ROWS), "binary")
    expected = [[1, 0], [0, 1], [0, 1], [0, 0], [0, 0], [0, 0], [0, 0]]
    assert weights.tolist() == expected


def test_single() -> None:
    weights = category_weights(condition_of(*ROWS), "single")
    names = CATEGORIES["single"]
    found = [[names[k] for k in row.nonzero().flatten()] for row in weights]
    assert found == [["No Finding"], ["Edema"], [], [], [], [], []]
    assert len(names) == 13
    assert "Support Devices" not in names


def test_multi_shares_the_weight_among_what_is_shown() -> None:
    weights = category_weights(condition_of(*ROWS), "multi")
    named = [
        {OBSERVATIONS[k]: round(float(row[k]), 4) for k in row.nonzero().flatten()}
        for row in weights
    ]
    third = {"Edema": 0.3333, "Pneumonia": 0.3333, "Support Devices": 0.3333}
    half = {"No Finding": 0.5, "Edema": 0.5}
    assert named == [NORMAL, EDEMA, third, DEVICES, {}, half, {}]


@pytest.mark.parametrize(
    ("policy", "edema"), [("ignore", 0.0), ("zeros", 0.0), ("ones", 0.5), ("soft", 1 / 3)]
)
def test_uncertain_labels_follow_the_policy(policy: str, edema: float) -> None:
    condition = condition_of({"Edema": -1.0, "Fracture": 1.0}, uncertain=policy)
    weights = category_weights(condition, "multi")
    assert float(weights[0, OBSERVATIONS.index("Edema")]) == pytest.approx(edema)


def test_soft_uncertain_image_is_neither_normal_nor_abnormal() -> None:
    condition = condition_of(UNCERTAIN, uncertain="soft")
    assert category_weights(condition, "binary").tolist() == [[0, 0]]
    assert category_weights(condition, "single").sum() == 0


def test_view_and_sex_use_known_demographics() -> None:
    observations = np.zeros((3, 14), np.float32)
    rows = np.array([[0, 1, 0.5], [1, 0, 0.5], [np.nan, np.nan, np.nan]], np.float32)
    nothing = np.zeros((3, 14), dtype=bool)
    condition = build_condition(Labels(observations, nothing, nothing), rows)
    assert category_weights(condition, "view").tolist() == [[1, 0], [0, 1], [0, 0]]
    assert category_weights(condition, "sex").tolist() == [[0, 1], [1, 0], [0, 0]]


@pytest.mark.parametrize("scheme", list(CATEGORIES))
def test_rows_sum_to_one_or_zero(scheme) -> None:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(0)
    known = torch.rand(200, 17, generator=generator) < 0.4
    value = torch.where(known, (torch.rand(200, 17, generator=generator) < 0.4).float(), 0.0)
    weights = category_weights(Condition.of(value, known), scheme)
    sums = weights.sum(dim=1)
    assert weights.shape == (200, len(CATEGORIES[scheme]))
    assert (weights >= 0).all()
    assert ((sums - 1).abs() < 1e-6).logical_or(sums == 0).all()
    assert 0 < sums.sum() < 200
    assert category_weights(Condition.unknown(4), scheme).sum() == 0


def test_values_of_a_column_are_categories_and_blank_is_none() -> None:
    table = pd.DataFrame({"ward": ["b", "a", "", "Unknown", "b", "c"]})
    names, weights = column_weights(table, "ward", np.arange(5), Condition.unknown(6))
    assert names == ("a", "b")  # c is in no training image
    assert weights.tolist() == [[0, 1], [1, 0], [0, 0], [0, 0], [0, 1], [0, 0]]


def pneumonia_weights(labels, uncertain):  # type: ignore[no-untyped-def]
    condition = condition_of(*({"Pneumonia": label} for label in labels), uncertain=uncertain)
    table = pd.DataFrame({"Pneumonia": labels})
    return column_weights(table, "Pneumonia", np.arange(len(labels)), condition)


def test_what_nobody_looked_for_is_no_category_of_an_observation() -> None:
    names, weights = pneumonia_weights([1.0, 0.0, NOT_ANNOTATED, np.nan], "ignore")
    assert names == ("0.0", "1.0")
    assert weights.sum(dim=1).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("ignore", [0, 0]),
        ("zeros", [1, 0]),
        ("ones", [0, 1]),
        ("soft", [0.5, 0.5]),
        ("multi_class", [0, 0]),
    ],
)
def test_an_uncertain_observation_is_no_category_of_its_own(policy, expected) -> None:  # type: ignore[no-untyped-def]
    names, weights = pneumonia_weights([1.0, 0.0, -1.0], policy)
    assert names == ("0.0", "1.0")
    assert weights.tolist() == [[0, 1], [1, 0], expected]


def test_an_observation_that_is_always_present_divides_no_images() -> None:
    with pytest.raises(UserError, match="'Pneumonia' has 1 values in the training split"):
        pneumonia_weights([1.0, -1.0, np.nan], "ignore")


def test_numbers_are_divided_into_bands_of_equal_counts() -> None:
    ages = np.array([*np.random.default_rng(0).permutation(100), np.nan])
    table = pd.DataFrame({"Age": ages})
    names, weights = column_weights(table, "Age", np.arange(100), Condition.unknown(101))
    assert len(names) == 5
    assert names[0].startswith("Age below ")
    assert weights.sum(dim=0).tolist() == [20] * 5
    assert weights[-1].sum() == 0
    bands = weights[:-1].argmax(dim=1)
    for low, high in itertools.pairwise(range(5)):
        assert ages[:-1][bands == low].max() < ages[:-1][bands == high].min()


@pytest.mark.parametrize(
    ("column", "reason"),
    [("Agee", "neither a scheme"), ("same", "has 1 values"), ("Path", "has 60 values")],
)
def test_columns_that_do_not_divide_images_are_refused(column: str, reason: str) -> None:
    table = pd.DataFrame({"Path": [f"{i}.png" for i in range(60)], "same": "a"})
    with pytest.raises(UserError, match=reason) as error:
        column_weights(table, column, np.arange(60), Condition.unknown(60))
    assert str(error.value).startswith("model.clustering.scheme: ")
