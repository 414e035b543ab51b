"""Evaluations as the report reads them."""

import json
from pathlib import Path

import pytest
from evaluation_writer import full_metrics, minimal_metrics, write_evaluation

from cxr_lightning.report.read import Measurement, distinct_names, read_evaluations


def test_names_tell_folders_apart() -> None:
    assert distinct_names([Path("/a/x"), Path("/a/y")]) == ["x", "y"]
    assert distinct_names([Path("/a/x/e"), Path("/a/y/e")]) == ["x/e", "y/e"]


def test_every_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    content = full_metrics()
    (evaluation,) = read_evaluations([write_evaluation(tmp_path / "evaluation", content)])
    assert len(evaluation.records) == len(content["records"])
    for record, written in zip(evaluation.records, content["records"], strict=True):
        for name, value in written.items():
            assert getattr(record, name) == ("" if value is None and name in TEXTS else value)


TEXTS = ("floor_meaning",)


def test_pictures_by_name(tmp_path: Path) -> None:
    (evaluation,) = read_evaluations([write_evaluation(tmp_path / "evaluation")])
    assert evaluation.grids["pneumonia_original"].name == "pneumonia_original.png"
    assert len(evaluation.pairs) == 8


def test_compared_at_the_number_of_images_of_the_floor() -> None:
    record = Measurement(
        "fidelity", "fid", 10.0, ci_low=9.0, ci_high=12.0, real_floor=5.0, value_at_floor_n=20.0
    )
    assert record.compared == 20.0
    assert record.compared_interval == (19.0, 22.0)
    assert record.ratio == 4.0
    alone = Measurement("fidelity", "fid", 10.0)
    assert (alone.compared, alone.compared_interval, alone.ratio) == (10.0, None, None)


def test_find_skips_numbers_that_are_none(tmp_path: Path) -> None:
    record = minimal_metrics()["records"][0]
    content = minimal_metrics(records=[record | {"value": None}, record | {"value": 3.0}])
    (evaluation,) = read_evaluations([write_evaluation(tmp_path / "evaluation", content)])
    found = evaluation.find("fid", "pneumonia")
    assert found is not None
    assert found.value == 3.0
    assert evaluation.find("fid", "edema") is None


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_is_no_number_is_none(tmp_path: Path, text: str) -> None:
    content = json.dumps(minimal_metrics()).replace('"value": 41.7', f'"value": {text}')
    folder = write_evaluation(tmp_path / "evaluation")
    (folder / "metrics.json").write_text(content)
    (evaluation,) = read_evaluations([folder])
    assert evaluation.records[0].value is None
