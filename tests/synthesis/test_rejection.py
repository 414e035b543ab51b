"""What a classifier's answers mean for an image, and how rejected draws are counted."""

import math

import numpy as np
import pytest
import torch

from cxr_lightning.diffusion.random import ImageNoise
from cxr_lightning.synthesis.making import ATTEMPT, Candidate, Draw
from cxr_lightning.synthesis.rejection import (
    KEPT,
    Verdict,
    certain,
    count_draws,
    judge_answers,
)
from cxr_lightning.types import Condition


def test_answers_are_judged_as_by_hand():
    generator = np.random.default_rng(0)
    probability = generator.uniform(0.01, 0.99, (40, 5))
    present, known = generator.random((2, 40, 5)) < 0.5
    known[0] = False
    threshold = generator.uniform(0.05, 0.95, 5)
    right, margin = judge_answers(
        torch.from_numpy(probability).float(),
        torch.from_numpy(present),
        torch.from_numpy(known),
        torch.from_numpy(threshold).float(),
    )
    for i in range(40):
        kept, worst = True, math.inf
        for o in range(5):
            if not known[i, o]:
                continue
            p, t = probability[i, o], threshold[o]
            kept &= p >= t if present[i, o] else p < t
            above = math.log(p / (1 - p)) - math.log(t / (1 - t))
            worst = min(worst, above if present[i, o] else -above)
        assert bool(right[i]) == kept
        assert float(margin[i]) == pytest.approx(worst, abs=1e-4)


def test_an_answer_at_the_threshold_says_present():
    at = torch.tensor([[0.5], [0.5]])
    present, known = torch.tensor([[True], [False]]), torch.ones(2, 1, dtype=torch.bool)
    right, _ = judge_answers(at, present, known, torch.tensor([0.5]))
    assert right.tolist() == [True, False]


def test_soft_labels_are_neither_present_nor_absent():
    condition = Condition.unknown(1)
    condition.value[0, :3] = torch.tensor([1.0, 0.0, 0.77])
    condition.known[0, :3] = True
    assert certain(condition)[0].tolist() == [True, True, *[False] * 12]


def test_sure_answers_have_finite_margins():
    probability, present = torch.tensor([[0.0], [1.0]]), torch.tensor([[True], [False]])
    known = torch.ones(2, 1, dtype=torch.bool)
    right, margin = judge_answers(probability, present, known, torch.tensor([0.5]))
    assert right.tolist() == [False, False]
    assert margin.isfinite().all()
    assert (margin < -10).all()


def test_attempts_of_an_image_have_streams_of_their_own():
    for image, attempt in [(0, 1), (7, 3), (2**31, 9)]:
        number = torch.tensor([image + ATTEMPT * attempt])
        entropy = np.random.SeedSequence((5, image, attempt)).generate_state(1, np.uint64)[0]
        expected = torch.randn(4, generator=torch.Generator().manual_seed(int(entropy >> 1)))
        assert torch.equal(ImageNoise(5, number).normal(4)[0], expected)
    numbers = torch.tensor([i + ATTEMPT * a for i in range(20) for a in range(10)])
    assert len(ImageNoise(0, numbers).normal(3).unique(dim=0)) == 200


def test_the_best_draw_is_kept_and_the_earlier_of_equal_ones():
    def candidate(attempt: int, confirmed: bool | None, margin: float) -> Candidate:
        return Candidate(attempt, Verdict(confirmed, margin), torch.zeros(1, 2, 2).byte())

    first = candidate(0, False, -1.0)
    assert Draw(3).choose(first) is first
    for better in (candidate(1, False, -0.5), candidate(1, True, 0.0)):
        assert Draw(3, 1, first).choose(better) is better
    for worse in (candidate(1, False, -2.0), candidate(1, False, -1.0)):
        assert Draw(3, 1, first).choose(worse) is first


def test_draws_are_counted_overall_and_by_what_was_asked_for():
    records = {
        0: {"draws": 1, "confirmed": True},
        1: {"draws": 4, "confirmed": True},
        2: {"draws": 5, "confirmed": False},
        3: {"draws": 1, "confirmed": KEPT.confirmed},
    }
    counts = count_draws(["a", "a", "b", "c"], records)
    groups = counts.pop("conditions")
    assert counts == {
        "judged": 3,
        "unjudged": 1,
        "unconfirmed": 1,
        "draws": 10,
        "rejected": 8,  # 0 + 3 + 5
        "rejection_rate": 0.8,
    }
    assert (groups["a"]["draws"], groups["a"]["rejected"], groups["a"]["unconfirmed"]) == (5, 3, 0)
    assert groups["b"]["rejection_rate"] == 1.0
    assert groups["c"]["rejection_rate"] is None
