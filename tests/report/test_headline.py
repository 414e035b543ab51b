"""Verdicts in words, of a record and of an axis."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from evaluation_writer import full_metrics, minimal_metrics

from cxr_lightning.evaluation.records import Floor, Record, Skipped, Source
from cxr_lightning.report.headline import headline
from cxr_lightning.report.privacy_line import OTHER_DATA, UNKNOWN_DATA
from cxr_lightning.report.read import Evaluation, Measurement
from cxr_lightning.report.verdicts import AxisLine, compare

FID = Record(
    "fidelity",
    "fid",
    100.0,
    90,
    80,
    interval=(90.0, 110.0),
    floor=Floor(50.0, 45.0, 55.0, n=40, at_n=170.0),
    better="lower",
)


def lines(records: list[Record], **parts: Any) -> dict[str, AxisLine]:
    content = minimal_metrics(axes=None, records=[r.as_json() for r in records], **parts)
    read = [Measurement.from_json(r) for r in content["records"]]
    evaluation = Evaluation("evaluation", content, read, {}, {})
    return {line.axis: line for line in headline(evaluation, "all", None)}


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def test_fidelity_far_from_real() -> None:
    line = lines([FID])["Fidelity"]
    assert plain(line.verdict.text) == "3.40 × as far as real images are from each other"
    assert line.verdict.symbol == "worse"
    assert line.key == "170.0"
    assert "FID at n = 40" in line.key_note
    assert "100.0 with all images" in line.key_note
    assert line.real == "50.00"
    assert line.real_note.startswith("45.00 to 55.00")


@pytest.mark.parametrize(
    ("at_n", "symbol", "words"),
    [
        (52.0, "ok", "as close as real images are to each other"),
        (20.0, "worse", "much closer than real images"),
    ],
)
def test_fidelity_near_real(at_n: float, symbol: str, words: str) -> None:
    line = lines([replace(FID, floor=Floor(50.0, 45.0, 55.0, 40, at_n))])["Fidelity"]
    assert line.verdict.symbol == symbol
    assert words in line.verdict.text


def test_fidelity_without_a_floor() -> None:
    line = lines([replace(FID, floor=None)])["Fidelity"]
    assert line.verdict.symbol == "none"
    assert "too few real images" in line.verdict.text
    assert (line.key, line.real) == ("100.0", "")


def test_representation_between_reconstruction_and_other_patients() -> None:
    def record(metric: str, value: float, condition: str) -> Record:
        ends = (0.9 * value, 1.1 * value)
        return Record("representation", metric, value, 9, 9, condition=condition, interval=ends)

    near = [record("rrs", 0.03, "a"), record("rrs", 0.04, "b"), record("nrrs", 0.1, "a")]
    near += [record("nrrs", 0.2, "b"), record("rrs_ceil_same", 0.3, "a")]
    line = lines(near)["Representation"]
    assert plain(line.verdict.text) == "10 to 20 % of the distance to another patient"
    assert (line.verdict.symbol, line.key, line.real) == ("ok", "0.0300 – 0.0400", "0.300")
    far = lines([record("rrs", 0.3, "a"), record("nrrs", 0.95, "a")])["Representation"]
    assert far.verdict.symbol == "worse"
    assert lines([record("rrs", 0.3, "a")])["Representation"].verdict.symbol == "none"
    one = lines([record("rrs", 0.03, "a"), record("rrs", 0.5, "b"), record("nrrs", 0.1, "a")])
    assert one["Representation"].verdict.symbol == "none"
    assert plain(one["Representation"].verdict.text) == (
        "10 % of the distance to another patient in 1 of 2 conditions; "
        "the others cannot be compared"
    )


def test_representation_is_read_by_the_held_out_encoder_where_there_is_one() -> None:
    def record(metric: str, value: float, encoder: str) -> Record:
        return Record("representation", metric, value, 9, 9, Source(encoder, encoder), "a")

    own = [record("rrs", 0.01, "encoder"), record("nrrs", 0.02, "encoder")]
    held_out = [record("rrs", 0.05, "encoder_held_out"), record("nrrs", 0.2, "encoder_held_out")]
    line = lines([*own, *held_out])["Representation"]
    assert line.key == "0.0500"
    assert "held-out encoder" in line.key_note
    assert plain(line.verdict.text) == "20 % of the distance to another patient"
    assert "held-out" not in lines(own)["Representation"].key_note
    mixed = lines([*own, held_out[0]])["Representation"]  # no ratio by the held-out one
    assert mixed.verdict.text.startswith("no comparison")


def finding(name: str, value: float) -> Record:
    floor = Floor(0.8, 0.78, 0.82)
    interval = (value - 0.01, value + 0.01)
    return Record(
        "condition", "auroc", value, 9, 9, condition=name, interval=interval, floor=floor,
        better="higher",
    )  # fmt: skip


def test_conditions_count_what_is_not_recognised() -> None:
    line = lines([finding("edema", 0.6), finding("pneumonia", 0.9)])["Conditions"]
    assert line.verdict.text == ("1 of 2 findings less recognisable than in real images: Edema")
    assert (line.key, line.real, line.key_note) == ("0.750", "0.800", "AUROC, mean of 2 findings")
    assert lines([finding("edema", 0.9)])["Conditions"].verdict.symbol == "ok"
    unjudged = replace(finding("pneumonia", 0.9), better=None)
    line = lines([finding("edema", 0.9), unjudged])["Conditions"]
    assert line.verdict.symbol == "none"
    assert line.verdict.text == (
        "1 of 2 findings recognised as in real images; the others cannot be compared"
    )


def test_utility_says_that_the_best_of_several_was_chosen() -> None:
    def record(metric: str, regime: str, value: float) -> Record:
        details = {"regime": regime, "fraction": 0.1}
        ends = (value - 0.01, value + 0.01)
        return Record("utility", metric, value, 9, 9, interval=ends, details=details)

    records = [record("utility_gain", "mixed", -0.05), record("utility_gain", "pretrained", 0.03)]
    alone = [record("utility_auroc", "real", 0.6), record("utility_auroc", "continued", 0.7)]
    line = lines([*records, *alone])["Utility"]
    words = "helps a classifier: synthetic first, then real, 10 % of the real patients"
    assert plain(line.verdict.text) == words
    assert (line.key, line.real) == ("+0.0300", "0.700")
    assert "best of 2 settings" in line.key_note
    harm = lines(records[:1])["Utility"]
    assert harm.verdict.symbol == "worse"
    assert harm.key_note == "AUROC gained"
    none = lines([record("utility_gain", "mixed", 0.002)])["Utility"]
    assert "no measurable gain" in none.verdict.text


def copies(rate: float, low: float) -> Record:
    return Record(
        "privacy", "copy_rate", rate, 9, 9, interval=(low, rate + 0.01),
        floor=Floor(0.01, 0.01, 0.01), better="lower", details={"false_positive_rate": 0.01},
    )  # fmt: skip


def test_privacy_takes_the_worst_space() -> None:
    line = lines([copies(0.008, 0.004)])["Privacy"]
    assert plain(line.verdict.text) == "no sign of copying beyond 1 % false positives"
    assert (line.verdict.symbol, plain(line.key)) == ("ok", "0.8 %")
    line = lines([copies(0.012, 0.004)])["Privacy"]
    assert plain(line.verdict.text) == (
        "no clear sign of copying: more than 1 % false positives, by chance maybe"
    )
    assert (line.verdict.symbol, plain(line.key)) == ("none", "1.2 %")
    patients = Record("privacy", "copied_patients", 7.0, 9, 9)
    worst = lines([copies(0.012, 0.004), copies(0.1, 0.05), patients])["Privacy"]
    assert plain(worst.verdict.text) == "copies of training images beyond 1 % false positives"
    assert plain(worst.key) == "10 %"
    assert "7 training patients" in worst.key_note


def test_axes_without_numbers_say_why() -> None:
    skipped = [asdict(Skipped("utility", "all", "all", "too few training patients"))]
    found = lines([FID], skipped=skipped)
    assert found["Utility"].verdict.text == "not measured: too few training patients"
    assert found["Privacy"].verdict.text == "not measured"
    asked = minimal_metrics()
    records = [Measurement.from_json(r) for r in asked["records"]]
    evaluation = Evaluation("e", asked, records, {}, {})
    privacy = headline(evaluation, "pneumonia", None)[-1]
    assert privacy.verdict.text == "not measured: not asked for"


def test_axes_without_their_key_number_show_another() -> None:
    other = Record(
        "privacy", "authenticity", 0.5, 9, 9, floor=Floor(0.9, 0.8, 1.0), better="higher"
    )
    line = lines([other])["Privacy"]
    assert line.verdict.text == "below real"
    assert line.key == "0.500"
    assert line.key_note.startswith("Authenticity")


@pytest.mark.parametrize(
    ("metric", "value", "better", "text"),
    [
        ("kid", 3.0, "lower", "above real"),
        ("fid", 3.0, "lower", "3.00 × real"),
        ("fid", 0.99, "lower", "as real"),
        ("fid", 0.3, "lower", "suspiciously close"),
        ("recall", 0.3, "higher", "below real"),
        ("embedding_diversity", 0.3, "equal", "below real"),
        ("embedding_diversity", 1.9, "equal", "1.90 × real"),
    ],
)
def test_records_in_words(metric: str, value: float, better: Any, text: str) -> None:
    floor = Floor(1.0, 0.95, 1.05)
    record = Record("fidelity", metric, value, 9, 9, floor=floor, better=better)
    verdict = compare(Measurement.from_json(record.as_json()))
    assert verdict is not None
    assert plain(verdict.text) == text


def test_nothing_to_compare() -> None:
    assert compare(Measurement("privacy", "nearest_train", 0.3)) is None


def test_full_evaluation_has_a_verdict_on_every_axis(tmp_path: Path) -> None:
    content = full_metrics()
    records = [Measurement.from_json(r) for r in content["records"]]
    found = headline(Evaluation("e", content, records, {}, {}), "all", None)
    assert [line.axis for line in found] == [
        "Fidelity", "Representation", "Conditions", "Utility", "Privacy"
    ]  # fmt: skip
    assert all(line.key and line.real for line in found)


def test_single_copies_are_told_where_no_rate_sees_them() -> None:
    floor = Floor(0.0, 0.0, 0.0, is_null=True)
    exact = Record("privacy", "exact_copies", 2.0, 9, 9, floor=floor, better="lower")
    line = lines([copies(0.008, 0.004), exact])["Privacy"]
    assert line.verdict.symbol == "worse"
    assert line.verdict.text == "copies: 2 of the images equal a training image"
    near = replace(exact, metric="nearer_than_any", value=30.0)
    line = lines([copies(0.012, 0.004), near])["Privacy"]
    assert "30 images lie nearer to a training image than any held-out one" in line.verdict.text
    none = replace(exact, value=0.0)
    assert lines([copies(0.008, 0.004), none])["Privacy"].verdict.symbol == "ok"


def test_privacy_heeds_every_test_of_copying() -> None:
    def failing(metric: str, value: float, floor: Floor, better: Any) -> Record:
        return Record("privacy", metric, value, 9, 9, floor=floor, better=better)

    none_flagged = copies(0.0, 0.0)
    reid = failing("reid_rate", 1.0, Floor(0.01, 0.0, 0.02), "lower")
    line = lines([none_flagged, reid])["Privacy"]
    assert line.verdict.symbol == "worse"
    assert plain(line.verdict.text) == "copies of training images beyond 1 % false positives"
    assert plain(line.key) == "100 %"
    closer = failing("closer_to_train", 0.9, Floor(0.5, 0.45, 0.55, is_null=True), "lower")
    line = lines([none_flagged, closer])["Privacy"]
    assert line.verdict.symbol == "worse"
    assert line.verdict.text.startswith("nearer to training images than to held-out ones")
    for blurred in (
        failing("data_copying", -9.0, Floor(0.0, -2.0, 2.0, is_null=True), "higher"),
        failing("authenticity", 0.2, Floor(0.7, 0.6, 0.8), "higher"),
    ):
        line = lines([none_flagged, blurred])["Privacy"]
        assert line.verdict.symbol == "none"
        assert line.verdict.text.startswith("no image flagged; nearer to training images than")
        assert "by blur maybe" in line.verdict.text
        line = lines([copies(0.008, 0.004), blurred])["Privacy"]
        assert plain(line.verdict.text).startswith(
            "no sign of copying beyond 1 % false positives; n"
        )
    assert lines([none_flagged, replace(closer, value=0.5)])["Privacy"].verdict.symbol == "ok"


def test_another_mix_is_never_judged_as_a_whole() -> None:
    overall = replace(FID, better=None)
    line = lines([overall])["Fidelity"]
    assert line.verdict.symbol == "none"
    assert line.verdict.text.startswith("no comparison: other shares of the conditions")
    floor = Floor(0.01, 0.008, 0.012, 40, 0.0101)
    ends = (0.009, 0.011)
    one = replace(FID, condition="healthy", value=0.01, interval=ends, floor=floor)
    line = lines([overall, one])["Fidelity"]
    assert line.verdict.symbol == "ok"
    assert line.key == "0.0101"
    assert line.key_note.startswith("FID, Healthy at n = 40, features of")
    both = [{"name": "healthy"}, {"name": "pneumonia"}]
    verdict = lines([overall, one], conditions=both)["Fidelity"].verdict
    assert verdict.symbol == "none"
    assert verdict.text.endswith("in 1 of 2 conditions; the others cannot be compared")


def test_fidelity_of_another_mix_is_that_of_the_conditions() -> None:
    def part(name: str, ratio: float) -> Record:
        floor = Floor(0.01, 0.008, 0.012, 40, 0.01 * ratio)
        ends = (0.009 * ratio, 0.011 * ratio)
        return replace(FID, metric="fid_equal_n", condition=name, value=0.01 * ratio, floor=floor,
                       interval=ends)  # fmt: skip

    overall = replace(FID, better=None)
    line = lines([overall, part("healthy", 7.0), part("pneumonia", 3.0)])["Fidelity"]
    assert line.verdict.symbol == "worse"
    assert plain(line.verdict.text) == (
        "7.00 × as far as real images are from each other, in the worst of 2 conditions"
    )
    assert line.key == "0.0300 – 0.0700"
    assert line.key_note.startswith("FID, 2 conditions at n = 40")
    wide = replace(part("healthy", 7.0), interval=(0.001, 0.2))  # not worse for certain
    line = lines([overall, wide, part("pneumonia", 3.0)])["Fidelity"]
    assert plain(line.verdict.text).startswith("3.00 × as far as real images")
    line = lines([overall, part("healthy", 1.0), part("pneumonia", 0.1)])["Fidelity"]
    assert line.verdict.symbol == "worse"
    assert line.verdict.text.startswith("much closer than real images to each other")


def test_the_best_gain_is_judged_for_all_settings_at_once() -> None:
    details = {"regime": "mixed", "fraction": 1.0}
    wide = details | {"simultaneous": {"settings": 8, "low": -0.001, "high": 0.05}}
    gain = Record("utility", "utility_gain", 0.02, 9, 9, interval=(0.01, 0.03), details=wide)
    assert "no measurable gain" in lines([gain])["Utility"].verdict.text
    assert "helps" in lines([replace(gain, details=details)])["Utility"].verdict.text
    small = replace(gain, value=0.5, details=details | {"fraction": 0.1})
    assert lines([gain, small])["Utility"].key == "+0.0200"  # all real patients


def test_copies_of_other_images_than_the_training_ones_are_not_known() -> None:
    def line(records: list[Record]) -> AxisLine:
        return lines(records, real={"is_training_data": False})["Privacy"]

    assert line([copies(0.008, 0.004)]).verdict == OTHER_DATA
    unknown = lines([copies(0.008, 0.004)], real={})["Privacy"]
    assert unknown.verdict == UNKNOWN_DATA
    assert "copies of training images" in line([copies(0.1, 0.05)]).verdict.text  # found anyway
