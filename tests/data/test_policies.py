import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from cxr_lightning.data.policies import (
    LabelPolicy,
    Labels,
    build_condition,
    expand_uncertain,
    imply,
)
from cxr_lightning.errors import UserError
from cxr_lightning.types import FIELDS, NOT_ANNOTATED, OBSERVATIONS

NAN = np.nan


def labels(**values):
    """One row; keywords are observations with underscores."""
    row = np.full((1, len(OBSERVATIONS)), NAN, dtype=np.float32)
    for name, value in values.items():
        row[0, OBSERVATIONS.index(name.replace("_", " "))] = value
    return row


def apply_policy(raw, uncertain="ignore", blank="unknown"):
    labels = LabelPolicy(uncertain, blank).apply(raw)
    assert not labels.uncertain.any()
    return labels.value, labels.known


def stated(result):
    """Known observations of one row, by name."""
    value, known = result
    assert (value[~known] == 0).all()
    return {o: float(value[0, i]) for i, o in enumerate(OBSERVATIONS) if known[0, i]}


@pytest.mark.parametrize(("policy", "expected"), [("ignore", {}), ("zeros", 0.0), ("ones", 1.0)])
def test_uncertain(policy, expected):
    known = stated(apply_policy(labels(Edema=-1), policy))
    assert known.get("Edema", {}) == expected
    # A positive label denies No Finding; half of one does not.
    assert ("No Finding" in known) == (policy == "ones")


def test_uncertain_by_observation():
    raw = labels(Edema=-1, Pneumonia=-1, Atelectasis=-1)
    known = stated(apply_policy(raw, {"Edema": "ones", "Pneumonia": "zeros"}))
    assert known == {"Edema": 1.0, "Pneumonia": 0.0, "No Finding": 0.0}


def test_soft_draws_once_from_the_range():
    raw = np.full((4000, 14), -1.0, dtype=np.float32)
    first = LabelPolicy("soft", seed=3).apply(raw)
    assert first.known.all()
    assert first.value.min() >= 0.55
    assert first.value.max() <= 0.85
    # Uniform on (0.55, 0.85): mean 0.7, standard deviation 0.3 / sqrt(12); 5 standard errors.
    assert abs(first.value.mean() - 0.7) < 5 * 0.3 / 12**0.5 / first.value.size**0.5
    again = LabelPolicy({"Edema": "soft"}, seed=3).apply(raw)
    edema = OBSERVATIONS.index("Edema")
    np.testing.assert_array_equal(again.value[:, edema], first.value[:, edema])
    other = LabelPolicy("soft", seed=4).apply(raw)
    assert (other.value != first.value).mean() > 0.99
    narrow = LabelPolicy("soft", soft=(0.0, 0.3)).apply(raw)
    assert narrow.value.max() <= 0.3


def test_multi_class_is_a_class_of_its_own():
    raw = labels(Edema=-1, Pneumonia=1)
    result = LabelPolicy({"Edema": "multi_class"}).apply(raw)
    edema = OBSERVATIONS.index("Edema")
    assert result.uncertain[0].tolist() == [i == edema for i in range(14)]
    assert not result.known[0, edema]
    assert result.value[0, edema] == 0
    # What the definition of No Finding settles is no longer uncertain.
    settled = LabelPolicy("multi_class").apply(labels(Edema=-1, No_Finding=1))
    assert settled.known[0, edema]
    assert not settled.uncertain.any()


def test_self_trained_takes_the_given_probability():
    raw = np.concatenate([labels(Edema=-1), labels(Edema=0), labels(Edema=-1)])
    given = np.full((3, 14), NAN, dtype=np.float32)
    edema = OBSERVATIONS.index("Edema")
    given[:, edema] = [0.3, 0.9, 0.6]
    value, known, _ = LabelPolicy({"Edema": "self_trained"}).apply(raw, given)
    np.testing.assert_allclose(value[:, edema], [0.3, 0.0, 0.6], rtol=1e-6)
    assert known[:, edema].all()
    given[2, edema] = NAN
    with pytest.raises(UserError, match="1 of 2 uncertain labels of 'Edema' have no probability"):
        LabelPolicy({"Edema": "self_trained"}).apply(raw, given)
    with pytest.raises(UserError, match=r"data\.probabilities: none were given"):
        LabelPolicy({"Edema": "self_trained"}).apply(raw)
    LabelPolicy("self_trained").apply(labels(Edema=0))  # nothing uncertain, nothing needed


def test_presets():
    # Irvin et al. 2019, table 3: the policy with the best AUROC of each of the five tasks.
    assert expand_uncertain("chexpert_paper") == [
        {
            "Atelectasis": "ones",
            "Edema": "ones",
            "Cardiomegaly": "multi_class",
            "Pleural Effusion": "multi_class",
            "Consolidation": "self_trained",
        }.get(o, "ignore")
        for o in OBSERVATIONS
    ]
    assert expand_uncertain("common") == [
        "ones" if o in ("Atelectasis", "Edema") else "zeros" for o in OBSERVATIONS
    ]


@pytest.mark.parametrize("blank", ["unknown", "negative"])
@pytest.mark.parametrize("uncertain", ["ignore", "zeros", "ones", "soft", "multi_class"])
def test_not_annotated_is_unknown_under_every_policy(uncertain, blank):
    normal = labels(No_Finding=1, Fracture=NOT_ANNOTATED, Edema=0)
    ill = labels(No_Finding=NOT_ANNOTATED, Fracture=NOT_ANNOTATED, Edema=1)
    result = LabelPolicy(uncertain, blank).apply(np.concatenate([normal, ill]))
    fracture = OBSERVATIONS.index("Fracture")
    assert not result.known[:, fracture].any()
    assert not result.known[1, 0]
    assert not result.uncertain.any()
    assert not result.value[~result.known].any()
    assert result.known[0, OBSERVATIONS.index("Pneumonia")]  # not mentioned, so denied


def test_blank_by_observation():
    value, known, _ = LabelPolicy(blank={"Edema": "negative"}).apply(labels())
    assert known[0].tolist() == [o == "Edema" for o in OBSERVATIONS]
    assert not value.any()
    with pytest.raises(UserError, match=r"data\.blank: 'Oedema' is not an observation"):
        LabelPolicy(blank={"Oedema": "negative"})


@pytest.mark.parametrize("soft", [(0.9, 0.1), (-0.1, 0.5), (0.5, 1.1)])
def test_soft_range(soft):
    with pytest.raises(UserError, match=r"data\.soft: .* is not a range"):
        LabelPolicy(soft=soft)


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
    labelled = Labels(value, known, np.zeros_like(known))
    condition = build_condition(labelled, np.array([[1.0, NAN, 0.34]]))
    by_name = {
        field: float(v)
        for field, v, k in zip(FIELDS, condition.value[0], condition.known[0], strict=True)
        if k
    }
    assert by_name == pytest.approx({"Pneumonia": 1, "No Finding": 0, "PA": 1, "Age": 0.34})
    assert condition.value.dtype == torch.float32
    assert condition.value[~condition.known].eq(0).all()
