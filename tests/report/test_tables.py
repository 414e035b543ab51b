"""Tables of records, their plots, and stacked bars."""

from typing import Any

import pytest
from evaluation_writer import full_metrics, minimal_metrics

from cxr_lightning.evaluation.records import Floor, Record, Source
from cxr_lightning.report.joint import joint_presence
from cxr_lightning.report.read import Evaluation, Measurement
from cxr_lightning.report.tables import build_groups, scales


def evaluation(records: list[Record], name: str = "e") -> Evaluation:
    read = [Measurement.from_json(r.as_json()) for r in records]
    return Evaluation(name, minimal_metrics(), read, {}, {})


def record(metric: str, value: float, **facts: Any) -> Record:
    return Record("fidelity", metric, value, 9, 9, **facts)


def test_a_line_an_evaluation_in_the_order_of_the_report() -> None:
    both = [evaluation([record("recall", 0.5), record("fid", 3.0)], name) for name in "ab"]
    groups = build_groups(both, lambda *_: True, True, lambda r: r.condition)
    assert [group.title for group in groups] == ["Fréchet distance (FID)", "Recall"]
    assert [line.evaluation for line in groups[0].rows[0].lines] == ["a", "b"]


def test_extractors_of_one_name_stay_apart() -> None:
    sources = [Source("encoder", "a" * 64), Source("encoder", "b" * 64)]
    each = [evaluation([record("fid", 3.0, source=s)], s.sha256[0]) for s in sources]
    groups = build_groups(each, lambda *_: True, False, lambda r: r.metric)
    titles = ["Features of encoder (aaaaaaaa)", "Features of encoder (bbbbbbbb)"]
    assert [group.title for group in groups] == titles


def test_marks_stand_where_the_numbers_are() -> None:
    floor = Floor(10.0, 5.0, 15.0, n=30, at_n=40.0)
    one = record("fid", 30.0, interval=(25.0, 40.0), floor=floor)
    (group,) = build_groups([evaluation([one])], lambda *_: True, True, lambda r: r.metric)
    line = group.rows[0].lines[0]
    assert group.ends == ("0", "50.00")  # 40 + (40 - 30): the interval, moved to the floor's n
    assert line.marks is not None
    assert (line.marks.dot, line.marks.floor) == (80.0, 20.0)
    assert line.marks.whisker == (70.0, 30.0)
    assert line.marks.band == (10.0, 20.0)
    assert (line.value, line.interval, line.at_n) == ("30.00", "25.00 to 40.00", "40.00")
    assert (line.real, line.real_range, line.images) == ("10.00", "5.00 to 15.00", "9 / 9")


@pytest.mark.parametrize(
    ("metric", "values", "scale"),
    [
        ("fid", [2.0, 8.0], (0.0, 8.0)),
        ("fid", [0.0], (0.0, 1.0)),
        ("recall", [0.2, 0.4], (0.0, 1.0)),
        ("auroc", [0.7, 0.9], (0.5, 1.0)),
        ("auroc", [0.3, 0.9], (0.0, 1.0)),
        ("kid", [-0.5, 1.0], (-0.5, 1.0)),
    ],
)
def test_scales(metric: str, values: list[float], scale: tuple[float, float]) -> None:
    found = scales(Measurement("fidelity", metric, value) for value in values)
    assert [*found.values()] == [scale]


def test_unknown_metrics_and_absent_numbers_are_left_out() -> None:
    records = [Measurement("fidelity", "novel", 1.0), Measurement("fidelity", "fid", None)]
    one = Evaluation("e", minimal_metrics(), records, {}, {})
    assert build_groups([one], lambda *_: True, True, lambda r: r.metric) == []


def full(name: str, **changes: Any) -> Evaluation:
    content = full_metrics(**changes)
    return Evaluation(name, content, [Measurement.from_json(r) for r in content["records"]], {}, {})


def test_joint_presence_of_real_and_synthetic_images() -> None:
    (group,) = joint_presence([full("e")])
    assert group.label == "Pneumonia + pleural effusion"
    assert [bar.title for bar in group.bars] == ["Real", "Synthetic"]
    titles = ["all asked for", "only pleural effusion", "only pneumonia", "none"]
    assert [s.title for s in group.bars[0].segments] == titles
    assert len({s.style for s in group.bars[0].segments}) == 4
    for bar in group.bars:
        assert sum(s.width for s in bar.segments) == pytest.approx(100, abs=0.1)


def test_joint_presence_of_several_evaluations_shows_equal_real_images_once() -> None:
    (group,) = joint_presence([full("a"), full("b", seed=1)])
    assert [bar.title for bar in group.bars] == ["Real", "Synthetic, a", "Synthetic, b"]


def test_joint_presence_without_real_images() -> None:
    def part(metric: str, value: float) -> Record:
        return Record("condition", metric, value, 0, 9, condition="a+b+c")

    parts = [part("joint_none", 0.5), part("joint_all", 0.2), part("joint_some", 0.3)]
    (group,) = joint_presence([evaluation(parts)])
    assert [bar.title for bar in group.bars] == ["Synthetic"]
    assert [title for _, title in group.legend] == ["all asked for", "some", "none"]
