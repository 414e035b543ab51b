"""Linear evaluation: whose labels are used, what is judged, how far it is to be trusted."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor

from cxr_lightning.evaluation.linear import (
    MACRO,
    Images,
    LinearRecord,
    label_mean,
    linear_evaluation,
    over_draws,
    patient_share,
)
from cxr_lightning.types import OBSERVATIONS

EDEMA, FRACTURE = OBSERVATIONS.index("Edema"), OBSERVATIONS.index("Fracture")


def images(count: int, seed: int) -> Images:
    """Two findings: features that show them (`good`) and features that do not (`random`)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.full((count, 14), -1)
    labels[:, [EDEMA, FRACTURE]] = torch.randint(2, (count, 2), generator=generator)
    noise = torch.randn(count, 6, generator=generator)
    good = noise.clone()
    good[:, :2] += 2.0 * labels[:, [EDEMA, FRACTURE]]
    patients = np.array([f"{seed}-{i // 2}" for i in range(count)])
    features: dict[str, Tensor] = {"random": noise, "good": good}
    return Images(features, labels, patients)


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, float, str], LinearRecord]:
    records, skipped = linear_evaluation(images(400, 0), images(200, 1))
    assert {entry.label for entry in skipped if entry.fraction == 1.0} == (
        set(OBSERVATIONS) - {"Edema", "Fracture"}
    )
    return {(r.encoder, r.fraction, r.label): r for r in records}


def test_share_of_the_patients_is_whole_patients_and_nested() -> None:
    patients = np.array([f"p{i // 3}" for i in range(300)])
    few, more = patient_share(patients, 0.1, seed=3), patient_share(patients, 0.5, seed=3)
    assert len(few) == 30
    assert len(more) == 150
    assert set(few) < set(more)
    assert len(np.unique(patients[few])) == 10
    assert set(few) != set(patient_share(patients, 0.1, seed=4))
    assert len(patient_share(patients, 0.0001, seed=0)) == 3  # one patient at least
    assert np.array_equal(patient_share(patients, 1.0, seed=0), np.arange(300))


def test_all_labels_give_what_scikit_learn_does(found) -> None:  # type: ignore[no-untyped-def]
    train, test = images(400, 0), images(200, 1)
    features = train.features["good"]
    mean, deviation = features.mean(0), features.std(0, correction=0)
    for label in (EDEMA, FRACTURE):
        oracle = LogisticRegression().fit((features - mean) / deviation, train.labels[:, label])
        score = oracle.decision_function((test.features["good"] - mean) / deviation)
        record = found["good", 1.0, OBSERVATIONS[label]]
        expected = roc_auc_score(test.labels[:, label], score)
        assert record.auroc == pytest.approx(expected, abs=2e-3)
        assert record.draws == 1
        assert record.patients == 200


def test_macro_is_the_mean_and_more_labels_help(found) -> None:  # type: ignore[no-untyped-def]
    pair = [found["good", 1.0, name].auroc for name in ("Edema", "Fracture")]
    assert found["good", 1.0, MACRO].auroc == pytest.approx(sum(pair) / 2)
    assert found["good", 0.1, MACRO].draws == 5
    assert found["good", 0.1, MACRO].patients == 20
    assert found["good", 0.01, "Edema"].auroc < found["good", 1.0, "Edema"].auroc


def test_gain_is_paired_and_its_interval_tells_signal_from_noise(found) -> None:  # type: ignore[no-untyped-def]
    good, random = (found[name, 1.0, MACRO] for name in ("good", "random"))
    (gain,) = good.gains.values()
    assert gain.value == pytest.approx(good.auroc - random.auroc)
    assert gain.interval is not None
    assert gain.interval[0] > 0.2
    low, high = random.interval
    assert low < 0.5 < high
    assert random.gains == {}


def test_fraction_without_both_classes_is_skipped_and_said() -> None:
    records, skipped = linear_evaluation(images(40, 0), images(40, 1))
    # 0.1 % and 1 % of 20 patients are one patient with two images
    few = {r.label: r.draws for r in records if r.fraction == 0.001}
    assert all(draws < 5 for draws in few.values())
    reasons = {(entry.fraction, entry.label): entry.reason for entry in skipped}
    assert "judge" in reasons[1.0, "Pneumonia"]
    for name in ("Edema", "Fracture"):
        if name not in few:
            assert "no draw" in reasons[0.001, name]


def test_mean_over_draws_is_drawn_anew_with_the_patients() -> None:
    values = np.array([[0.5, 0.4, 0.6], [0.7, 0.8, 0.9]])
    picks = np.array([[0, 0], [0, 1]])
    np.testing.assert_allclose(over_draws(values, picks), [0.6, 0.4, 0.75])


def test_mean_over_labels_leaves_out_those_that_a_draw_cannot_judge() -> None:
    values = np.array([[[0.5, 0.6, np.nan], [0.7, np.nan, np.nan]]])
    np.testing.assert_allclose(label_mean(values), [[0.6, 0.6, np.nan]])
