"""What features tell of the observations: linear probe and nearest neighbours, labels masked."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_auroc

from cxr_lightning.types import OBSERVATIONS, Condition

MASKED = -1
"""Label of an observation that is unknown, or neither present nor absent."""

ITERATIONS = 100
"""Of L-BFGS; the AUROC no longer changes long before."""


class Probe(NamedTuple):
    """A linear classifier of each observation on standardised features.

    Attributes:
        mean: Of the features it was fitted on.
        scale: 1 / their standard deviation; 0 for a feature that never varies.
        weight: One column an observation.
        bias: One number an observation.
    """

    mean: Float[Tensor, " f"]
    scale: Float[Tensor, " f"]
    weight: Float[Tensor, "f k"]
    bias: Float[Tensor, " k"]

    def __call__(self, features: Float[Tensor, "n f"]) -> Float[Tensor, "n k"]:
        """Logit of each observation."""
        return (features - self.mean) * self.scale @ self.weight + self.bias


def probe_labels(condition: Condition) -> Int[Tensor, "n 14"]:
    """1 present, 0 absent, -1 masked: unknown, or a number between that a policy gave."""
    value = condition.observations
    sure = condition.observations_known & ((value == 0.0) | (value == 1.0))
    return torch.where(sure, value, float(MASKED)).long()


def fit_probe(features: Float[Tensor, "n f"], labels: Int[Tensor, "n k"]) -> Probe:
    """Logistic regression of each observation on the images where its label is not masked.

    Minimises sum of the binary cross-entropy + |w|^2 / 2 (scikit-learn's C = 1) by L-BFGS, all
    observations at once; the features are constants, so nothing reaches the network behind them.

    Args:
        features: Detached here.
        labels: 1 present, 0 absent, -1 masked.
    """
    features = features.detach().float()
    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
    scale = torch.where(deviation > 1e-6 * mean.abs() + 1e-12, 1.0 / deviation, 0.0)
    standard = (features - mean) * scale
    known = (labels != MASKED).float()
    target, count = labels.clamp(min=0).float(), known.sum(dim=0).clamp(min=1.0)
    with torch.inference_mode(False), torch.enable_grad():
        standard, known, target, count = (t.clone() for t in (standard, known, target, count))
        weight = standard.new_zeros(features.shape[1], labels.shape[1]).requires_grad_()
        bias = standard.new_zeros(labels.shape[1]).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            logits = standard @ weight + bias
            losses = F.binary_cross_entropy_with_logits(logits, target, known, reduction="none")
            penalty = 0.5 * weight.square().sum(dim=0)
            loss = ((losses.sum(dim=0) + penalty) / count).sum()  # labels do not share weights
            loss.backward()
            return loss

        optimizer.step(closure)
    return Probe(mean, scale, weight.detach(), bias.detach())


def knn_scores(
    features: Float[Tensor, "n f"],
    bank: Float[Tensor, "m f"],
    bank_labels: Int[Tensor, "m k"],
    *,
    neighbours: int = 200,
    temperature: float = 0.1,
) -> Float[Tensor, "n k"]:
    """Share of the nearest images that show each observation (Wu et al. 2018, 1805.01978).

    Votes weigh exp(cosine / temperature); of the nearest images those vote on an observation whose
    label is not masked. 0.5 where there is none.

    Args:
        features: To classify, of any length.
        bank: With known labels.
        bank_labels: 1 present, 0 absent, -1 masked.
        neighbours: Number of nearest images.
        temperature: T of the votes.
    """
    cosine = F.normalize(features, dim=1) @ F.normalize(bank, dim=1).T
    nearest, index = cosine.topk(min(neighbours, len(bank)), dim=1)
    vote = ((nearest - 1.0) / temperature).exp()[:, :, None]
    label = bank_labels[index]
    for_it, in_all = (vote * (label == 1)).sum(dim=1), (vote * (label != MASKED)).sum(dim=1)
    return torch.where(in_all > 0, for_it / in_all.clamp(min=1e-30), 0.5)


def label_auroc(score: Float[Tensor, "n k"], labels: Int[Tensor, "n k"]) -> Float[Tensor, " k"]:
    """AUROC of each observation over the images where it is not masked.

    NaN where no image shows it, or all do (torchmetrics would say 0).
    """
    judged, score = both_shown(labels), score.double()  # of large logits float32 makes ties
    return torch.stack(
        [
            binary_auroc(score[:, k], labels[:, k], ignore_index=MASKED).float()
            if judged[k]
            else torch.full((), torch.nan, device=score.device)
            for k in range(labels.shape[1])
        ]
    )


def label_scores(
    features: Float[Tensor, "n f"],
    labels: Int[Tensor, "n 14"],
    bank: Float[Tensor, "m f"],
    bank_labels: Int[Tensor, "m 14"],
) -> dict[str, Float[Tensor, ""]]:
    """AUROC of linear probe and nearest neighbours: the mean, and each observation's.

    Args:
        features: Of the images that are judged.
        labels: 1 present, 0 absent, -1 masked.
        bank: Features of the images that probe and neighbours learn from.
        bank_labels: Their labels.

    Returns:
        `probe_auroc`, `probe_auroc_pneumonia`, ..., `knn_auroc`, ...; NaN where there is none.
    """
    scores = {
        "probe_auroc": fit_probe(bank, bank_labels)(features),
        "knn_auroc": knn_scores(features, bank, bank_labels),
    }
    found = {}
    for name, score in scores.items():
        values = label_auroc(score, labels)
        found[name] = values.nanmean()
        for observation, value in zip(OBSERVATIONS, values, strict=True):
            found[f"{name}_{observation.lower().replace(' ', '_')}"] = value
    return found


def both_shown(labels: Int[Tensor, "n k"]) -> Bool[Tensor, " k"]:
    """Which observations are present in an image and absent in another."""
    return (labels == 1).any(dim=0) & (labels == 0).any(dim=0)
