"""When a number counts as no worse than real images, and how a record is written."""

import json

import pytest

from cxr_lightning.evaluation.records import Floor, Record, Skipped

FLOOR = Floor(10.0, 8.0, 12.0)


def _record(value: float, better: str | None, interval=None, floor: Floor | None = FLOOR) -> Record:
    return Record("fidelity", "x", value, 5, 6, interval=interval, floor=floor, better=better)


@pytest.mark.parametrize(
    ("value", "interval", "better", "passed"),
    [
        (12.5, None, "lower", False),
        (12.5, (11.9, 13.0), "lower", True),  # the intervals overlap
        (5.0, None, "lower", True),  # better than real images
        (7.5, None, "higher", False),
        (7.5, (7.0, 8.5), "higher", True),
        (15.0, None, "higher", True),
        (15.0, (13.0, 17.0), "equal", False),
        (5.0, (4.0, 7.0), "equal", False),
        (5.0, (4.0, 9.0), "equal", True),
        (50.0, None, None, None),
    ],
)
def test_passed(value: float, interval, better: str | None, passed: bool | None) -> None:
    assert _record(value, better, interval).passed is passed


def test_passed_compares_at_the_number_of_images_of_the_floor() -> None:
    floor = Floor(10.0, 8.0, 12.0, n=4, at_n=20.0)
    # 9 to 11 at all images lies at 19 to 21 with four of them
    assert _record(10.0, "lower", (9.0, 11.0), floor).passed is False
    assert _record(10.0, "lower", (1.0, 19.0), floor).passed is True


def test_no_floor_no_verdict() -> None:
    assert _record(1.0, "lower", floor=None).passed is None


def test_as_json_is_flat_and_leaves_out_what_is_empty() -> None:
    content = _record(9.0, "lower", (8.5, 9.5)).as_json()
    assert json.loads(json.dumps(content)) == content
    assert (content["ci_low"], content["ci_high"]) == (8.5, 9.5)
    assert (content["real_floor"], content["floor_low"], content["floor_high"]) == (10, 8, 12)
    assert content["passed"] is True
    assert content["extractor"] == "pixels"
    assert not {"warning", "details"} & set(content)
    assert _record(9.0, None, floor=None).as_json()["real_floor"] is None
    assert Skipped("a", "b", "c", "d").as_json()["reason"] == "d"
