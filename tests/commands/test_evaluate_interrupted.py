"""`cxr evaluate` that crashed or was killed loses nothing and goes on."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from brightness_sets import make_generator, metrics_of

from cxr_lightning.commands import evaluate as module
from cxr_lightning.commands.evaluate import evaluate
from cxr_lightning.evaluation.records import AxisResult


def test_a_crash_loses_nothing_and_finished_axes_are_kept(
    real: Path, synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    settings: dict[str, Any] = {"extractor": ["fixed"], "axes": ["fidelity", "privacy"]}
    evaluate(real, synthetic, out, **settings, bootstrap=0)
    before, calls = (out / "metrics.json").read_text(), []

    def fail(inputs: Any) -> AxisResult:
        raise OSError("disk full")

    def fidelity(inputs: Any) -> AxisResult:
        calls.append(1)
        return real_fidelity(inputs)

    real_fidelity, real_privacy = module.AXES["fidelity"], module.AXES["privacy"]
    monkeypatch.setitem(module.AXES, "fidelity", fidelity)
    monkeypatch.setitem(module.AXES, "privacy", fail)
    with pytest.raises(OSError, match="disk full"):
        evaluate(real, synthetic, out, **settings, bootstrap=20)
    assert (out / "metrics.json").read_text() == before
    monkeypatch.setitem(module.AXES, "privacy", real_privacy)
    evaluate(real, synthetic, out, **settings, bootstrap=20)
    assert len(calls) == 1
    assert {r["axis"] for r in metrics_of(out)["records"]} == {"fidelity", "privacy"}
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("feature_cache", "out", "real", "synthetic"),
    ]
    # Other arguments begin anew.
    monkeypatch.setitem(module.AXES, "privacy", fail)
    with pytest.raises(OSError, match="disk full"):
        evaluate(real, synthetic, out, **settings, bootstrap=20)
    monkeypatch.setitem(module.AXES, "privacy", real_privacy)
    evaluate(real, synthetic, out, **settings, bootstrap=21)
    assert len(calls) == 3


@pytest.mark.slow
def test_killed_again_and_again_it_ends_as_if_never_killed(
    real: Path, synthetic: Path, encoder: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "encoder": encoder,
        "generator": make_generator(tmp_path / "generator"),
        "extractor": ["fixed"],
        "bootstrap": 20,
        "reconstructions": 4,
        "classifier_steps": 10,
        "utility_seeds": 1,
    }
    evaluate(real, synthetic, tmp_path / "whole" / "out", **settings)
    out, fork = tmp_path / "killed" / "out", multiprocessing.get_context("fork")
    seconds, kills = 0.2, 0
    while True:
        process = fork.Process(target=evaluate, args=(real, synthetic, out), kwargs=settings)
        process.start()
        process.join(seconds)
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        seconds, kills = 1.2 * seconds, kills + 1
    assert process.exitcode == 0
    assert kills >= 5
    records = metrics_of(out)["records"]
    assert {r["axis"] for r in records} == set(module.AXES)
    expected = (tmp_path / "whole" / "out" / "metrics.json").read_text()
    assert (out / "metrics.json").read_text() == expected
    assert [p.name for p in sorted(out.parent.iterdir())] == ["feature_cache", "out"]
