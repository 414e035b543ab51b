"""Training a classifier: what it learns, from what, and always the same; the one that is kept."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blobs import CPU, EFFUSION, PNEUMONIA, SIZE, draw, make_inputs, real_table, synthetic_set
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from cxr_lightning.artifacts import save_product
from cxr_lightning.data.dataset import table_condition
from cxr_lightning.errors import UserError
from cxr_lightning.evaluation import judge
from cxr_lightning.evaluation.classification import (
    AUGMENTATION,
    FINDINGS,
    POLICY,
    Stacked,
    balanced_loss,
    both_classes,
    class_shares,
    fit_classifier,
    predict,
    training_key,
)
from cxr_lightning.evaluation.judge import choose_judge, open_classifier, stuck
from cxr_lightning.networks.classifier import Classifier
from cxr_lightning.types import FIELDS, OBSERVATIONS, Condition

AGE = FIELDS.index("Age")


def _condition(**fields: list[float]) -> Condition:
    """What is known of some images; NaN where it is not."""
    value = torch.full((len(next(iter(fields.values()))), len(FIELDS)), float("nan"))
    for name, values in fields.items():
        value[:, FIELDS.index(name.replace("_", " "))] = torch.tensor(values)
    return Condition.of(value.nan_to_num(0.0), ~value.isnan())


def _auroc(probability: np.ndarray, condition: Condition, field: int) -> float:
    known = condition.known[:, field].numpy()
    return roc_auc_score(condition.value[known, field] == 1.0, probability[known, field])


def test_findings_are_named_in_column_order() -> None:
    assert len(FINDINGS) == len(OBSERVATIONS)
    assert FINDINGS[0] == "no_finding"
    assert FINDINGS[EFFUSION] == "pleural_effusion"


def test_shares_count_what_is_known_and_are_bounded() -> None:
    nan = float("nan")
    share = class_shares(
        _condition(
            Edema=[1.0, 0.0, 0.0, nan], Fracture=[0.0, 0.0, 0.0, 0.0], Age=[0.2, 0.3, 0.3, nan]
        )
    )
    assert share[FIELDS.index("Edema")] == pytest.approx(1 / 3)
    assert share[FIELDS.index("Fracture")] == pytest.approx(0.05)
    assert share[AGE] == 0.5


def test_balanced_loss_by_hand() -> None:
    nan = float("nan")
    condition = _condition(Edema=[1.0, 0.0, 0.0, nan], Age=[0.4, nan, nan, nan])
    share = class_shares(condition)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, len(FIELDS), generator=generator, requires_grad=True)
    total, count = 0.0, 0
    for i in range(4):
        for f in range(len(FIELDS)):
            if condition.known[i, f]:
                s, t = share[f].item(), condition.value[i, f].item()
                shifted = logits[i, f].item() - np.log(s / (1 - s))
                p = 1 / (1 + np.exp(-shifted))
                total -= t / (2 * s) * np.log(p) + (1 - t) / (2 * (1 - s)) * np.log(1 - p)
                count += 1
    loss = balanced_loss(logits, condition, share)
    assert count == 4
    assert loss.item() == pytest.approx(total / count, rel=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert ((logits.grad != 0) == condition.known).all()


def test_the_best_constant_answer_is_the_share_of_positives() -> None:
    """The weights take nothing from the calibration: here of 1 positive in 10."""
    condition = _condition(Edema=[1.0] + 9 * [0.0])
    share, field = class_shares(condition), FIELDS.index("Edema")
    probabilities = torch.linspace(0.01, 0.99, 99)
    losses = [
        balanced_loss(torch.full((10, len(FIELDS)), p.logit().item()), condition, share)
        for p in probabilities
    ]
    assert probabilities[int(torch.stack(losses).argmin())] == pytest.approx(0.1)
    assert share[field] == pytest.approx(0.1)


def test_both_classes_counts_known_values() -> None:
    condition = _condition(Edema=[1.0, 1.0, 0.0, 0.0], Fracture=[1.0, 1.0, 1.0, float("nan")])
    assert both_classes(condition, at_least=2)[FIELDS.index("Edema")]
    assert not both_classes(condition, at_least=2)[FIELDS.index("Fracture")]
    assert not both_classes(condition, np.array([0, 1, 2]), at_least=2).any()


def test_stacked_arrays_are_read_as_one() -> None:
    generator = np.random.default_rng(0)
    arrays = [generator.integers(0, 255, (n, 4, 4)).astype(np.uint8) for n in (3, 5, 2)]
    rows = np.array([9, 0, 3, 3, 7])
    assert np.array_equal(Stacked(*arrays)[rows], np.concatenate(arrays)[rows])


@pytest.fixture(scope="module")
def learned() -> tuple[Classifier, np.ndarray, Condition]:
    """A classifier of 240 images, half of whose labels are missing; new images, what is known."""
    table = real_table(240, "train", 1)
    generator = np.random.default_rng(2)
    for name in ("Pneumonia", "Pleural Effusion", "No Finding"):
        table.loc[generator.random(240) < 0.5, name] = np.nan
    new = real_table(200, "valid", 3)
    classifier = _fit(draw(table, 4), table_condition(table, POLICY), steps=80)
    return classifier, draw(new, 5), table_condition(new, POLICY)


def _fit(images: np.ndarray, condition: Condition, steps: int = 8, seed: int = 0) -> Classifier:
    rows = np.arange(len(images))
    return fit_classifier(
        images, rows, condition, steps=steps, seed=seed, device=CPU, image_size=SIZE
    )


def test_findings_view_sex_and_age_are_learned_from_what_is_known(learned) -> None:  # type: ignore[no-untyped-def]
    classifier, images, condition = learned
    found = predict(classifier, images, np.arange(len(images)), 64, CPU)
    for field in (PNEUMONIA, EFFUSION, FIELDS.index("PA"), FIELDS.index("Male")):
        assert _auroc(found, condition, field) > 0.95
    error = np.abs(found[:, AGE] - condition.value[:, AGE].numpy()).mean()
    assert error < 0.12  # the median alone: .175


def test_predictions_do_not_depend_on_the_batches(learned) -> None:  # type: ignore[no-untyped-def]
    classifier, images, _ = learned
    rows = np.array([5, 0, 17, 3, 99])
    one, other = (predict(classifier, images, rows, size, CPU) for size in (2, 64))
    assert one.dtype == np.float32
    assert one == pytest.approx(other, abs=1e-6)
    assert np.array_equal(one[1], predict(classifier, images, rows[1:2], 64, CPU)[0]) or (
        one[1] == pytest.approx(predict(classifier, images, rows[1:2], 64, CPU)[0], abs=1e-6)
    )


def test_a_mirrored_finding_is_another_one() -> None:
    """Dextrocardia: augmentation must not teach that sides do not matter."""
    assert AUGMENTATION.flip == 0.0
    table = real_table(120, "train", 1).assign(**{"AP/PA": "", "Sex": "Unknown", "Age": np.nan})
    table["Pleural Effusion"] = 0.0
    images = draw(table.assign(Pneumonia=1.0), 2)
    mirrored = table["Pneumonia"].to_numpy() == 0.0
    images[mirrored] = images[mirrored, :, ::-1]
    condition = table_condition(table, POLICY)
    classifier = _fit(images[:60], condition.rows(slice(0, 60)), steps=50)
    found = predict(classifier, images[60:], np.arange(60), 64, CPU)
    assert _auroc(found, condition.rows(slice(60, 120)), PNEUMONIA) > 0.95


def test_training_is_reproducible_and_leaves_the_global_generator_alone() -> None:
    table = real_table(40, "train", 1)
    images, condition = draw(table, 2), table_condition(table, POLICY)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, again, other = (_fit(images, condition, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[k], again[k]) for k in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_only_the_given_rows_decide() -> None:
    table = real_table(40, "train", 1)
    images, condition = draw(table, 2), table_condition(table, POLICY)
    changed = images.copy()
    changed[30:] = 0
    rows = np.arange(30)
    one, other = (
        fit_classifier(i, rows, condition, steps=3, seed=0, device=CPU, image_size=SIZE)
        for i in (images, changed)
    )
    assert torch.equal(one.head.weight, other.head.weight)


def test_going_on_from_a_classifier_leaves_that_as_it_is() -> None:
    table = real_table(40, "train", 1)
    images, condition = draw(table, 2), table_condition(table, POLICY)
    first = _fit(images, condition)
    kept = first.head.weight.clone()
    second = fit_classifier(
        images, np.arange(40), condition, steps=3, seed=0, device=CPU, initial=first
    )
    assert torch.equal(first.head.weight, kept)
    assert not torch.equal(second.head.weight, kept)
    assert second.image_size == SIZE


def test_a_few_images_and_a_single_step_are_enough() -> None:
    table = real_table(3, "train", 1)
    images, condition = draw(table, 2), table_condition(table, POLICY)
    assert predict(_fit(images, condition, steps=1), images, np.arange(3), 2, CPU).shape == (3, 17)


def test_the_key_tells_all_apart_that_decides() -> None:
    condition = _condition(Edema=[1.0, 0.0, 0.0])
    other = _condition(Edema=[1.0, 0.0, float("nan")])
    rows = np.arange(3)
    keys = {
        training_key("a", rows, condition, CPU, {"steps": 1}),
        training_key("b", rows, condition, CPU, {"steps": 1}),
        training_key("a", rows[:2], condition, CPU, {"steps": 1}),
        training_key("a", rows, other, CPU, {"steps": 1}),
        training_key("a", rows, condition, CPU, {"steps": 2}),
    }
    assert len(keys) == 5
    assert training_key("a", rows, condition, CPU, {"steps": 1}) in keys


def test_the_trained_classifier_is_kept_until_something_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(
        judge, "fit_classifier", lambda *a, **k: calls.append(k) or fit_classifier(*a, **k)
    )
    inputs = make_inputs(tmp_path, synthetic_set(2), train=20, valid=10, classifier_steps=2)
    first = choose_judge(inputs)
    assert len(first.source.sha256) == 64
    assert first.source.name == "classifier"
    assert {"Pneumonia", "Pleural Effusion", "PA", "Male", "Age"} <= set(first.fields)
    assert "Edema" not in first.fields
    assert choose_judge(inputs).source == first.source
    assert len(calls) == 1
    longer = replace(inputs, settings=replace(inputs.settings, classifier_steps=3))
    assert choose_judge(longer).source != first.source
    inputs.real.table["Pneumonia"] = 1.0 - inputs.real.table["Pneumonia"]  # corrected labels
    choose_judge(longer)
    assert len(calls) == 3
    (inputs.work / "classifier" / "model.safetensors").write_bytes(b"cut")
    choose_judge(longer)
    assert len(calls) == 4


def test_the_trained_classifier_holds_its_operating_points_on_held_out_images(
    tmp_path: Path,
) -> None:
    inputs = make_inputs(tmp_path, synthetic_set(2), train=60, valid=40, classifier_steps=20)
    found = choose_judge(inputs)
    opened = open_classifier(inputs.work / "classifier")
    assert opened.points == found.points
    assert opened.size == SIZE
    assert found.points is not None
    assert {"Pneumonia", "Pleural Effusion"} <= set(found.points) <= set(found.fields)
    held_out = inputs.split_rows("held_out")
    said = predict(found.network, inputs.real.images, held_out, 16, CPU)
    for field, point in found.points.items():
        column = FIELDS.index(field)
        known = table_condition(inputs.real.table.iloc[held_out], POLICY)
        rows = known.known[:, column].numpy()
        truth, answers = known.value[:, column].numpy()[rows] == 1.0, said[rows, column]
        assert (point.positives, point.negatives) == (truth.sum(), (~truth).sum())
        assert point.auroc == pytest.approx(roc_auc_score(truth, answers))

        def informedness(threshold: float, truth: Any = truth, answers: Any = answers) -> float:
            shown = answers >= threshold
            return float(shown[truth].mean() - shown[~truth].mean())

        best = max(informedness(float(answer)) for answer in answers)
        assert informedness(point.threshold) == pytest.approx(best)


def test_a_product_without_operating_points_is_trained_again(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path, synthetic_set(2), train=20, valid=10, classifier_steps=2)
    choose_judge(inputs)
    file = inputs.work / "classifier" / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["operating_points"]
    file.write_text(json.dumps(manifest))
    assert open_classifier(inputs.work / "classifier").points is None
    assert choose_judge(inputs).points is not None


def test_a_product_of_an_earlier_evaluation_is_opened(tmp_path: Path) -> None:
    classifier = Classifier(image_size=SIZE)
    facts = {"fields": ["Edema"]}
    save_product(tmp_path / "product", "classifier", {"classifier": classifier}, facts)
    inputs = make_inputs(tmp_path, synthetic_set(2), classifier=tmp_path / "product")
    found = choose_judge(inputs)
    assert found.fields == ("Edema",)
    assert not found.network.training


class _Column(nn.Module):
    """The brightness of the upper right for Pneumonia, 0.5 for all else."""

    def forward(self, image: Tensor) -> Tensor:
        found = torch.full((image.shape[0], 14), 0.5)
        found[:, 7] = image[:, 0, 2:7, 9:14].mean(dim=(1, 2))
        return found


def test_a_torchscript_file_is_opened_and_stuck_outputs_are_found(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is kept, not developed
        torch.jit.script(_Column()).save(tmp_path / "network.pt")
    found = open_classifier(tmp_path / "network.pt")
    assert found.fields == OBSERVATIONS
    assert len(found.source.sha256) == 64
    table = real_table(60, "valid", 1)
    answers = predict(found.network, draw(table, 2), np.arange(60), 16, CPU)
    assert _auroc(answers, table_condition(table, POLICY), PNEUMONIA) > 0.95
    assert stuck(answers)[:14].tolist() == [field != PNEUMONIA for field in range(14)]


def test_what_is_no_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file or folder"):
        open_classifier(tmp_path / "absent")
    with pytest.raises(UserError, match="no product"):
        open_classifier(tmp_path)
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(UserError, match=r"no TorchScript file; make one with torch\.jit\.save"):
        open_classifier(tmp_path / "text.pt")
