"""Training a classifier of radiographs, and its answers."""

import hashlib
import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from cxr_lightning import __version__
from cxr_lightning.data.augment import Augmentation, augment, sample_draws
from cxr_lightning.data.policies import LabelPolicy
from cxr_lightning.data.transforms import to_model
from cxr_lightning.data.vocabulary import CONDITIONS
from cxr_lightning.networks.classifier import Classifier, GivenClassifier
from cxr_lightning.types import FIELDS, OBSERVATIONS, Condition

FINDINGS = tuple(
    next(name for name, c in CONDITIONS.items() if c.present == (observation,) and not c.absent)
    for observation in OBSERVATIONS
)
"""Vocabulary key of each observation, such as `pleural_effusion`, in column order."""

AGE = FIELDS.index("Age")

POLICY = LabelPolicy()
"""Uncertain and blank are unknown: neither trained on nor judged."""

MIN_PER_CLASS = 3
"""Images with and without a finding that it takes to judge it."""

BATCH_SIZE = 32
LEARNING_RATE = 3e-3
FINE_TUNING_RATE = 3e-4
"""Learning rate from a trained classifier on: a larger one forgets what that has learned."""

WEIGHT_DECAY = 0.05
MAX_SIZE = 64
"""Largest side that the built-in classifier sees; larger images are reduced."""

RAREST = 0.05
"""A rarer class is weighted as if it had this share: no image weighs more than 10."""

AUGMENTATION = Augmentation(
    area=(0.8, 1.0), ratio=(1.0, 1.0), rotation=0.0, brightness=0.0, contrast=0.2, flip=0.0
)
"""Zoom and translation by a crop, and contrast. No flip: the side of heart and finding matters."""

Images = UInt8[np.ndarray, "n h w"]


class Stacked:
    """Image arrays of one size read as one: the rows of each follow those of the one before."""

    def __init__(self, *arrays: UInt8[np.ndarray, "_ h w"]) -> None:
        self.arrays = arrays
        self.starts = np.cumsum([0, *(len(array) for array in arrays)])

    def __getitem__(self, rows: Int[np.ndarray, " k"]) -> UInt8[np.ndarray, "k h w"]:
        """The images in some rows."""
        found = np.empty((len(rows), *self.arrays[0].shape[1:]), dtype=np.uint8)
        for array, start in zip(self.arrays, self.starts, strict=False):
            inside = (rows >= start) & (rows < start + len(array))
            found[inside] = array[rows[inside] - start]
        return found


def fit_classifier(
    images: Images | Stacked,
    rows: Int[np.ndarray, " k"],
    condition: Condition,
    *,
    steps: int,
    seed: int,
    device: torch.device,
    image_size: int = MAX_SIZE,
    batch_size: int = BATCH_SIZE,
    initial: Classifier | None = None,
) -> Classifier:
    """Trains a classifier on what is known of some images.

    AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) with one cycle of the learning rate (Smith
    and Topin 2019, arXiv 1708.07120); the last step counts. On a CPU the same arguments give the
    same weights.

    Args:
        images: Raw images.
        rows: Rows to train on.
        condition: What is known of every image.
        steps: Optimizer steps.
        seed: Of initial weights, order and augmentation.
        device: Where to train.
        image_size: Side that the classifier sees.
        batch_size: Images a step; few images come several times.
        initial: A classifier to go on from, at a tenth of the learning rate.

    Returns:
        The classifier, in eval mode, on the device.
    """
    share = class_shares(condition.rows(torch.from_numpy(rows)))
    rate = LEARNING_RATE if initial is None else FINE_TUNING_RATE
    if initial is None:
        initial = _new_classifier(image_size, seed, share)
    network = deepcopy(initial).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    share = share.to(device)
    for batch in _batches(rows, batch_size, steps, seed):
        raw = torch.from_numpy(images[batch][:, None]).to(device)
        draws = sample_draws(len(batch), generator)[:, 0]
        image = augment(network.preprocess(to_model(raw)), draws, AUGMENTATION)
        known = condition.rows(torch.from_numpy(batch)).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = network(image)
        loss = balanced_loss(logits.float(), known, share)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def _new_classifier(image_size: int, seed: int, share: Float[Tensor, " 17"]) -> Classifier:
    """Random weights; what it says before it has seen an image is the share of each class."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Classifier(image_size=image_size)
    with torch.no_grad():
        network.head.bias.copy_(share.logit())
    return network


def class_shares(condition: Condition) -> Float[Tensor, " 17"]:
    """Share of positives among the known values of each field, within `RAREST` of 0 and 1.

    One half for age, which has no classes.
    """
    known = condition.known.sum(dim=0).clamp(min=1)
    share = (condition.value.sum(dim=0) / known).clamp(RAREST, 1.0 - RAREST)
    share[AGE] = 0.5
    return share


def balanced_loss(
    logits: Float[Tensor, "b 17"], condition: Condition, share: Float[Tensor, " 17"]
) -> Float[Tensor, ""]:
    """Cross-entropy over the known fields in which both classes of a field weigh the same.

    A positive weighs 1 / (2 share), a negative 1 / (2 (1 - share)), so that a rare finding is
    learned. A network trained so answers as if both classes were equally common, its logit off by
    -logit(share): that is added here, so that the network's own logit stays calibrated (prior
    correction, King and Zeng 2001; as Menon et al. 2021, arXiv 2007.07314).

    Args:
        logits: Of the network.
        condition: What is known; age is a soft target.
        share: Share of positives of each field.
    """
    target = condition.value
    weight = target / (2.0 * share) + (1.0 - target) / (2.0 * (1.0 - share))
    total = F.binary_cross_entropy_with_logits(
        logits - share.logit(), target, weight * condition.known, reduction="sum"
    )
    return total / condition.known.sum().clamp(min=1)


def _batches(
    rows: Int[np.ndarray, " k"], size: int, steps: int, seed: int
) -> Iterator[Int[np.ndarray, " b"]]:
    """Batches of one random permutation of the rows after the other."""
    generator = np.random.default_rng(seed)
    order = rows[:0]
    for _ in range(steps):
        while len(order) < size:
            order = np.concatenate([order, generator.permutation(rows)])
        yield order[:size]
        order = order[size:]


@torch.inference_mode()
def predict(
    classifier: Classifier | GivenClassifier,
    images: Images | Stacked,
    rows: Int[np.ndarray, " k"],
    batch_size: int,
    device: torch.device,
) -> Float32[np.ndarray, "k 17"]:
    """What a classifier says of some images, in fp32.

    Args:
        classifier: In eval mode, on the device.
        images: Raw images.
        rows: Which of them.
        batch_size: Images at once.
        device: Where to compute.

    Returns:
        Values of `FIELDS` in [0, 1]; NaN where the classifier has no answer.
    """
    found = np.empty((len(rows), len(FIELDS)), dtype=np.float32)
    for start in range(0, len(rows), batch_size):
        part = slice(start, start + batch_size)
        raw = torch.from_numpy(images[rows[part]][:, None]).to(device)
        found[part] = classifier.probabilities(to_model(raw)).cpu().numpy()
    return found


def both_classes(
    condition: Condition, rows: Int[np.ndarray, " k"] | None = None, at_least: int = MIN_PER_CLASS
) -> Bool[np.ndarray, " 17"]:
    """Fields that are known to be 1 in enough images and to be 0 in enough."""
    value, known, *_ = condition if rows is None else condition.rows(torch.from_numpy(rows))
    present, absent = (known & (value == wanted) for wanted in (1.0, 0.0))
    enough = torch.minimum(present.sum(dim=0), absent.sum(dim=0)) >= at_least
    return enough.numpy()


def training_key(
    images_sha256: str,
    rows: Int[np.ndarray, " k"],
    condition: Condition,
    device: torch.device,
    settings: dict[str, Any],
) -> str:
    """Hash of all that decides about a classifier.

    Args:
        images_sha256: Tells the images from any others.
        rows: Rows to train on.
        condition: What is known of every image.
        device: Where to train.
        settings: Anything else, as JSON knows it.
    """
    rates = [LEARNING_RATE, FINE_TUNING_RATE, WEIGHT_DECAY]
    recipe = [BATCH_SIZE, *rates, RAREST, asdict(AUGMENTATION)]
    versions = [__version__, torch.__version__, device.type]
    text = json.dumps([images_sha256, recipe, versions, settings], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    chosen = condition.rows(torch.from_numpy(rows))
    for array in (rows, chosen.value.numpy(), chosen.known.numpy()):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
