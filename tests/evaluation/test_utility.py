"""The utility axis: useful images raise the AUROC, noise does not; who is trained and tested on."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from blobs import draw, make_inputs, real_table, synthetic_set
from sklearn.metrics import roc_auc_score

from cxr_lightning.data.prepared import PreparedDataset
from cxr_lightning.evaluation import regimes
from cxr_lightning.evaluation.classification import fit_classifier
from cxr_lightning.evaluation.inputs import EvaluationInputs
from cxr_lightning.evaluation.records import OVERALL, AxisResult, Record
from cxr_lightning.evaluation.regimes import Task, Trainer, Training, choose_task, training_rows
from cxr_lightning.evaluation.utility import utility

FEW = 0.1
STRENGTH = 25.0
FINDINGS = ("no_finding", "pneumonia", "pleural_effusion")
REGIMES = ("synthetic", "real", "mixed", "augmented", "continued", "pretrained")
ALONE = {"synthetic": "real", "mixed": "real", "augmented": "real", "pretrained": "continued"}
"""Real images alone, in as many steps."""


def _find(
    result: AxisResult,
    metric: str,
    regime: str,
    where: str = OVERALL,
    fraction: float = FEW,
    subgroup: str = OVERALL,
) -> Record:
    found = [
        r
        for r in result.records
        if (r.metric, r.condition, r.subgroup) == (metric, where, subgroup)
        and (r.details["regime"], r.details["fraction"]) == (regime, fraction)
    ]
    assert len(found) == 1
    return found[0]


def _inputs(work: Path, synthetic_strength: float = STRENGTH, **changes: Any) -> EvaluationInputs:
    settings = {"classifier_steps": 40, "utility_seeds": 2, "utility_fractions": (FEW,), **changes}
    drawn = synthetic_set(strength=synthetic_strength)
    return make_inputs(work, drawn, strength=STRENGTH, **settings)


@pytest.fixture(scope="module")
def useful(tmp_path_factory: pytest.TempPathFactory) -> tuple[EvaluationInputs, AxisResult]:
    """160 synthetic images that are as good as real ones, of which there are 16."""
    inputs = _inputs(tmp_path_factory.mktemp("useful"), utility_seeds=4)
    return inputs, utility(inputs)


def test_useful_images_raise_the_auroc_of_few_real_ones(useful) -> None:  # type: ignore[no-untyped-def]
    _, result = useful
    assert not result.skipped
    for regime in ("synthetic", "augmented", "pretrained"):
        gain = _find(result, "utility_gain", regime)
        assert gain.interval is not None
        assert gain.interval[0] > 0.0, regime
        assert gain.passed is True
    assert _find(result, "utility_auroc", "augmented").value > 0.93


def test_images_of_noise_do_not_help(tmp_path: Path) -> None:
    result = utility(_inputs(tmp_path, synthetic_strength=0.0, utility_seeds=4))
    assert _find(result, "utility_auroc", "synthetic", fraction=0.0).value == pytest.approx(
        0.5, abs=0.15
    )
    for regime in ("synthetic", "mixed", "augmented", "pretrained"):
        gain = _find(result, "utility_gain", regime)
        assert gain.interval is not None
        assert gain.interval[0] <= 0.0, regime
    assert _find(result, "utility_gain", "synthetic").passed is False


def test_every_regime_has_its_records(useful) -> None:  # type: ignore[no-untyped-def]
    _, result = useful
    for regime in REGIMES:
        fraction = 0.0 if regime == "synthetic" else FEW
        for where in (*FINDINGS, OVERALL):
            record = _find(result, "utility_auroc", regime, where, fraction)
            assert record.interval is not None
            assert record.interval[0] <= record.value <= record.interval[1]
            assert record.better is None
            if regime not in ALONE:
                assert record.floor is None
            else:
                alone = _find(result, "utility_auroc", ALONE[regime], where)
                assert record.floor is not None
                assert (record.floor.value, record.floor.low, record.floor.high) == (
                    alone.value,
                    *(alone.interval or ()),
                )
            assert record.value == pytest.approx(np.mean(record.details["values"]))
            assert "trainings" not in (record.warning or "")
        if regime in ALONE:
            gain = _find(result, "utility_gain", regime)
            assert gain.better == "higher"
            assert gain.floor is not None
            assert gain.floor.value == 0.0
            expected = _find(result, "utility_auroc", regime, fraction=fraction).value
            assert gain.value == pytest.approx(
                expected - _find(result, "utility_auroc", ALONE[regime]).value
            )
    for regime in ("real", "augmented"):
        for name in ("view=AP", "sex=Male", "age=40-59"):
            record = _find(result, "utility_auroc", regime, subgroup=name)
            assert 0 < record.n_real < 120
    for record in result.records:
        assert (record.axis, record.source.name) == ("utility", "classifier")
        json.dumps(record.as_json(), allow_nan=False)


def test_details_state_what_was_trained_on(useful) -> None:  # type: ignore[no-untyped-def]
    _, result = useful
    counts = {
        regime: (details["real_images"], details["synthetic_images"], details["steps"])
        for regime in REGIMES
        for details in (
            _find(result, "utility_auroc", regime, fraction=FEW * (regime != "synthetic")).details,
        )
    }
    assert counts == {
        "synthetic": (0, 160, 40),
        "real": (16, 0, 40),
        "mixed": (8, 8, 40),
        "augmented": (16, 160, 40),
        "continued": (16, 0, 80),
        "pretrained": (16, 160, 80),
    }
    record = _find(result, "utility_auroc", "augmented")
    assert (record.details["split"], record.details["test_patients"]) == ("held_out", 60)
    assert (record.n_real, record.n_synthetic) == (120, 160)
    for regime in ("real", "continued"):  # twice the steps on the same images
        few = _find(result, "utility_auroc", regime, "no_finding").warning or ""
        assert "no_finding: the rarer class has" in few


def test_values_equal_scikit_learn(useful) -> None:  # type: ignore[no-untyped-def]
    inputs, result = useful
    task = choose_task(inputs)
    assert isinstance(task, Task)
    trainer = Trainer(inputs, task)
    for seed in (0, 1):
        answers = trainer.answers(Training("real", FEW, seed))
        value = task.condition.value.numpy()[task.test]
        known = task.condition.known.numpy()[task.test]
        each = [roc_auc_score(value[known[:, f], f], answers[known[:, f], f]) for f in task.fields]
        found = _find(result, "utility_auroc", "real").details["values"][seed]
        assert found == pytest.approx(np.mean(each))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Arguments of each training."""
    calls: list[dict[str, Any]] = []

    def fit(*arguments: Any, **settings: Any) -> Any:
        calls.append({"rows": arguments[1], **settings})
        return fit_classifier(*arguments, **settings)

    monkeypatch.setattr(regimes, "fit_classifier", fit)
    return calls


def _as_json(result: AxisResult) -> list[dict[str, Any]]:
    return [record.as_json() for record in result.records]


def test_a_run_that_is_killed_goes_on_and_one_that_is_finished_trains_nothing(
    tmp_path: Path, counted: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = _inputs(tmp_path / "killed", classifier_steps=2)
    predict: Callable[..., Any] = regimes.predict

    def killed(*arguments: Any) -> Any:
        if len(counted) == 6:  # the last of the first seed
            raise KeyboardInterrupt
        return predict(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(regimes, "predict", killed)
        utility(inputs)
    assert len(counted) == 6
    resumed = utility(inputs)
    assert all("only 2 trainings" in (record.warning or "") for record in resumed.records)
    assert len(counted) == 6 + 1 + 6  # the last again, and the second seed; none of the others
    assert _as_json(utility(inputs)) == _as_json(resumed)
    assert len(counted) == 13
    fresh = utility(_inputs(tmp_path / "fresh", classifier_steps=2))
    assert len(counted) == 25
    assert _as_json(fresh) == _as_json(resumed)


def test_what_changes_is_trained_anew(tmp_path: Path, counted: list[dict[str, Any]]) -> None:
    inputs = _inputs(tmp_path, classifier_steps=1, utility_seeds=1)
    utility(inputs)
    assert len(counted) == 6
    drawn = replace(inputs.synthetic, sha256="other")
    utility(replace(inputs, synthetic=drawn))
    assert len(counted) == 12
    for file in (inputs.work / "utility").glob("*.npy"):
        file.write_bytes(file.read_bytes()[:100])
    utility(inputs)
    assert len(counted) == 16  # those that others go on from are products of their own


def test_every_training_has_as_many_steps_and_no_patient_of_the_test(
    tmp_path: Path, counted: list[dict[str, Any]]
) -> None:
    inputs = _inputs(tmp_path, classifier_steps=1, utility_seeds=2, utility_fractions=(0.5, 1.0))
    utility(inputs)
    task = choose_task(inputs)
    assert isinstance(task, Task)
    tested = {*inputs.real_patients[task.test]}
    assert len(counted) == 2 * (1 + 2 * 5)
    for call in counted:
        assert call["steps"] == 1
        real = call["rows"][call["rows"] < len(inputs.real.table)]
        assert set(inputs.real.table["split"].iloc[real]) <= {"train"}
        assert not tested & {*inputs.real_patients[real]}


def test_twice_the_steps_on_real_images_go_on_from_the_classifier_of_real_images(
    tmp_path: Path, counted: list[dict[str, Any]]
) -> None:
    inputs = _inputs(tmp_path, classifier_steps=2)
    task = choose_task(inputs)
    assert isinstance(task, Task)
    Trainer(inputs, task).answers(Training("continued", FEW, 1))
    once, again = counted
    assert once["initial"] is None
    assert np.array_equal(once["rows"], again["rows"])
    real = fit_classifier(
        task.images, once["rows"], task.condition, **{k: once[k] for k in once if k != "rows"}
    )
    for name, value in real.state_dict().items():
        assert torch.equal(again["initial"].state_dict()[name], value), name


def test_smaller_shares_are_parts_of_larger_ones_and_whole_patients(tmp_path: Path) -> None:
    inputs = _inputs(tmp_path)
    task = choose_task(inputs)
    assert isinstance(task, Task)
    patients = inputs.real_patients

    def rows(regime: str, fraction: float, seed: int = 0) -> np.ndarray:
        return training_rows(task, patients, Training(regime, fraction, seed))  # type: ignore[arg-type]

    few, half, every = (set(rows("real", fraction)) for fraction in (0.1, 0.5, 1.0))
    assert few < half < every == set(task.train)
    assert len({*patients[list(few)]}) == 8
    assert not {*patients[list(few)]} & {*patients[list(every - few)]}
    assert set(rows("real", 0.1, seed=1)) != few
    assert set(rows("augmented", 0.1)) == few | set(task.synthetic)
    assert set(rows("pretrained", 0.1)) == set(rows("continued", 0.1)) == few
    mixed = rows("mixed", 1.0)
    assert len(mixed) == len(every)
    assert np.isin(mixed, task.synthetic).sum() == 80
    assert len({*mixed}) == 160  # no image twice, where there are enough


def test_few_synthetic_images_come_several_times_in_the_mixture(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path, synthetic_set(5))
    task = choose_task(inputs)
    assert isinstance(task, Task)
    mixed = training_rows(task, inputs.real_patients, Training("mixed", 1.0, 0))
    drawn = mixed[np.isin(mixed, task.synthetic)]
    assert len(drawn) == 80
    assert np.bincount(drawn - task.synthetic[0]).tolist() == [4] * 20


def _with_test_split(inputs: EvaluationInputs, table: pd.DataFrame) -> EvaluationInputs:
    whole = pd.concat([inputs.real.table, table], ignore_index=True)
    images = draw(whole, 3, STRENGTH)
    return replace(inputs, real=PreparedDataset(inputs.work, inputs.real.header, images, whole))


def test_the_test_split_is_used_where_it_has_all_findings(tmp_path: Path) -> None:
    inputs = _inputs(tmp_path)
    table = real_table(60, "test", 8)
    task = choose_task(_with_test_split(inputs, table))
    assert isinstance(task, Task)
    assert task.split == "test"
    assert set(task.test) == set(range(280, 340))
    task = choose_task(_with_test_split(inputs, table.assign(Pneumonia=0.0)))
    assert isinstance(task, Task)
    assert task.split == "held_out"
    assert set(task.test) == set(range(160, 340))


def test_nothing_but_the_findings_is_learned(tmp_path: Path) -> None:
    task = choose_task(_inputs(tmp_path))
    assert isinstance(task, Task)
    assert task.fields == [0, 7, 10]
    assert np.flatnonzero(task.condition.known.any(dim=0)).tolist() == task.fields


def test_sets_without_a_common_finding_are_left_out_with_a_reason(tmp_path: Path) -> None:
    drawn = synthetic_set(3)
    blank = drawn.table.assign(
        **dict.fromkeys(("No Finding", "Pneumonia", "Pleural Effusion", "Support Devices"), np.nan)
    )
    for inputs, text in (
        (make_inputs(tmp_path, replace(drawn, table=blank), conditions=()), "states no finding"),
        (make_inputs(tmp_path, drawn, valid=0), "at least 3 images each"),
        (make_inputs(tmp_path, drawn, train=0), "at least 3 images each"),
    ):
        result = utility(inputs)
        assert not result.records
        assert [(s.axis, s.metric) for s in result.skipped] == [("utility", "all")]
        assert text in result.skipped[0].reason
