import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from cxr_lightning.data.policies import apply_policy, build_condition, imply
from cxr_lightning.errors import UserError
from cxr_lightning.types import FIELDS, OBSERVATIONS

NAN = np.nan


def labels(**values):
    """One row; keywords are observations with underscores."""
    row = np.full((1, len(OBSERVATIONS)), NAN, dtype=np.float32)
    for name, value in values.items():
        row[0, OBSERVATIONS.index(name.replace("_", " "))] = value
    return row


def stated(result):
    """Known observations of one row, by name."""
    value, known = result
    assert (value[~known] == 0).all()
    return {o: float(value[0, i]) for i, o in enumerate(OBSERVATIONS) if known[0, i]}


@pytest.mark.parametrize(
    ("policy", "expected"), [("ignore", {}), ("zeros", 0.0), ("ones", 1.0), ("soft", 0.5)]
)
def test_uncertain(policy, expected):
    known = stated(apply_policy(labels(Edema=-1), policy))
    assert known.get("Edema", {}) == expected
    # A positive label denies No Finding; half of one does not.
    assert ("No Finding" in known) == (policy == "ones")


def test_uncertain_by_observation():
    raw = labels(Edema=-1, Pneumonia=-1, Atelectasis=-1)
    known = stated(apply_policy(raw, {"Edema": "ones", "Pneumonia": "zeros"}))
    assert known == {"Edema": 1.0, "Pneumonia": 0.0, "No Finding": 0.0}


def test_blank_and_uncertain_stay_distinct():
    raw = labels(Edema=-1)
    assert stated(apply_policy(raw, "ones", "unknown")) == {"Edema": 1.0, "No Finding": 0.0}
    known = stated(apply_policy(raw, "ignore", "negative"))
    assert set(known) == set(OBSERVATIONS) - {"Edema"}
    assert set(known.values()) == {0.0}


def test_no_finding_denies_pathologies_only():
    known = stated(apply_policy(labels(No_Finding=1)))
    assert known.pop("No Finding") == 1.0
    assert set(known) == set(OBSERVATIONS) - {"No Finding", "Support Devices"}
    assert set(known.values()) == {0.0}


def test_implication_does_not_overwrite():
    assert stated(imply(labels(No_Finding=1, Fracture=1)))["Fracture"] == 1.0
    assert stated(imply(labels(No_Finding=1, Fracture=1)))["No Finding"] == 1.0


def test_support_devices_do_not_deny_no_finding():
    assert stated(imply(labels(Support_Devices=1))) == {"Support Devices": 1.0}


def test_the_raw_labels_are_left_alone():
    raw = labels(No_Finding=1, Edema=-1)
    copy = raw.copy()
    apply_policy(raw, "ones", "negative")
    np.testing.assert_array_equal(raw, copy)


def test_unknown_observation():
    with pytest.raises(UserError, match="'Oedema' is not an observation"):
        apply_policy(labels(), {"Oedema": "ones"})


@pytest.mark.parametrize("policy", ["maybe", {"Edema": "maybe"}])
def test_unknown_policy(policy):
    # In this suite the hook that checks types comes first.
    with pytest.raises((UserError, TypeCheckError), match="maybe"):
        apply_policy(labels(), policy)


def test_condition():
    value, known = imply(labels(Pneumonia=1))
    condition = build_condition(value, known, np.array([[1.0, NAN, 0.34]]))
    by_name = {
        field: float(v)
        for field, v, k in zip(FIELDS, condition.value[0], condition.known[0], strict=True)
        if k
    }
    assert by_name == pytest.approx({"Pneumonia": 1, "No Finding": 0, "PA": 1, "Age": 0.34})
    assert condition.value.dtype == torch.float32
    assert condition.value[~condition.known].eq(0).all()
