"""The privacy axis: copies fail it; new patients, noise and blur pass it."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from patient_fields import (
    COPIES,
    HELD_OUT,
    IMAGES,
    JUDGED,
    NEW,
    SIZE,
    SPACES,
    TRAIN,
    TRAIN_PATIENTS,
    Images,
    inputs_maker,
    records_of,
)
from PIL import Image
from scipy.ndimage import gaussian_filter

from cxr_lightning.evaluation.inputs import EvaluationInputs
from cxr_lightning.evaluation.privacy import privacy
from cxr_lightning.evaluation.records import AxisResult


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., EvaluationInputs]:
    """Makes the inputs for some synthetic images."""
    return inputs_maker(tmp_path)


def _failed(result: AxisResult) -> dict[str, set[str]]:
    return {s: {m for m, r in records_of(result, s).items() if r.passed is False} for s in SPACES}


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
    assert failed["pixels"] == JUDGED | ({"exact_copies"} if alteration == "none" else set())
    relative = {"copy_rate_relative", "copied_images", "copied_patients"}
    assert failed["fixed"] >= (JUDGED if alteration != "gamma" else relative)
    if alteration == "none":
        records = records_of(result, "pixels")
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
        records = records_of(result, space)
        exact = {"exact_copies"} if space == "pixels" else set()
        assert {*records} == JUDGED | exact | {"nearest_train", "nearest_held_out"}
        assert all(records[metric].passed is True for metric in JUDGED)
        for record in records.values():
            low, high = record.interval or (record.value, record.value)
            assert low <= record.value <= high
            assert (record.n_real, record.n_synthetic) == (TRAIN + HELD_OUT, NEW)
            assert record.details["held_out_patients"] == HELD_OUT
    rate = records_of(result, "pixels")["copy_rate_relative"]
    assert rate.floor is not None
    assert rate.floor.value == rate.details["false_positive_rate"] == 4 / (HELD_OUT + 1)
    assert rate.details["threshold_n"] == HELD_OUT
    assert rate.warning is None
    assert "random weights" in str(records_of(result, "fixed")["copy_rate"].warning)


def test_held_out_images_themselves_pass(make: Callable[..., EvaluationInputs]) -> None:
    held_out = IMAGES[TRAIN : TRAIN + HELD_OUT]
    assert _failed(privacy(make(held_out))) == {"pixels": set(), "fixed": set()}


def test_noise_passes(make: Callable[..., EvaluationInputs]) -> None:
    shape = (100, SIZE, SIZE)
    noise = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    assert _failed(privacy(make(noise))) == {"pixels": set(), "fixed": set()}


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_blur_is_no_copy(make: Callable[..., EvaluationInputs], sigma: float) -> None:
    """It misleads C_T; heavy blur other metrics too, and the random network's relative distance."""
    blurred = gaussian_filter(IMAGES[-NEW:], (0, sigma, sigma))
    result = privacy(make(blurred))
    failed = _failed(result)
    if sigma < 1:
        assert failed == {"pixels": {"data_copying"}, "fixed": set()}
    else:
        assert failed["pixels"] == {"authenticity", "data_copying", "copy_rate"}
        assert "closer_to_train" not in failed["fixed"]
        pixels = records_of(result, "pixels")
        assert pixels["copy_rate_relative"].value < 0.4 * pixels["copy_rate"].value


def test_two_exact_copies_among_400_new_images_are_told(
    make: Callable[..., EvaluationInputs],
) -> None:
    """No rate sees them: 1 % of new images may be flagged."""
    result = privacy(make(np.concatenate([IMAGES[COPIES][:2], IMAGES[-NEW:-2]])))
    assert _failed(result) == {"pixels": {"exact_copies"}, "fixed": set()}
    found = records_of(result, "pixels")["exact_copies"]
    assert (found.value, found.floor.value if found.floor else None) == (2.0, 0.0)


def test_more_images_than_chance_nearer_than_any_held_out_one(
    make: Callable[..., EvaluationInputs],
) -> None:
    """The range is that of Beta(1, h) and a binomial, drawn."""
    altered = ALTERATIONS["noise"](IMAGES[COPIES])[:8]
    result = privacy(make(np.concatenate([altered, IMAGES[-NEW:-8]])))
    found = records_of(result, "pixels")["nearer_than_any"]
    assert found.value >= 8
    assert found.passed is False
    assert found.floor is not None
    random = np.random.default_rng(0)
    drawn = random.binomial(NEW, random.beta(1, HELD_OUT, 200_000))
    assert found.floor.high == np.quantile(drawn, 0.975)
    assert found.floor.value == pytest.approx(drawn.mean(), rel=0.02)


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
