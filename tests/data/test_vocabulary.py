import numpy as np
import pandas as pd
import pytest
import torch

from cxr_lightning.data.vocabulary import (
    CONDITIONS,
    find_observation,
    parse_condition,
    parse_conditions,
    state_finding,
)
from cxr_lightning.errors import UserError
from cxr_lightning.types import OBSERVATIONS


def table_of(*rows):
    return pd.DataFrame([dict.fromkeys(OBSERVATIONS, np.nan) | row for row in rows])


TABLE = table_of(
    {"No Finding": 1.0},
    {"No Finding": 1.0, "Support Devices": 1.0},
    {"No Finding": 1.0, "Support Devices": 0.0},
    {"Pneumonia": 1.0, "Pleural Effusion": 1.0},
    {"Pneumonia": 1.0, "Pleural Effusion": -1.0},
    {"Pneumonia": -1.0},
    {},
)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("healthy", [0, 2]),
        ("no_finding", [0, 1, 2]),
        ("pneumonia", [3, 4]),
        ("pneumonia+pleural_effusion", [3]),
        ("Pleural Effusion + Pneumonia", [3]),
        ("fracture", []),
    ],
)
def test_matches(text, rows):
    assert np.flatnonzero(parse_condition(text).matches(TABLE)).tolist() == rows


def test_every_observation_has_a_condition():
    assert len(CONDITIONS) == 1 + len(OBSERVATIONS)
    for name, condition in CONDITIONS.items():
        assert condition.name == name
        assert parse_condition(name) == condition


def known(condition):
    assert not condition.known[:, len(OBSERVATIONS) :].any()
    assert (condition.value == condition.value[:1]).all()
    return {
        o: float(condition.value[0, i]) for i, o in enumerate(OBSERVATIONS) if condition.known[0, i]
    }


def test_request_of_a_disease():
    request = parse_condition("pneumonia+pleural_effusion").request(3)
    assert request.value.shape == (3, 17)
    assert known(request) == {"Pneumonia": 1, "Pleural Effusion": 1, "No Finding": 0}


def test_request_of_healthy():
    stated = known(parse_condition("healthy").request(2))
    assert stated.pop("No Finding") == 1
    assert set(stated) == set(OBSERVATIONS) - {"No Finding"}
    assert set(stated.values()) == {0.0}


def test_repeated_parts_count_once():
    assert parse_condition("edema+edema") == parse_condition("edema")


@pytest.mark.parametrize("text", ["", "flu", "pneumonia+", "pneumonia,edema"])
def test_unknown_condition(text):
    with pytest.raises(UserError, match="is not a health condition; use one of healthy"):
        parse_condition(text)


@pytest.mark.parametrize("text", ["healthy+pneumonia", "no_finding+edema"])
def test_contradiction(text):
    with pytest.raises(UserError, match="contradicts itself"):
        parse_condition(text)


def test_healthy_with_devices_if_asked():
    asked = parse_condition("healthy+support_devices")
    assert asked.present == ("No Finding", "Support Devices")
    assert asked.absent == ()
    assert parse_condition("healthy").absent == ("Support Devices",)
    assert parse_condition("healthy").definition == "No Finding = 1, Support Devices not 1"


@pytest.mark.parametrize(
    ("name", "observation"),
    [
        ("NORMAL", "No Finding"),
        ("healthy", "No Finding"),
        ("pleural effusion", "Pleural Effusion"),
        ("Pleural-Effusion", "Pleural Effusion"),
        ("effusion", "Pleural Effusion"),
        ("PNEUMONIA", "Pneumonia"),
        ("oedema", "Edema"),
        ("flu", None),
    ],
)
def test_names_of_observations(name, observation):
    assert find_observation(name) == observation


def test_no_finding_with_devices_is_no_contradiction():
    assert parse_condition("no_finding+support_devices").present == (
        "No Finding",
        "Support Devices",
    )


@pytest.mark.parametrize("base", ["healthy", "pneumonia", "edema+support_devices"])
def test_a_stated_finding_replaces_what_was_known(base):
    before = parse_condition(base).request(2)
    after = state_finding(before, "Pneumonia", True)
    assert known(after) == known(before) | {"Pneumonia": 1, "No Finding": 0}
    absent = state_finding(after, "Pneumonia", False)
    assert known(absent) == known(after) | {"Pneumonia": 0}
    assert not after.uncertain.any()


def test_no_finding_denies_every_pathology():
    ill = parse_condition("pneumonia+edema+support_devices").request(1)
    said = known(state_finding(ill, "No Finding", True))
    assert said.pop("No Finding") == said.pop("Support Devices") == 1
    assert len(said) == 12
    assert not any(said.values())


def test_stating_a_finding_settles_an_uncertain_one_and_changes_no_other_condition():
    before = parse_condition("edema").request(1)
    before.uncertain[:, OBSERVATIONS.index("Pneumonia")] = True
    copy = [part.clone() for part in before]
    assert not state_finding(before, "Pneumonia", False).uncertain.any()
    assert all(torch.equal(a, b) for a, b in zip(before, copy, strict=True))


def test_each_of_several_conditions_is_there_once():
    text = "pneumonia+edema,healthy, Edema + Pneumonia,no_finding,pneumonia+edema+edema"
    assert [condition.name for condition in parse_conditions(text)] == [
        "pneumonia+edema",
        "healthy",
        "no_finding",  # unlike healthy, it may show support devices
    ]


def test_a_comma_too_many_is_overlooked() -> None:
    assert [condition.name for condition in parse_conditions("healthy,, edema,")] == [
        "healthy",
        "edema",
    ]
    for nothing in ("", " , "):
        with pytest.raises(UserError, match="is not a health condition; use one of"):
            parse_conditions(nothing)
