"""The condition axis: images that show what was asked for pass, others fail; records by hand."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from blobs import (
    CONDITIONS,
    EFFUSION,
    PNEUMONIA,
    blank_table,
    draw,
    make_inputs,
    real_table,
    requested_names,
    requested_table,
    synthetic_set,
)
from sklearn.metrics import brier_score_loss, roc_auc_score
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_calibration_error

from cxr_lightning.data.dataset import table_condition
from cxr_lightning.data.split import patient_fraction
from cxr_lightning.evaluation import presence
from cxr_lightning.evaluation.classification import POLICY, predict
from cxr_lightning.evaluation.comparison import Comparison, Side
from cxr_lightning.evaluation.condition import condition
from cxr_lightning.evaluation.inputs import EvaluationInputs
from cxr_lightning.evaluation.judge import choose_judge
from cxr_lightning.evaluation.records import OVERALL, PIXELS, AxisResult, Record
from cxr_lightning.evaluation.synthetic import SyntheticSet

JUDGED = ("no_finding", "pneumonia", "pleural_effusion")
WEAK_BLOBS = 20.0
"""Strength at which the classifier errs now and then."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the tests find one another's classifier."""
    return tmp_path_factory.mktemp("work")


def _find(result: AxisResult, metric: str, where: str = OVERALL, subgroup: str = OVERALL) -> Record:
    found = [
        r
        for r in result.records
        if (r.metric, r.condition, r.subgroup) == (metric, where, subgroup)
    ]
    assert len(found) == 1, (metric, where, subgroup)
    return found[0]


@pytest.fixture(scope="module")
def faithful(work: Path) -> tuple[EvaluationInputs, AxisResult]:
    """Synthetic images that show what was requested, as well as real ones do."""
    inputs = make_inputs(work, synthetic_set(strength=WEAK_BLOBS), strength=WEAK_BLOBS)
    return inputs, condition(inputs)


def test_images_that_show_what_was_requested_pass(faithful) -> None:  # type: ignore[no-untyped-def]
    _, result = faithful
    for finding in JUDGED:
        for metric in ("auroc", "accuracy", "brier", "calibration_error"):
            assert _find(result, metric, finding).passed is True, (metric, finding)
    assert _find(result, "auroc").passed is True
    for name in CONDITIONS:
        assert _find(result, "presence", name).passed is True
    assert not result.skipped
    for record in result.records:
        assert record.axis == "condition"
        assert record.source.name == "classifier"
        assert len(record.source.sha256) == 64
        assert record.interval is not None
        assert record.floor is not None
        assert record.n_real > 0
        assert record.n_synthetic > 0
        json.dumps(record.as_json(), allow_nan=False)


@pytest.fixture(scope="module")
def shuffled(work: Path) -> AxisResult:
    """The same images with the requests of others."""
    order = np.random.default_rng(0).permutation(160)
    shown = requested_table(40).iloc[order].reset_index(drop=True)
    return condition(
        make_inputs(work, synthetic_set(strength=WEAK_BLOBS, shown=shown), strength=WEAK_BLOBS)
    )


def test_images_with_shuffled_requests_fail(shuffled: AxisResult) -> None:
    for finding in JUDGED:
        for metric in ("auroc", "accuracy", "brier", "calibration_error"):
            assert _find(shuffled, metric, finding).passed is False, (metric, finding)
    assert _find(shuffled, "auroc").passed is False
    assert _find(shuffled, "auroc").value == pytest.approx(0.5, abs=0.15)
    for name in CONDITIONS[1:]:
        assert _find(shuffled, "presence", name).passed is False


def test_a_classifier_gives_no_verdict_on_images_that_it_chose(faithful) -> None:  # type: ignore[no-untyped-def]
    inputs, result = faithful
    sha256 = result.records[0].source.sha256
    for confirmed_by, alike in ((sha256, False), ("of another", True)):
        chosen = replace(inputs.synthetic, manifest={"reject": {"classifier": confirmed_by}})
        again = condition(replace(inputs, synthetic=chosen))
        for before, now in zip(result.records, again.records, strict=True):
            assert now.value == before.value
            assert now.passed == (before.passed if alike else None)
            assert ("chose the images" in (now.warning or "")) == (not alike)


def test_images_that_show_one_of_two_requested_findings_are_told(work: Path) -> None:
    shown = requested_table(40)
    shown.loc[shown["patient"].index[-40:], "Pleural Effusion"] = 0.0  # those of both findings
    result = condition(make_inputs(work, synthetic_set(shown=shown, strength=60.0), strength=60.0))
    both = CONDITIONS[-1]
    outcomes = {
        name: _find(result, f"joint_{name}", both)
        for name in ("all", "only_pneumonia", "only_pleural_effusion", "none")
    }
    assert sum(record.value for record in outcomes.values()) == pytest.approx(1.0)
    assert sum(record.floor.value for record in outcomes.values() if record.floor) == pytest.approx(
        1
    )
    assert outcomes["only_pneumonia"].value > 0.9
    assert outcomes["all"].passed is False
    assert outcomes["all"].value == _find(result, "presence", both).value
    assert outcomes["only_pneumonia"].passed is None
    assert outcomes["none"].better == "lower"
    assert outcomes["all"].floor is not None
    assert outcomes["all"].floor.value > 0.8
    assert _find(result, "presence", "pneumonia").passed is True


def test_values_equal_scikit_learn_and_torchmetrics(faithful) -> None:  # type: ignore[no-untyped-def]
    inputs, result = faithful
    judge = choose_judge(inputs)
    drawn = inputs.synthetic
    held_out = inputs.split_rows("held_out")
    sides = []
    for images, table, rows in (
        (inputs.real.images, inputs.real.table, held_out),
        (drawn.images, drawn.table, np.arange(len(drawn.images))),
    ):
        known = table_condition(table.iloc[rows], POLICY)
        sides.append((known, predict(judge.network, images, rows, 32, inputs.device)))
    aurocs = []
    for field, name in (
        (0, "no_finding"),
        (PNEUMONIA, "pneumonia"),
        (EFFUSION, "pleural_effusion"),
    ):
        (there, p_there), (here, p_here) = (
            (known.value[rows, field].numpy() == 1.0, probability[rows, field])
            for known, probability in sides
            for rows in (known.known[:, field].numpy(),)
        )
        record = _find(result, "auroc", name)
        assert record.value == pytest.approx(roc_auc_score(here, p_here))
        assert record.floor is not None
        assert record.floor.value == pytest.approx(roc_auc_score(there, p_there))
        assert (record.n_real, record.n_synthetic) == (len(there), len(here))
        aurocs.append(record.value)
        share, record = here.mean(), _find(result, "brier", name)
        weights = np.where(there, share / there.mean(), (1 - share) / (1 - there.mean()))
        assert record.value == pytest.approx(brier_score_loss(here, p_here))
        assert record.floor is not None
        expected = brier_score_loss(there, p_there, sample_weight=weights)
        assert record.floor.value == pytest.approx(expected)
        record = _find(result, "accuracy", name)
        thresholds = np.array(record.details["thresholds"])
        fold = [
            int(5 * patient_fraction(p, 0))
            for p in drawn.table["patient"][sides[1][0].known[:, field].numpy()]
        ]
        assert record.value == pytest.approx(((p_here >= thresholds[fold]) == here).mean())
        record = _find(result, "calibration_error", name)
        ece = binary_calibration_error(
            torch.from_numpy(p_here), torch.from_numpy(here).int(), n_bins=15
        )
        assert record.value == pytest.approx(ece.item(), abs=1e-6)
    assert _find(result, "auroc").value == pytest.approx(np.mean(aurocs))


def test_no_image_is_judged_by_a_threshold_chosen_on_it() -> None:
    """Answers at random are right half of the time; by the best threshold of all, .57."""
    accuracies = []
    for seed in range(40):
        table = real_table(60, "valid", seed)
        condition_of = table_condition(table, POLICY)
        value, known = condition_of.value.numpy(), condition_of.known.numpy()
        answers = np.random.default_rng(seed).random((60, 17)).astype(np.float32)
        side = Side(value, known, answers, np.ones((1, 60)), table)
        assert all(len({*side.fold[side.patients == name]}) == 1 for name in side.patients)
        thresholds = Comparison(side, side, PIXELS).thresholds[PNEUMONIA]
        accuracies.append(side.answers(PNEUMONIA).accuracy(thresholds, 0.5)[0])
    assert np.mean(accuracies) == pytest.approx(0.5, abs=0.03)  # .01 a standard error


def test_calibration_is_compared_at_equal_numbers_and_prevalence(faithful) -> None:  # type: ignore[no-untyped-def]
    _, result = faithful
    record = _find(result, "calibration_error", "pneumonia")  # 80 positives, 40 negatives
    positives = _find(result, "auroc", "pneumonia").details["real_positives"]
    assert record.floor is not None
    assert record.floor.n == positives + positives // 2 < record.n_real
    assert record.floor.at_n is not None
    assert record.floor.at_n > record.value  # it grows when the sample gets smaller
    assert record.floor.low <= record.floor.value <= record.floor.high


def test_another_prevalence_is_no_fault(work: Path) -> None:
    """One positive in six instead of one in two; the floor is at that prevalence as well."""
    table, names = requested_table(60), requested_names(60)
    keep = np.r_[0:60, 60:80, 120:140, 180:190]
    table, names = table.iloc[keep].reset_index(drop=True), names[keep]
    drawn = SyntheticSet(draw(table, 9, WEAK_BLOBS), "few", table, names)
    result = condition(make_inputs(work, drawn, strength=WEAK_BLOBS))
    for finding in ("pneumonia", "pleural_effusion"):
        for metric in ("accuracy", "brier", "calibration_error"):
            assert _find(result, metric, finding).passed is True


def test_the_calibration_curve_counts_every_image_once(faithful) -> None:  # type: ignore[no-untyped-def]
    _, result = faithful
    curve = result.curves["calibration"]["pneumonia"]
    record = _find(result, "auroc", "pneumonia")
    assert sum(curve["real"]["count"]) == record.n_real
    assert sum(curve["synthetic"]["count"]) == record.n_synthetic
    assert set(curve["real"]) == {"confidence", "frequency", "count"}
    json.dumps(result.curves, allow_nan=False)


def _with_demographics(shown_like_stated: bool) -> SyntheticSet:
    table = requested_table(40)
    generator = np.random.default_rng(3)
    table["AP/PA"] = generator.choice(["AP", "PA"], len(table))
    table["Sex"] = generator.choice(["Female", "Male"], len(table))
    table["Age"] = generator.integers(20, 90, len(table)).astype(float)
    stated = table if shown_like_stated else table.copy()
    if not shown_like_stated:
        for column in ("AP/PA", "Sex", "Age"):
            stated[column] = generator.permutation(stated[column])
    return SyntheticSet(
        draw(table, 5, 60.0), f"stated-{shown_like_stated}", stated, requested_names(40)
    )


@pytest.mark.parametrize("agrees", [True, False])
def test_view_sex_and_age_are_compared_where_they_are_stated(work: Path, agrees: bool) -> None:
    result = condition(make_inputs(work, _with_demographics(agrees), strength=60.0))
    for metric in ("view_agreement", "sex_agreement", "age_error", "age_agreement"):
        record = _find(result, metric)
        assert record.passed is agrees, metric
        assert record.n_synthetic == 160
    assert _find(result, "age_error").unit == "years"
    for subgroup in ("view=PA", "sex=Male", "age=40-59"):
        assert _find(result, "auroc", subgroup=subgroup).floor is not None
    if agrees:
        assert _find(result, "auroc", subgroup="view=AP").passed is True


@pytest.mark.parametrize(("spread", "ages"), [(0.0, 60.0), (25.0, 30.0)])
def test_an_age_that_the_classifier_cannot_tell_is_not_compared(
    monkeypatch: pytest.MonkeyPatch, work: Path, spread: float, ages: float
) -> None:
    """Neither by one age for all, nor where no real image has the ages that were asked for."""
    random = np.random.default_rng(0)

    def errors(side: Side) -> tuple[np.ndarray, ...]:
        real = len(side.value) != 160
        stated = random.uniform(45, 75, 90) if real else np.full(160, ages)
        told = 60 + spread / 25 * (stated - 60)
        weights = np.ones((25, len(stated)))
        return np.abs(told - stated), stated, weights

    monkeypatch.setattr(presence, "_age_errors", errors)
    result = condition(make_inputs(work, _with_demographics(True), strength=60.0))
    record = _find(result, "age_error")
    assert record.passed is None
    assert "cannot judge this" in str(record.warning)


def test_real_ages_are_weighted_to_those_asked_for() -> None:
    real = np.array([10.0, 30, 30, 30, 50, 70])
    ratio = presence._band_ratio(real, np.array([25.0, 35, 55, 55]))
    np.testing.assert_allclose(ratio, [0, 1, 1, 1, 3, 0])
    assert presence._band_ratio(real, np.array([25.0, 85])) is None


def test_what_is_not_stated_is_not_compared(faithful) -> None:  # type: ignore[no-untyped-def]
    _, result = faithful
    metrics = {record.metric for record in result.records}
    assert not metrics & {"view_agreement", "sex_agreement", "age_error", "age_agreement"}
    assert {record.subgroup for record in result.records} == {OVERALL}
    real = _find(result, "auroc").details["real_subgroups"]
    assert {"view=AP", "view=PA", "sex=Female", "sex=Male", "age=40-59"} <= set(real)


def test_few_images_and_a_weak_classifier_are_warned_of(tmp_path: Path) -> None:
    names = ("healthy", "pneumonia")
    table = requested_table(5, names)
    drawn = SyntheticSet(draw(table, 1, 0.0), "few", table, requested_names(5, names))
    inputs = make_inputs(
        tmp_path, drawn, train=40, strength=0.0, conditions=names, classifier_steps=3
    )
    result = condition(inputs)
    warning = _find(result, "auroc", "pneumonia").warning or ""
    assert "cannot judge" in warning
    assert all(r.passed is None for r in result.records if "cannot judge" in (r.warning or ""))
    assert "5 synthetic images" in warning
    assert "cannot judge" in (_find(result, "presence", "pneumonia").warning or "")
    assert "pneumonia: " in (_find(result, "auroc").warning or "")


def test_no_intervals_without_draws(work: Path) -> None:
    result = condition(
        make_inputs(work, synthetic_set(20, strength=WEAK_BLOBS), strength=WEAK_BLOBS, bootstrap=0)
    )
    assert {record.interval for record in result.records} == {None}
    record = _find(result, "auroc", "pneumonia")
    assert record.floor is not None
    assert record.floor.low == record.floor.high == record.floor.value


def _skipped(inputs: EvaluationInputs) -> str:
    result = condition(inputs)
    assert not result.records
    assert [(s.axis, s.metric) for s in result.skipped] == [("condition", "all")]
    return result.skipped[0].reason


def test_sets_that_cannot_be_judged_are_left_out_with_a_reason(tmp_path: Path) -> None:
    table = blank_table(10, "train", "synthetic").assign(patient=[f"p{i}" for i in range(10)])
    unlabelled = SyntheticSet(draw(table, 1), "blank", table)
    assert "states no finding" in _skipped(make_inputs(tmp_path, unlabelled, conditions=()))
    inputs = make_inputs(tmp_path, synthetic_set(4), valid=0)
    assert "splits valid and test" in _skipped(inputs)
    assert "split train" in _skipped(make_inputs(tmp_path, synthetic_set(4), train=0))


def test_findings_that_cannot_be_judged_are_left_out_with_a_reason(tmp_path: Path) -> None:
    names = ("healthy", "pneumonia", "edema")
    table = requested_table(6, names)
    drawn = SyntheticSet(draw(table, 1), "edema", table, requested_names(6, names))
    inputs = make_inputs(tmp_path, drawn, train=40, conditions=names, classifier_steps=2)
    result = condition(inputs)
    reasons = {(s.metric, s.condition): s.reason for s in result.skipped}
    assert "did not learn" in reasons["auroc", "edema"]
    assert "no answer for edema" in reasons["presence", "edema"]
    assert len(reasons) == 2
    assert _find(result, "auroc", "pneumonia").n_synthetic == 12


class _Stuck(nn.Module):
    """Tells Pneumonia; 0.5 for all else."""

    def forward(self, image: Tensor) -> Tensor:
        found = torch.full((image.shape[0], 14), 0.5)
        found[:, 7] = image[:, 0, 3:6, 10:13].mean(dim=(1, 2))
        return found


def test_outputs_of_a_given_classifier_that_are_stuck_are_never_averaged_in(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is kept, not developed
        torch.jit.script(_Stuck()).save(tmp_path / "stuck.pt")
    inputs = make_inputs(tmp_path, synthetic_set(10), train=0, classifier=tmp_path / "stuck.pt")
    result = condition(inputs)
    assert _find(result, "auroc").details["findings"] == ["pneumonia"]
    assert _find(result, "auroc").value == _find(result, "auroc", "pneumonia").value > 0.9
    reasons = {(s.metric, s.condition): s.reason for s in result.skipped}
    assert "the same answer" in reasons["auroc", "pleural_effusion"]
    assert "pleural_effusion" in reasons["presence", CONDITIONS[-1]]
    assert not any(r.metric.endswith("agreement") for r in result.records)


def test_labels_that_are_uncertain_or_blank_are_not_judged(work: Path) -> None:
    drawn = synthetic_set(40, strength=WEAK_BLOBS)
    table = drawn.table.copy()
    table.loc[table.index[:10], "No Finding"] = -1.0
    result = condition(make_inputs(work, replace(drawn, table=table), strength=WEAK_BLOBS))
    assert _find(result, "auroc", "no_finding").n_synthetic == 150


def _as_columns(result: AxisResult) -> list[dict[str, Any]]:
    return [record.as_json() for record in result.records]


def test_the_same_evaluation_gives_the_same_records(faithful) -> None:  # type: ignore[no-untyped-def]
    inputs, result = faithful
    assert _as_columns(condition(inputs)) == _as_columns(result)
    assert pd.DataFrame(_as_columns(result)).duplicated(["metric", "condition"]).sum() == 0
