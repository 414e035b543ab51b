"""`cxr evaluate` that crashed or was killed loses nothing and goes on."""

import multiprocessing
import shutil
import threading
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from brightness_sets import make_generator, metrics_of
from tqdm import tqdm

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


def test_other_labels_or_networks_of_the_same_name_begin_anew(
    real: Path, synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def fail(inputs: Any) -> AxisResult:
        raise OSError("disk full")

    def condition(inputs: Any) -> AxisResult:
        calls.append(inputs.synthetic.table.to_csv())
        return AxisResult()

    monkeypatch.setitem(module.AXES, "condition", condition)
    monkeypatch.setitem(module.AXES, "privacy", fail)

    def run(name: str) -> None:
        networks = {k: tmp_path / name / f"{k}.pt" for k in ("classifier", "reidentification")}
        with pytest.raises(OSError, match="disk full"):
            evaluate(
                real,
                synthetic,
                tmp_path / "out",
                extractor=["fixed"],
                axes=["condition", "privacy"],
                bootstrap=0,
                **networks,
            )

    for name, bias in (("one", 0.1), ("other", 0.2)):
        (tmp_path / name).mkdir()
        save_scores(tmp_path / name / "classifier.pt", bias)
        save_scores(tmp_path / name / "reidentification.pt", bias)
    shutil.copytree(tmp_path / "one", tmp_path / "reid")
    shutil.copy(tmp_path / "other" / "reidentification.pt", tmp_path / "reid")
    shutil.copytree(tmp_path / "reid", tmp_path / "moved")
    run("one")
    run("one")
    assert len(calls) == 1  # kept
    run("reid")
    assert len(calls) == 2
    run("other")
    assert len(calls) == 3
    run("reid")
    run("moved")
    assert len(calls) == 4  # the same networks in another folder
    table = pd.read_csv(synthetic / "train.csv", dtype=str, keep_default_na=False)
    swapped = table.assign(Sex=table["Sex"].to_numpy()[::-1])
    swapped.loc[0, "Sex"] = "Female" if swapped.loc[0, "Sex"] != "Female" else "Male"
    swapped.to_csv(synthetic / "train.csv", index=False)
    run("moved")
    assert len(calls) == 5


def save_scores(file: Path, bias: float) -> None:
    """A TorchScript network that answers anything with so many numbers."""

    class Scores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(torch.full((14,), bias))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.bias.expand(len(image), 14)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is kept, not developed
        torch.jit.script(Scores()).save(str(file))


def evaluate_apart(*args: Any, **settings: Any) -> None:
    """With a lock of its own for progress bars: one killed with the shared lock would keep it."""
    tqdm.set_lock(threading.RLock())
    evaluate(*args, **settings)


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
        process = fork.Process(target=evaluate_apart, args=(real, synthetic, out), kwargs=settings)
        process.start()
        process.join(seconds)
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        seconds, kills = 1.2 * seconds, kills + 1
        assert kills < 60
    assert process.exitcode == 0
    assert kills >= 5
    records = metrics_of(out)["records"]
    assert {r["axis"] for r in records} == set(module.AXES)
    expected = (tmp_path / "whole" / "out" / "metrics.json").read_text()
    assert (out / "metrics.json").read_text() == expected
    assert [p.name for p in sorted(out.parent.iterdir())] == ["feature_cache", "out"]
