"""Line plots: what they show, and that odd curves do no harm."""

import re
from typing import Any
from xml.etree import ElementTree

import pytest
from evaluation_writer import full_metrics, minimal_metrics

from cxr_lightning.report import figures
from cxr_lightning.report.plots import Axis, Series, chart, span
from cxr_lightning.report.read import Evaluation, Measurement

KINDS = (
    figures.histograms,
    figures.spectra,
    figures.fid_infinity,
    figures.calibrations,
    figures.nearest,
    figures.utility,
)


def evaluation(content: dict[str, Any], name: str = "e") -> Evaluation:
    records = [Measurement.from_json(r) for r in content["records"]]
    return Evaluation(name, content, records, {}, {})


def with_curves(**curves: Any) -> Evaluation:
    return evaluation(minimal_metrics(curves=curves))


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_labelled_svg_within_their_frame(kind: Any) -> None:
    found = kind([evaluation(full_metrics()), evaluation(full_metrics(1.5, 1), "f")])
    assert found
    for figure in found:
        svg = ElementTree.fromstring(figure.svg)
        assert svg.get("role") == "img"
        assert svg.get("aria-label")
        assert "nan" not in figure.svg
        for path in svg.iter("path"):
            for x, y in re.findall(r"[ML](-?[\d.]+),(-?[\d.]+)", path.get("d") or ""):
                if path.get("transform") is None:
                    assert 0 <= float(x) <= 340
                    assert 0 <= float(y) <= 190


@pytest.mark.parametrize("kind", KINDS)
def test_no_curves_no_figures(kind: Any) -> None:
    assert kind([evaluation(minimal_metrics(curves={}))]) == []


@pytest.mark.parametrize("part", [None, [], {}, 3, "x", {"a": None}, {"a": [1]}, {"a": {"b": 1}}])
def test_odd_curves_vanish(part: Any) -> None:
    names = ("histogram", "power_spectrum", "fid_infinity", "calibration", "nearest")
    odd = with_curves(**dict.fromkeys(names, part))
    for kind in KINDS:
        assert kind([odd]) == []


def test_the_real_curve_is_drawn_once() -> None:
    both = [evaluation(full_metrics(), name) for name in "ab"]
    svg = figures.histograms(both)[0].svg
    assert svg.count('class="line real"') == 1
    assert svg.count('class="line s1"') == 1
    assert svg.count('class="line s2"') == 1


def test_spectra_are_logarithmic() -> None:
    curve = {"all": {"real": [1000.0, 100.0, 10.0], "synthetic": [1000.0, 100.0, 10.0]}}
    (figure,) = figures.spectra([with_curves(power_spectrum=curve)])
    (path,) = re.findall(r'class="line real" d="M([^"]*)"', figure.svg)
    heights = [float(point.split(",")[1]) for point in path.split("L")]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2)


def test_spectra_in_decibel_stay_linear() -> None:
    assert not span("power", [-3.0, 50.0]).log
    assert span("power", [0.1, 50.0]).log


def test_the_extrapolation_starts_at_the_value() -> None:
    curve = {"encoder": {"all": {"n": [100, 200], "fid": [20.0, 15.0], "value": 10.0}}}
    (figure,) = figures.fid_infinity([with_curves(fid_infinity=curve)])
    (ends,) = re.findall(r'class="guide" d="M([\d.]+),([\d.]+)L[\d.]+,([\d.]+)"', figure.svg)
    start, at_infinity, at_100 = map(float, ends)
    assert start == 58.0  # the left end of the plot
    assert at_infinity > at_100  # downwards
    assert ">∞<" in figure.svg


def test_heaps_are_shares() -> None:
    curve = {"edges": [0, 1, 2], "synthetic_train": [1, 3], "held_out_train": [100, 300]}
    (figure,) = figures.nearest([with_curves(nearest={"pixels": curve})])
    shapes = re.findall(r'class="line (?:real|s1)" d="([^"]*)"', figure.svg)
    assert len(shapes) == 2
    assert shapes[0] == shapes[1]


def test_names_cannot_inject() -> None:
    name = '"><script>alert(1)</script>'
    line = Series("real", [(0.0, 0.0), (1.0, 1.0)])
    svg = chart(name, [line], Axis(name, 0.0, 1.0), Axis("", 0.0, 1.0))
    assert "<script" not in svg


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 1.0), (0.0, 0.9), (-3.0, 2.0), (1e-6, 3e-6), (0.0, 12345.0), (5.0, 5.0), (1e7, 3e9)],
)
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    marks = Axis("x", low, high).marks
    assert 1 <= len(marks) <= 6
    assert all(low - 1e-9 <= value <= high + 1e-9 for value, _ in marks)
    assert len({text for _, text in marks}) == len(marks)


@pytest.mark.parametrize(("low", "high"), [(1.0, 32.0), (0.1, 1e6), (1e-12, 1e12)])
def test_logarithmic_ticks(low: float, high: float) -> None:
    marks = Axis("x", low, high, log=True).marks
    assert 2 <= len(marks) <= 8
    assert all(low * 0.99 <= value <= high * 1.01 for value, _ in marks)
