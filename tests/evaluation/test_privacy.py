"""The privacy axis: copies fail it, new patients, noise and blur pass it, and who was copied."""

import hashlib
import io
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from cxr_lightning.data.prepared import PreparedDataset
from cxr_lightning.data.vocabulary import parse_condition
from cxr_lightning.errors import UserError
from cxr_lightning.evaluation.features import FeatureCache
from cxr_lightning.evaluation.inputs import EvaluationInputs, Settings
from cxr_lightning.evaluation.privacy import privacy
from cxr_lightning.evaluation.records import PIXELS, AxisResult, Record
from cxr_lightning.evaluation.reidentification import load_reidentification
from cxr_lightning.evaluation.synthetic import SyntheticSet
from cxr_lightning.metrics.extractors import build_extractor
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS

SIZE, TRAIN, HELD_OUT, NEW = 24, 400, 400, 400
SPACES = ("pixels", "fixed")
JUDGED = {
    "closer_to_train",
    "authenticity",
    "data_copying",
    "copy_rate",
    "copy_rate_relative",
    "copied_images",
    "copied_patients",
}
Images = np.ndarray


def _radiographs(patients: np.ndarray, seed: int) -> Images:
    """Smooth fields; 0.8 of the variance is the patient's, and exposure is the image's."""
    generator = np.random.default_rng(seed)
    _, patient = np.unique(patients, return_inverse=True)

    def fields(count: int) -> np.ndarray:
        raw = gaussian_filter(generator.normal(size=(count, SIZE, SIZE)), (0, 2.5, 2.5))
        return raw / raw.std()

    own = 0.8**0.5 * fields(patient.max() + 1)[patient] + 0.2**0.5 * fields(len(patients))
    exposure = generator.normal(0, 8, (len(patients), 1, 1))
    return np.clip(125 + 30 * own + exposure, 0, 255).round().astype(np.uint8)


def _table(patients: np.ndarray, split: str) -> pd.DataFrame:
    n = len(patients)
    table = pd.DataFrame({"Path": [f"{split}/{i}.png" for i in range(n)], "split": split})
    table["patient"] = [f"{split}{p}" for p in patients]
    table["Sex"] = np.where(patients % 2 == 0, "Female", "Male")
    table["Age"] = np.where(patients % 3 == 0, 30.0, 70.0)
    labels = dict.fromkeys(OBSERVATIONS, NOT_ANNOTATED)
    return table.assign(**{"Frontal/Lateral": "Frontal", "AP/PA": "PA", "study": "s"}, **labels)


TRAIN_PATIENTS = np.arange(TRAIN) * 4 // 5  # every fifth patient or so has two images
HELD_OUT_PATIENTS = np.arange(HELD_OUT)
EVERYBODY = np.concatenate([TRAIN_PATIENTS, 10_000 + HELD_OUT_PATIENTS, 20_000 + np.arange(NEW)])
IMAGES = _radiographs(EVERYBODY, seed=0)
"""Training, held-out and new patients' images: one draw from one population."""

COPIES = np.random.default_rng(1).permutation(TRAIN)[:120]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., EvaluationInputs]:
    """Makes the inputs for some synthetic images, with the first images of the held-out split."""
    sets = {"train": TRAIN_PATIENTS, "valid": HELD_OUT_PATIENTS}
    table = pd.concat([_table(p, s) for s, p in sets.items()], ignore_index=True)

    def inputs(
        synthetic: Images,
        *,
        held_out: int = HELD_OUT,
        train: int = TRAIN,
        patients: list[str] | None = None,
        requested: np.ndarray | None = None,
        **changes: Any,
    ) -> EvaluationInputs:
        rows = np.r_[:train, TRAIN : TRAIN + held_out]
        header = {"size": SIZE, "sha256": f"{train}-{held_out}"}
        real = PreparedDataset(
            tmp_path, header, IMAGES[rows], table.iloc[rows].reset_index(drop=True)
        )
        drawn = _table(np.arange(len(synthetic)), "train")
        if patients is not None:
            drawn["patient"] = patients
        sha256 = hashlib.sha256(synthetic.tobytes()).hexdigest()
        settings: dict[str, Any] = {
            "real": real,
            "synthetic": SyntheticSet(synthetic, sha256, drawn, requested),
            "conditions": [],
            "extractors": [build_extractor("fixed")],
            "encoder": None,
            "encoder_source": PIXELS,
            "encoder_is_parent": False,
            "generator": None,
            "classifier": None,
            "reidentification": None,
            "cache": FeatureCache(tmp_path / "cache", 64, torch.device("cpu")),
            "work": tmp_path,
            "settings": Settings(bootstrap=40),
            "device": torch.device("cpu"),
        }
        return EvaluationInputs(**(settings | changes))

    return inputs


def _records(result: AxisResult, space: str) -> dict[str, Record]:
    """Records over all images of one space by metric."""
    return {
        record.metric: record
        for record in result.records
        if record.source.name == space and (record.condition, record.subgroup) == ("all", "all")
    }


def _failed(result: AxisResult) -> dict[str, set[str]]:
    return {s: {m for m, r in _records(result, s).items() if r.passed is False} for s in SPACES}


def _jpeg(image: Images) -> Images:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))


def _noisy(images: Images) -> Images:
    noise = np.random.default_rng(5).normal(0, 3, images.shape)
    return np.clip(images + noise, 0, 255).round().astype(np.uint8)


def _gamma(images: Images) -> Images:
    return (255 * (images / 255) ** 1.1).round().astype(np.uint8)


ALTERATIONS: dict[str, Callable[[Images], Images]] = {
    "none": lambda images: images,
    "noise": _noisy,
    "shift": lambda images: np.roll(images, 1, axis=2),
    "gamma": _gamma,
    "jpeg": lambda images: np.stack([_jpeg(image) for image in images]),
}


@pytest.mark.parametrize("alteration", [*ALTERATIONS])
def test_copies_fail(make: Callable[..., EvaluationInputs], alteration: str) -> None:
    """All metrics fail in the pixels; the network follows all but the change of contrast."""
    result = privacy(make(ALTERATIONS[alteration](IMAGES[COPIES])))
    failed = _failed(result)
    assert failed["pixels"] == JUDGED
    relative = {"copy_rate_relative", "copied_images", "copied_patients"}
    assert failed["fixed"] >= (JUDGED if alteration != "gamma" else relative)
    if alteration == "none":
        records = _records(result, "pixels")
        assert records["nearest_train"].value == records["authenticity"].value == 0.0
        assert records["closer_to_train"].value == records["copy_rate_relative"].value == 1.0
        assert records["copied_images"].value == len(COPIES)
        assert records["copied_patients"].value == len(np.unique(TRAIN_PATIENTS[COPIES]))


def test_new_patients_pass(make: Callable[..., EvaluationInputs]) -> None:
    inputs = make(IMAGES[-NEW:])
    result = privacy(inputs)
    assert _failed(result) == {"pixels": set(), "fixed": set()}
    assert not result.skipped
    for space in SPACES:
        records = _records(result, space)
        assert {*records} == JUDGED | {"nearest_train", "nearest_held_out"}
        assert all(records[metric].passed is True for metric in JUDGED)
        for record in records.values():
            low, high = record.interval or (np.nan, np.nan)
            assert low <= record.value <= high
            assert (record.n_real, record.n_synthetic) == (TRAIN + HELD_OUT, NEW)
            assert record.details["held_out_patients"] == HELD_OUT
    rate = _records(result, "pixels")["copy_rate_relative"]
    assert rate.floor is not None
    assert rate.floor.value == rate.details["false_positive_rate"] == 4 / (HELD_OUT + 1)
    assert rate.details["threshold_n"] == HELD_OUT
    assert rate.warning is None
    assert "random weights" in str(_records(result, "fixed")["copy_rate"].warning)


def test_held_out_images_themselves_pass(make: Callable[..., EvaluationInputs]) -> None:
    held_out = IMAGES[TRAIN : TRAIN + HELD_OUT]
    assert _failed(privacy(make(held_out))) == {"pixels": set(), "fixed": set()}


def test_noise_passes(make: Callable[..., EvaluationInputs]) -> None:
    shape = (100, SIZE, SIZE)
    noise = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    assert _failed(privacy(make(noise))) == {"pixels": set(), "fixed": set()}


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_blur_is_no_copy(make: Callable[..., EvaluationInputs], sigma: float) -> None:
    """Heavy blur misleads the other metrics, and the relative distance in the random network."""
    blurred = gaussian_filter(IMAGES[-NEW:], (0, sigma, sigma))
    result = privacy(make(blurred))
    failed = _failed(result)
    if sigma < 1:
        assert failed == {"pixels": set(), "fixed": set()}
    else:
        assert failed["pixels"] == {"authenticity", "data_copying", "copy_rate"}
        assert "closer_to_train" not in failed["fixed"]
        pixels = _records(result, "pixels")
        assert pixels["copy_rate_relative"].value < 0.4 * pixels["copy_rate"].value


def test_few_copies_among_new_images_are_found(make: Callable[..., EvaluationInputs]) -> None:
    """5 % copies, where at most 1 % of new images may be flagged; C_T cannot see so few."""
    few = COPIES[: NEW // 20]
    mixture = np.concatenate([IMAGES[few], IMAGES[-NEW : -len(few)]])
    result = privacy(make(_noisy(mixture)))
    failed = _failed(result)
    assert "copy_rate_relative" in failed["pixels"] & failed["fixed"]
    assert "data_copying" not in failed["pixels"] | failed["fixed"]
    shown = {pair["train_row"] for pair in result.pairs}
    assert shown <= {*few.tolist()}  # the closest pairs are copies
    assert all(pair["flagged"] for pair in result.pairs)


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
    records = _records(privacy(make(copies)), "pixels")
    assert (records["copied_images"].value, records["copied_patients"].value) == (2.0, 1.0)
    images = np.concatenate([copies, IMAGES[-60:]])
    alone = _records(privacy(make(images)), "pixels")
    patients = ["copy"] * 4 + [str(i // 2) for i in range(60)]
    together = _records(privacy(make(images, patients=patients)), "pixels")
    widths = []
    for records in (alone, together):
        low, high = records["copy_rate_relative"].interval or (0.0, 0.0)
        widths.append(high - low)
    assert widths[1] > widths[0]  # four images that are one draw


def test_few_held_out_images_are_warned_of(make: Callable[..., EvaluationInputs]) -> None:
    result = privacy(make(IMAGES[-30:], held_out=15))
    records = _records(result, "pixels")
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


def test_held_out_images_of_training_patients_are_left_out(
    make: Callable[..., EvaluationInputs],
) -> None:
    inputs = make(IMAGES[-60:])
    table = inputs.real.table.copy()
    table.loc[TRAIN : TRAIN + 9, "patient"] = "train0"
    records = privacy(replace(inputs, real=replace(inputs.real, table=table))).records
    assert records[0].details["held_out_images"] == HELD_OUT - 10
    assert "10 held-out images left out" in str(records[0].warning)


def test_held_out_images_that_repeat_training_images_are_warned_of(
    make: Callable[..., EvaluationInputs],
) -> None:
    inputs = make(IMAGES[COPIES])
    images = inputs.real.images.copy()
    images[TRAIN : TRAIN + 5] = images[:5]
    header = {"size": SIZE, "sha256": "repeats"}
    real = replace(inputs.real, images=images, header=header)
    rate = _records(privacy(replace(inputs, real=real)), "pixels")["copy_rate"]
    assert rate.value == 0.0
    assert "held-out images equal training images" in str(rate.warning)


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


class SamePatient(nn.Module):
    """Falls from 1 with the difference of two images."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.exp(-20.0 * (first - second).abs().mean((1, 2, 3)))


class Broken(nn.Module):
    """Two numbers for each pair."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first.mean((2, 3)), second.mean((2, 3))], 1)


def _save(model: nn.Module, file: Path) -> Path:
    image = torch.rand(2, 1, SIZE, SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript
        torch.jit.trace(model, (image, image)).save(file)
    return file


def test_reidentification(make: Callable[..., EvaluationInputs], tmp_path: Path) -> None:
    file = _save(SamePatient(), tmp_path / "siamese.pt")
    copies, new = (
        _records(privacy(make(images, reidentification=file)), "siamese.pt")
        for images in (IMAGES[COPIES[:50]], IMAGES[-100:])
    )
    assert copies["reid_score"].value == copies["reid_rate"].value == 1.0
    assert copies["reid_score"].passed is copies["reid_rate"].passed is False
    assert new["reid_score"].passed is new["reid_rate"].passed is True
    assert new["reid_rate"].details["threshold"] < 0  # of the negative score
    row, candidates = IMAGES[-1] / 255, IMAGES[:TRAIN] / 255
    best = np.exp(-20 * np.abs(row - candidates).mean((1, 2))).max()
    last = _records(privacy(make(IMAGES[-1:], extractors=[], reidentification=file)), "siamese.pt")[
        "reid_score"
    ]
    assert last.value == pytest.approx(best, rel=0.05)  # the best is rarely no candidate
    assert last.value <= best + 1e-6


def test_reidentification_that_does_not_fit(
    make: Callable[..., EvaluationInputs], tmp_path: Path
) -> None:
    broken = _save(Broken(), tmp_path / "broken.pt")
    with pytest.raises(UserError, match="broken.pt does not bring one finite number a pair"):
        privacy(make(IMAGES[-30:], reidentification=broken))
    text = tmp_path / "text.pt"
    text.write_text("no network")
    for file in (text, tmp_path / "absent.pt"):
        with pytest.raises(UserError, match="reidentification: .* is no TorchScript file"):
            load_reidentification(file, torch.device("cpu"))
