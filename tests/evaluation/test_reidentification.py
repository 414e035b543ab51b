"""A re-identification network of the user in the privacy axis."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from patient_fields import (
    COPIES,
    IMAGES,
    SIZE,
    TRAIN,
    inputs_maker,
    records_of,
)
from torch import Tensor, nn

from cxr_lightning.errors import UserError
from cxr_lightning.evaluation.inputs import EvaluationInputs
from cxr_lightning.evaluation.privacy import privacy
from cxr_lightning.evaluation.reidentification import load_reidentification


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., EvaluationInputs]:
    """Makes the inputs for some synthetic images."""
    return inputs_maker(tmp_path)


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
        records_of(privacy(make(images, reidentification=file)), "siamese.pt")
        for images in (IMAGES[COPIES[:50]], IMAGES[-100:])
    )
    assert copies["reid_score"].value == copies["reid_rate"].value == 1.0
    assert copies["reid_score"].passed is copies["reid_rate"].passed is False
    assert new["reid_score"].passed is new["reid_rate"].passed is True
    threshold = new["reid_rate"].details["threshold"]
    assert 0 < threshold < 1
    assert "as near to training images" not in str(new["reid_rate"].warning)
    row, candidates = IMAGES[-1] / 255, IMAGES[:TRAIN] / 255
    best = np.exp(-20 * np.abs(row - candidates).mean((1, 2))).max()
    last = records_of(
        privacy(make(IMAGES[-1:], extractors=[], reidentification=file)), "siamese.pt"
    )["reid_score"]
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


class Saturated(torch.nn.Module):
    """Sure of everything, or of nothing."""

    def __init__(self, score: float) -> None:
        super().__init__()
        self.score = score

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return torch.full((one.shape[0],), self.score)


@pytest.mark.parametrize(("score", "warns"), [(1.0, True), (0.0, False)])
def test_scores_that_leave_no_room_for_a_threshold_are_warned_of(
    make: Callable[..., EvaluationInputs], tmp_path: Path, score: float, warns: bool
) -> None:
    file = _save(Saturated(score), tmp_path / "saturated.pt")
    found = records_of(privacy(make(IMAGES[-30:], reidentification=file)), "saturated.pt")
    warning = str(found["reid_rate"].warning)
    assert ("as near to training images as can be" in warning) is warns
