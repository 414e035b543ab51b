"""Who was copied: counts, conditions, warnings and pairs of the privacy axis."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from patient_fields import (
    COPIES,
    HELD_OUT,
    IMAGES,
    SIZE,
    SPACES,
    TRAIN,
    TRAIN_PATIENTS,
    inputs_maker,
    records_of,
)

from cxr_lightning.data.vocabulary import parse_condition
from cxr_lightning.evaluation.inputs import EvaluationInputs, Settings
from cxr_lightning.evaluation.privacy import privacy
from cxr_lightning.metrics.extractors import build_extractor


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., EvaluationInputs]:
    """Makes the inputs for some synthetic images."""
    return inputs_maker(tmp_path)


def test_conditions_and_subgroups(make: Callable[..., EvaluationInputs]) -> None:
    """Only the images asked for as pneumonia are copies, of women of 30 years alone."""
    copied = np.flatnonzero(TRAIN_PATIENTS % 6 == 0)
    images = np.concatenate([IMAGES[copied], IMAGES[-60:]])
    requested = np.repeat(["pneumonia", "healthy"], [len(copied), 60])
    conditions = [parse_condition(name) for name in ("healthy", "pneumonia")]
    inputs = make(images, requested=requested, conditions=conditions)
    records = [r for r in privacy(inputs).records if r.source.name == "pixels"]
    rates = {r.condition: r for r in records if r.metric == "copy_rate_relative"}
    assert rates["pneumonia"].value == 1.0
    assert rates["pneumonia"].n_synthetic == len(copied)
    assert rates["healthy"].value <= 0.05
    assert (rates["pneumonia"].passed, rates["healthy"].passed) == (False, True)
    people = {r.subgroup: r for r in records if r.metric == "copied_patients"}
    patients = len(np.unique(TRAIN_PATIENTS[copied]))
    assert people["sex=Female"].value >= patients
    assert people["age=20-39"].value >= patients
    assert people["sex=Male"].value + people["age=60-79"].value <= 4  # new images flagged by chance
    assert people["sex=Female"].details["subgroup_train_patients"] == len(
        {p for p in TRAIN_PATIENTS if p % 2 == 0}
    )
    assert people["sex=Female"].passed is None
    assert "view=AP" not in people


def test_patients_are_counted_and_resampled(make: Callable[..., EvaluationInputs]) -> None:
    """Four copies of both images of one patient, and new images of one patient or of several."""
    both = np.flatnonzero(np.isin(TRAIN_PATIENTS, TRAIN_PATIENTS[0]))
    assert len(both) == 2
    copies = np.concatenate([IMAGES[both], IMAGES[both]])
    records = records_of(privacy(make(copies)), "pixels")
    assert (records["copied_images"].value, records["copied_patients"].value) == (2.0, 1.0)
    images = np.concatenate([copies, IMAGES[-60:]])
    alone = records_of(privacy(make(images)), "pixels")
    patients = ["copy"] * 4 + [str(i // 2) for i in range(60)]
    together = records_of(privacy(make(images, patients=patients)), "pixels")
    widths = []
    for records in (alone, together):
        low, high = records["copy_rate_relative"].interval or (0.0, 0.0)
        widths.append(high - low)
    assert widths[1] > widths[0]  # four images that are one draw


def test_few_held_out_images_are_warned_of(make: Callable[..., EvaluationInputs]) -> None:
    result = privacy(make(IMAGES[-30:], held_out=15))
    records = records_of(result, "pixels")
    assert "only 15 held-out images; only 30 synthetic images" in str(
        records["nearest_train"].warning
    )
    rate = records["copy_rate_relative"]
    assert "allow no less than 6.2% false positives instead of 1.0%" in str(rate.warning)
    assert rate.details["false_positive_rate"] == 1 / 16
    assert "data_copying" not in records
    assert [s.metric for s in result.skipped] == ["data_copying"] * 2


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"train": 0}, "images of 0 training patients"),
        ({"held_out": 0}, "images of 0 held-out patients"),
        ({"held_out": 1}, "images of 1 held-out patients"),
    ],
)
def test_missing_splits_are_skipped(
    make: Callable[..., EvaluationInputs], sizes: dict[str, int], reason: str
) -> None:
    result = privacy(make(IMAGES[-30:], **sizes))
    assert not result.records
    assert [(s.axis, s.metric) for s in result.skipped] == [("privacy", "all")]
    assert reason in result.skipped[0].reason


@pytest.mark.parametrize(("train", "held_out"), [(3, 2), (3, 30), (30, 2)])
def test_tiny_sets_are_no_crash(
    make: Callable[..., EvaluationInputs], train: int, held_out: int
) -> None:
    result = privacy(make(IMAGES[-3:], train=train, held_out=held_out))
    assert result.records
    json.dumps([r.as_json() for r in result.records], allow_nan=False)


def test_held_out_images_that_repeat_training_images_are_warned_of(
    make: Callable[..., EvaluationInputs],
) -> None:
    inputs = make(IMAGES[COPIES])
    images = inputs.real.images.copy()
    images[TRAIN : TRAIN + 5] = images[:5]
    header = {"size": SIZE, "sha256": "repeats"}
    real = replace(inputs.real, images=images, header=header)
    rate = records_of(privacy(replace(inputs, real=real)), "pixels")["copy_rate"]
    assert rate.value == 0.0
    assert "as near to training images as can be" in str(rate.warning)


def test_pairs_curves_and_records_are_plain(make: Callable[..., EvaluationInputs]) -> None:
    requested = np.array(["healthy"] * 20 + ["pneumonia"] * 20)
    images = np.concatenate([IMAGES[COPIES[:4]], IMAGES[-36:]])
    inputs = make(images, requested=requested)
    result = privacy(inputs)
    content = [[r.as_json() for r in result.records], result.pairs, result.curves]
    json.dumps(content, allow_nan=False)
    assert {*result.grids} == {pair["picture"] for pair in result.pairs}
    assert len(result.pairs) == 16
    for space in SPACES:
        pairs = [pair for pair in result.pairs if pair["space"] == space]
        assert [pair["rank"] for pair in pairs] == [*range(1, 9)]
        relative = [pair["relative"] for pair in pairs]
        assert relative == sorted(relative)
        assert relative[:4] == [0.0] * 4
        assert {pair["train_row"] for pair in pairs[:4]} == {*COPIES[:4].tolist()}
        assert pairs[0]["condition"] == "healthy"
        for pair in pairs:
            synthetic, train, held_out = result.grids[pair["picture"]]
            row = [*inputs.synthetic.table["Path"]].index(pair["synthetic"])
            assert np.array_equal(synthetic, images[row])
            assert np.array_equal(train, inputs.real.images[pair["train_row"]])
            if space == "pixels":
                rms = np.sqrt(np.mean((synthetic / 255 - held_out / 255) ** 2))
                assert pair["distance_held_out"] == pytest.approx(rms, abs=1e-6)
        curve = result.curves["nearest"][space]
        assert len(curve["edges"]) == 31
        assert sum(curve["synthetic_train"]) == 40
        assert sum(curve["held_out_train"]) == HELD_OUT


def test_no_bootstrap_no_intervals(make: Callable[..., EvaluationInputs]) -> None:
    result = privacy(make(IMAGES[-30:], settings=Settings(bootstrap=0)))
    assert all(record.interval is None for record in result.records)


def test_fixed_network_only_where_there_is_no_other(make: Callable[..., EvaluationInputs]) -> None:
    other = build_extractor("fixed")
    other.name = "module:a"
    inputs = make(IMAGES[-30:], extractors=[build_extractor("fixed"), other])
    result = privacy(inputs)
    assert {record.source.name for record in result.records} == {"pixels", "module:a"}
    assert "pair_module_a_1" in result.grids
