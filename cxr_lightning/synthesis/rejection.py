"""Rejection: a classifier confirms the findings that an image was asked for.

An image of whose stated observations one is on the wrong side of the classifier's threshold is
drawn again, from other noise, as RoentGen-v2 does with a second model (arXiv 2508.16783).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from cxr_lightning.data.transforms import to_model
from cxr_lightning.errors import UserError
from cxr_lightning.evaluation.comparison import WEAK
from cxr_lightning.evaluation.judge import Judge, open_classifier
from cxr_lightning.synthesis.request import RejectionRequest
from cxr_lightning.types import OBSERVATIONS, Condition

TRIES = 10
THRESHOLD = 0.5
"""Of a classifier of which nobody measured an operating point."""


class Verdict(NamedTuple):
    """What the classifier says of an image.

    Attributes:
        confirmed: Whether all that was asked for is on the right side; None where it can judge
            nothing of that.
        margin: By how much, in log odds, the worst one is on the right side.
    """

    confirmed: bool | None
    margin: float

    def rank(self) -> tuple[bool, float]:
        """Larger for a better image."""
        return self.confirmed is not False, self.margin


KEPT = Verdict(None, 0.0)
"""Of an image that nobody judges."""


@dataclass(frozen=True)
class Rejection:
    """Which observations a classifier judges, and from which answer on they are there.

    Attributes:
        classifier: The classifier.
        thresholds: Threshold of each observation that is judged.
        unjudged: Why others, which images are asked for, are not.
        tries: Draws of an image at most.
        request: What the images depend on of it.
    """

    classifier: Path
    thresholds: dict[str, float]
    unjudged: dict[str, str]
    tries: int
    request: RejectionRequest

    def facts(self) -> dict[str, Any]:
        """As the manifest states it."""
        return {"thresholds": self.thresholds, "unjudged": self.unjudged}


def plan_rejection(
    classifier: Path, threshold: float | None, tries: int, condition: Condition, size: int
) -> Rejection:
    """Chooses what is judged of what is asked for.

    Args:
        classifier: A product or TorchScript file; see `open_classifier`.
        threshold: One for all observations; None for the classifier's own operating points, and
            `THRESHOLD` where it has none.
        tries: Draws of an image at most.
        condition: What the images are asked for.
        size: Their side in pixels.

    Raises:
        UserError: If there is no such classifier, it was trained on images of another size, or it
            can judge nothing of what is asked for.
    """
    judge = open_classifier(classifier, "reject")
    _check_size(judge, size)
    asked = certain(condition).any(dim=0).tolist()
    reasons = {
        observation: _why_not(judge, observation)
        for observation, wanted in zip(OBSERVATIONS, asked, strict=True)
        if wanted
    }
    unjudged = {observation: why for observation, why in reasons.items() if why}
    if len(unjudged) == len(reasons):
        listed = [f"{names}: {why}" for why, names in list_reasons(unjudged)]
        raise UserError(
            f"reject: {classifier} can judge nothing of what is asked for "
            f"({'; '.join(listed) or 'no observation is stated'}); use another classifier, or "
            "leave it out."
        )
    thresholds = {
        observation: _threshold(judge, observation) if threshold is None else threshold
        for observation, why in reasons.items()
        if not why
    }
    request = RejectionRequest(judge.source.sha256, threshold, tries)
    return Rejection(classifier, thresholds, unjudged, tries, request)


def list_reasons(unjudged: dict[str, str]) -> list[tuple[str, str]]:
    """Each reason once, and the observations that it is one for, in words."""
    reasons: dict[str, list[str]] = {}
    for observation, why in unjudged.items():
        reasons.setdefault(why, []).append(observation)
    return [
        (why, " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])))
        for why, names in reasons.items()
    ]


def _check_size(judge: Judge, size: int) -> None:
    """Raises an error if a classifier says that it was trained on images of another size."""
    trained = judge.size or getattr(judge.network, "image_size", None)
    if trained not in (None, size):
        raise UserError(
            f"reject: the classifier was trained on images of {trained} pixels, but the generator "
            f"makes {size}; use one of 'cxr evaluate --axes condition' on real images of {size}."
        )


def _why_not(judge: Judge, observation: str) -> str:
    """Why an observation cannot be judged; blank if it can."""
    if observation not in judge.fields:
        return "the classifier did not learn it"
    if judge.points is None:
        return ""
    if observation not in judge.points:
        return "too few held-out real images show it, or show its absence"
    reached = judge.points[observation].auroc
    if reached < WEAK:
        return f"the classifier reaches an AUROC of only {reached:.2f} on held-out real images"
    return ""


def _threshold(judge: Judge, observation: str) -> float:
    return THRESHOLD if judge.points is None else judge.points[observation].threshold


class Confirmer:
    """Judges images.

    Args:
        rejection: What is judged.
        device: Where the classifier runs.
    """

    def __init__(self, rejection: Rejection, device: torch.device) -> None:
        self.network = open_classifier(rejection.classifier, "reject").network.to(device)
        self.columns = [OBSERVATIONS.index(observation) for observation in rejection.thresholds]
        self.thresholds = torch.tensor([*rejection.thresholds.values()])
        self.device = device

    @torch.inference_mode()
    def __call__(self, images: UInt8[Tensor, "b 1 h w"], asked: Condition) -> list[Verdict]:
        """A verdict on each image.

        Args:
            images: As they are written.
            asked: What each was asked for.
        """
        said = self.network.probabilities(to_model(images.to(self.device))).cpu()
        asked = asked.to("cpu")
        present = asked.observations[:, self.columns] == 1.0
        known = certain(asked)[:, self.columns]
        right, margin = judge_answers(said[:, self.columns], present, known, self.thresholds)
        return [
            Verdict(bool(r), float(m)) if k else KEPT
            for r, m, k in zip(right, margin, known.any(dim=1), strict=True)
        ]


def certain(condition: Condition) -> Bool[Tensor, "b o"]:
    """Which observations were asked for as present or as absent; a soft label is neither."""
    stated = (condition.observations == 0.0) | (condition.observations == 1.0)
    return condition.observations_known & stated


def judge_answers(
    probability: Float[Tensor, "b o"],
    present: Bool[Tensor, "b o"],
    known: Bool[Tensor, "b o"],
    threshold: Float[Tensor, " o"],
) -> tuple[Bool[Tensor, " b"], Float[Tensor, " b"]]:
    """Whether all stated observations are on the right side, and the margin of the worst.

    Args:
        probability: What the classifier says; what reaches the threshold counts as present.
        present: Whether an observation was asked for as present, else as absent.
        known: Whether it was asked for at all.
        threshold: Of each observation.

    Returns:
        The margin is in log odds, so that thresholds of rare and of common findings compare;
        infinite where nothing is stated.
    """
    right = ((probability >= threshold) == present) | ~known
    above = probability.logit(eps=1e-6) - threshold.logit(eps=1e-6)
    margin = torch.where(present, above, -above).masked_fill(~known, float("inf"))
    return right.all(dim=1), margin.amin(dim=1)


def count_draws(labels: list[str], records: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """How many draws were rejected, in all and by what was asked for.

    Args:
        labels: What each image was asked for, in words.
        records: `draws` and `confirmed` of each image.
    """
    everything = records.values()
    groups: dict[str, list[dict[str, Any]]] = {}
    for i, label in enumerate(labels):
        groups.setdefault(label, []).append(records[i])
    return _counts(everything) | {"conditions": {k: _counts(v) for k, v in groups.items()}}


def _counts(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Of images that were judged; a rejected draw may be kept in the end, as unconfirmed."""
    records = list(records)
    judged = [record for record in records if record["confirmed"] is not None]
    confirmed = sum(record["confirmed"] for record in judged)
    draws = sum(record["draws"] for record in judged)
    return {
        "judged": len(judged),
        "unjudged": len(records) - len(judged),
        "unconfirmed": len(judged) - confirmed,
        "draws": draws,
        "rejected": draws - confirmed,
        "rejection_rate": (draws - confirmed) / draws if draws else None,
    }


def describe_draws(counts: dict[str, Any], tries: int, most: int = 20) -> str:
    """What was rejected, in words: overall, and of the groups with most draws."""
    lines = [_line("rejected", counts) + f" after {tries} draws"]
    groups = sorted(counts["conditions"].items(), key=lambda item: -item[1]["draws"])
    lines += [_line(f"  {name}:", group) for name, group in groups[:most]]
    if len(groups) > most:
        lines.append(f"  ... and {len(groups) - most} more in manifest.json")
    return "\n".join(lines)


def _line(name: str, counts: dict[str, Any]) -> str:
    if not counts["draws"]:
        return f"{name} nothing that the classifier judges"
    return (
        f"{name} {counts['rejected']} of {counts['draws']} draws "
        f"({counts['rejection_rate']:.1%}); {counts['unconfirmed']} of {counts['judged']} images "
        "unconfirmed"
    )
