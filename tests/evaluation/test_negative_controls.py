"""Sets whose verdict is known: copies, noise, blur, shuffled conditions, collapse; and real images.

Simulated radiographs always; real ones where `CXR_TEST_DATA` names them.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter

from cxr_lightning.commands.evaluate import evaluate
from cxr_lightning.commands.prepare import prepare
from cxr_lightning.data.prepared import open_prepared, write_table
from cxr_lightning.evaluation import diversity
from cxr_lightning.report.headline import headline
from cxr_lightning.report.read import read_evaluations

SIZE = 32
AXES = ["fidelity", "condition", "privacy"]
Change = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(autouse=True)
def few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """MS-SSIM takes most of the time, and these sets differ by far more than its error."""
    monkeypatch.setattr(diversity, "PAIRS", 400)


@dataclass(frozen=True)
class World:
    """A prepared real set with patients taken out of it, who play the good synthetic set."""

    root: Path
    real: Path
    images: np.ndarray
    table: pd.DataFrame
    conditions: str

    def write(self, name: str, images: np.ndarray, table: pd.DataFrame) -> Path:
        """A folder of images with their labels, as another tool would leave it."""
        folder = self.root / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{i}.png")
        paths = [f"{i}.png" for i in range(len(images))]
        write_table(table.assign(Path=paths), folder / "train.csv")
        return folder

    def evaluate(self, synthetic: Path, axes: list[str] = AXES) -> dict[tuple[str, str, str], Any]:
        """Records over all patients by extractor, metric and condition."""
        out = synthetic.with_name(f"{synthetic.name}_evaluation")
        trained = self.root / "other_patients_evaluation" / "classifier"
        evaluate(
            self.real,
            synthetic,
            out,
            extractor=["fixed"],
            axes=axes,
            conditions=self.conditions,
            bootstrap=100,
            classifier_steps=200,
            classifier=trained if trained.is_dir() else None,
            cache=self.root / "cache",
        )
        records = json.loads((out / "metrics.json").read_text())["records"]
        return {
            (r["extractor"], r["metric"], r["condition"]): r
            for r in records
            if r["subgroup"] == "all"
        }

    def rows(self, split: str) -> tuple[np.ndarray, pd.DataFrame]:
        """Images and labels of the conditions in a split of the real set."""
        real = open_prepared(self.real)
        wanted = real.table["split"] == split
        return np.array(real.images[wanted.to_numpy()]), real.table[wanted].reset_index(drop=True)


def _divide(prepared: Path, root: Path, conditions: str, count: int) -> World:
    """Takes a third of some patients out; of the others 60 % train and 40 % are held out."""
    whole = open_prepared(prepared)
    patients = np.random.default_rng(0).permutation(whole.table["patient"].unique())[:count]
    third, cut = len(patients) // 3, len(patients) // 3 + int(0.4 * len(patients))
    out = whole.table["patient"].isin(patients[:third]).to_numpy()
    kept = whole.table["patient"].isin(patients[third:]).to_numpy()
    train = whole.table["patient"].isin(patients[third:cut])
    table = whole.table.assign(split=train.map({True: "train", False: "valid"}))
    real = root / "real"
    real.mkdir()
    np.save(real / "images.npy", whole.images[kept])
    write_table(table[kept], real / "table.csv")
    (real / "failures.csv").write_text("Path,reason\n")
    from cxr_lightning.data.prepared import hash_rows
    from cxr_lightning.files import sha256_file

    header = whole.header | {
        "count": int(kept.sum()),
        "sha256": sha256_file(real / "images.npy"),
        "rows_sha256": hash_rows(table[kept]),
    }
    (real / "header.json").write_text(json.dumps(header))
    return World(
        root, real, np.array(whole.images[out]), whole.table[out].reset_index(drop=True), conditions
    )


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("controls")
    prepare("phantom", root / "raw", root / "prepared", size=SIZE, workers=1, patients=240)
    return _divide(root / "prepared", root, "healthy,pleural_effusion", 240)


@pytest.fixture(scope="module")
def kermany(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = os.environ.get("CXR_TEST_DATA")
    if folder is None:
        pytest.skip("CXR_TEST_DATA names no folder with kermany224/")
    root = tmp_path_factory.mktemp("kermany")
    raw = Path(folder) / "kermany224"
    prepare("chexpert", raw, root / "prepared", size=SIZE, workers=1)
    return _divide(root / "prepared", root, "healthy,pneumonia", 600)


def _blur(images: np.ndarray) -> np.ndarray:
    blurred = [Image.fromarray(image).filter(ImageFilter.GaussianBlur(2)) for image in images]
    return np.stack([np.asarray(image) for image in blurred])


def _noise(images: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)


def _slightly_altered(images: np.ndarray) -> np.ndarray:
    """One pixel to the side, a little brighter, a little noise."""
    moved = np.roll(images, 1, axis=2).astype(np.float64)
    noise = np.random.default_rng(0).normal(0, 3, images.shape)
    return np.clip(1.05 * moved + noise, 0, 255).round().astype(np.uint8)


def _same(images: np.ndarray) -> np.ndarray:
    return images


def _failed(records: dict[tuple[str, str, str], Any], axis: str) -> set[tuple[str, str]]:
    """(extractor, metric) of what is worse than real images, of any condition."""
    return {
        (extractor, metric)
        for (extractor, metric, _), r in records.items()
        if r["axis"] == axis and r["passed"] is False
    }


def _check_halves(world: World) -> None:
    records = world.evaluate(world.write("other_patients", world.images, world.table))
    judged = [r for r in records.values() if r["passed"] is not None]
    assert len(judged) > 40
    assert {axis: _failed(records, axis) for axis in AXES} == {axis: set() for axis in AXES}


def _check_bad_images(world: World, change: Change) -> None:
    synthetic = world.write("bad", change(world.images), world.table)
    failed = _failed(world.evaluate(synthetic, ["fidelity"]), "fidelity")
    assert failed >= {("fixed", m) for m in ("fid", "fid_equal_n", "kid", "coverage")}
    assert ("pixels", "spectral_distance") in failed
    if change is _noise:
        assert {("fixed", "precision"), ("pixels", "histogram_distance")} <= failed


def _check_copies(world: World, change: Change, expected: set[tuple[str, str]]) -> None:
    images, table = world.rows("train")
    records = world.evaluate(world.write("copies", change(images), table), ["privacy"])
    assert _failed(records, "privacy") >= expected
    (found,) = read_evaluations([world.root / "copies_evaluation"])
    privacy = headline(found, "all", None)[-1]
    assert (privacy.axis, privacy.verdict.symbol) == ("Privacy", "worse")


def _check_shuffled(world: World) -> None:
    order = np.random.default_rng(1).permutation(len(world.table))
    synthetic = world.write("shuffled", world.images[order], world.table)
    failed = _failed(world.evaluate(synthetic, ["condition"]), "condition")
    assert {metric for _, metric in failed} >= {"auroc", "accuracy"}


def _check_collapse(world: World) -> None:
    """Every image of a condition is nearly the same one."""
    effusion = (world.table["Pleural Effusion"] == 1) | (world.table["Pneumonia"] == 1)
    which = np.where(effusion, np.flatnonzero(effusion)[0], np.flatnonzero(~effusion)[0])
    noise = np.random.default_rng(0).normal(0, 2, world.images.shape)
    images = np.clip(world.images[which] + noise, 0, 255).astype(np.uint8)
    failed = _failed(world.evaluate(world.write("collapse", images, world.table), ["fidelity"]),
                     "fidelity")  # fmt: skip
    assert failed >= {("fixed", "recall"), ("fixed", "coverage"), ("fixed", "embedding_diversity")}
    assert ("pixels", "ms_ssim") in failed


COPIES = {
    ("pixels", metric)
    for metric in ("copy_rate", "copy_rate_relative", "closer_to_train", "authenticity")
} | {("fixed", "copy_rate_relative"), ("fixed", "closer_to_train"), ("fixed", "data_copying")}


@pytest.mark.slow
def test_real_images_of_other_patients_pass_everything(phantom: World) -> None:
    _check_halves(phantom)


@pytest.mark.slow
@pytest.mark.parametrize("change", [_noise, _blur])
def test_noise_and_blur_fail_fidelity(phantom: World, change: Change) -> None:
    _check_bad_images(phantom, change)


@pytest.mark.slow
@pytest.mark.parametrize("change", [_same, _slightly_altered])
def test_copies_of_training_images_fail_privacy(phantom: World, change: Change) -> None:
    _check_copies(phantom, change, COPIES if change is _same else {("pixels", "closer_to_train")})


@pytest.mark.slow
def test_shuffled_conditions_fail_condition_fidelity(phantom: World) -> None:
    _check_shuffled(phantom)


@pytest.mark.slow
def test_a_collapsed_set_fails_recall_and_coverage(phantom: World) -> None:
    _check_collapse(phantom)


@pytest.mark.slow
def test_controls_on_real_radiographs(kermany: World) -> None:
    _check_halves(kermany)
    _check_bad_images(kermany, _noise)
    _check_bad_images(kermany, _blur)
    _check_copies(kermany, _same, COPIES)
    _check_copies(kermany, _slightly_altered, {("pixels", "closer_to_train")})
    _check_shuffled(kermany)
    _check_collapse(kermany)
