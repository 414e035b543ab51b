"""`cxr evaluate` with wrong arguments and broken folders: a sentence, and nothing half-written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from brightness_sets import (
    make_encoder,
    make_generator,
    metrics_of,
)
from PIL import Image

from cxr_lightning.artifacts import product_sha256
from cxr_lightning.commands import evaluate as module
from cxr_lightning.commands.evaluate import evaluate
from cxr_lightning.errors import UserError
from cxr_lightning.evaluation import synthetic as synthetic_module
from cxr_lightning.evaluation.records import AxisResult

FAST = ["fidelity", "representation"]


def _set_manifest(key: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {key: value}))

    return change


def _other_size(folder: Path) -> None:
    path = next((folder / "train").rglob("*.png"))
    Image.new("L", (24, 24)).save(path)  # smaller than the real images


def _unreadable(folder: Path) -> None:
    next((folder / "train").rglob("*.png")).write_bytes(b"no image")


def _unknown_condition(folder: Path) -> None:
    text = (folder / "manifest.json").read_text().replace("pneumonia", "flu")
    (folder / "manifest.json").write_text(text)


def _only_a_table(text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "manifest.json").unlink()
        (folder / "train.csv").write_text(text)

    return change


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_size, r"synthetic: .* has 24 x 24 pixels but the real images have 32 x 32"),
        (_unreadable, r"synthetic: 1 images in .* cannot be read"),
        (_empty, r"synthetic: .* holds no image"),
        (_set_manifest("images", []), r"synthetic: .* do not list the same images"),
        (_set_manifest("format", 2), r"synthetic: .* in format 1"),
        (_set_manifest("images", 3), r"synthetic: .*manifest.json cannot be read"),
        (_unknown_condition, r"condition: 'flu' in 'flu' is not a health condition"),
        (_only_a_table(""), r"synthetic: .*train.csv has no rows"),
        (
            _only_a_table("Path,Sex\na.png,Male\n"),
            r"synthetic: 1 images in .* \(first: a.png: no such",
        ),
    ],
)
def test_broken_synthetic_folder(
    real: Path, synthetic: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    change(synthetic)
    with pytest.raises(UserError, match=message):
        evaluate(real, synthetic, tmp_path / "out", extractor=["fixed"], axes=FAST)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["real", "synthetic"]


def test_unreadable_share_is_listed_not_dropped(
    real: Path, synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic_module, "MAX_UNREADABLE", 0.1)
    _unreadable(synthetic)
    evaluate(real, synthetic, tmp_path / "out", extractor=["fixed"], axes=FAST, bootstrap=0)
    content = metrics_of(tmp_path / "out")
    assert content["synthetic"]["count"] == 21
    assert len(content["synthetic"]["failures"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size: 0 is not possible; use 1 or more"),
        ({"reconstructions": 0}, "reconstructions: 0 is not possible; use 1 or more"),
        ({"bootstrap": -1}, "bootstrap: -1 draws make no interval; give 0"),
        ({"bootstrap": 19}, "bootstrap: 19 draws make no interval; .* or 20 or more"),
        ({"seed": -1}, "seed: -1 is not possible; use 0 to"),
        ({"conditions": "measles"}, "condition: 'measles' in 'measles' is not a health condition"),
        ({"conditions": "edema"}, r"conditions: no condition \(edema\) has both real and synth"),
        ({"conditions": ","}, r"condition: .* is not a health condition; use one of"),
        ({"encoder": Path("/absent")}, "encoder: no product at /absent"),
        ({"generator": Path("/absent")}, "generator: .* needs an encoder too"),
        ({"extractor": ["encoder"]}, "extractor: .*encoder"),
        ({"extractor": ["measles"]}, "extractor: 'measles'"),
        ({"axes": ["measles"]}, "axes: 'measles' is no axis"),
        ({"utility_seeds": 0}, "utility_seeds: 0 is not possible; use 1 or more"),
        (
            {"utility_fractions": [0.1, 2.0]},
            "utility_fractions: 2.0 is not possible; use more",
        ),
        (
            {"false_positives": 0.0},
            "false_positives: 0.0 is not possible; use more",
        ),
        ({"classifier": Path("/absent")}, "classifier: there is no /absent"),
        ({"reidentification": Path("/absent")}, "reidentification: there is no /absent"),
        ({"real": Path("/absent")}, "^real: no prepared data set at /absent"),
        ({"synthetic": Path("/absent")}, "synthetic: no folder /absent"),
    ],
)
def test_wrong_arguments(
    real: Path, synthetic: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    default: dict[str, Any] = {
        "real": real,
        "synthetic": synthetic,
        "out": tmp_path / "out",
        "extractor": ["fixed"],
        "axes": FAST,
    }
    with pytest.raises(UserError, match=message):
        evaluate(**(default | arguments))
    assert not (tmp_path / "out").exists()


def test_real_given_twice(real: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"synthetic: .* is a prepared"):
        evaluate(
            real,
            tmp_path / "real" / ".." / "real",
            tmp_path / "out",
            extractor=["fixed"],
            axes=FAST,
        )


def test_generator_of_another_size(
    real: Path, synthetic: Path, encoder: Path, tmp_path: Path
) -> None:
    generator = make_generator(tmp_path / "generator", size=64)
    with pytest.raises(UserError, match=r"generator: .* images of 64 pixels but .* 32"):
        evaluate(
            real,
            synthetic,
            tmp_path / "out",
            encoder=encoder,
            generator=generator,
            extractor=["fixed"],
            axes=FAST,
        )


def test_out_that_holds_something_else(real: Path, synthetic: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    for out in (tmp_path / "out", tmp_path / "out" / "thesis.txt", real, synthetic):
        with pytest.raises(UserError, match=r"out: .* exists and holds no evaluation"):
            evaluate(real, synthetic, out, extractor=["fixed"], axes=FAST)
    for folder in (real, synthetic):
        with pytest.raises(UserError, match=r"out: .* lies in the (real|synthetic) data set"):
            evaluate(real, synthetic, folder / "out", extractor=["fixed"], axes=FAST)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_no_number_no_evaluation(
    real: Path, synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.AXES, "fidelity", lambda inputs: AxisResult())
    with pytest.raises(UserError, match="as no number could be made"):
        evaluate(real, synthetic, tmp_path / "out", extractor=["fixed"], axes=["fidelity"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", ["the same", "the parent", "alone"])
def test_a_held_out_encoder_that_is_none(
    real: Path, synthetic: Path, encoder: Path, tmp_path: Path, given: str
) -> None:
    other = make_encoder(tmp_path / "other", seed=1)
    facts = {"parents": {"encoder": product_sha256(encoder)}}
    changes: dict[str, dict[str, Any]] = {
        "the same": {"encoder": encoder, "encoder_held_out": encoder},
        "the parent": {
            "encoder": other,
            "encoder_held_out": encoder,
            "generator": make_generator(tmp_path / "generator", facts=facts),
        },
        "alone": {"encoder_held_out": other},
    }
    said = "stands beside another" if given == "alone" else "--seed_everything"
    with pytest.raises(UserError, match=f"^encoder_held_out: .*{said}"):
        evaluate(real, synthetic, tmp_path / "out", extractor=["fixed"], **changes[given])
    assert not (tmp_path / "out").exists()


def test_inputs_within_out_are_refused(real: Path, synthetic: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(real, synthetic, out, extractor=["fixed"], axes=["fidelity"], bootstrap=0)
    for name, path in (("cache", out / "cache"), ("classifier", out / "classifier")):
        with pytest.raises(UserError, match=f"^{name}: .* lies in .*, which the evaluation repl"):
            evaluate(real, synthetic, out, extractor=["fixed"], **{name: path})
