"""Training on real, synthetic or both kinds of images: the classifiers of the utility axis.

What each says of the test images is kept on disk, so that a killed run goes on.
"""

import hashlib
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int, Shaped

from cxr_lightning.artifacts import check_product, load_network, save_product
from cxr_lightning.data.dataset import table_condition
from cxr_lightning.data.split import patient_fraction
from cxr_lightning.errors import UserError
from cxr_lightning.evaluation.classification import (
    MAX_SIZE,
    MIN_PER_CLASS,
    POLICY,
    Stacked,
    both_classes,
    fit_classifier,
    predict,
    training_key,
)
from cxr_lightning.evaluation.inputs import EvaluationInputs, RealSplit
from cxr_lightning.files import array_bytes, write_whole
from cxr_lightning.networks.classifier import Classifier
from cxr_lightning.types import FIELDS, OBSERVATIONS, Condition

Regime = Literal["real", "synthetic", "mixed", "augmented", "continued", "pretrained"]

FIRST: dict[Regime, Regime] = {"continued": "real", "pretrained": "synthetic"}
"""Regimes that go on from the classifier of another one."""


@dataclass(frozen=True)
class Task:
    """What is to be learned, from which images, and on which it is tested.

    Attributes:
        fields: Fields of the findings.
        images: The real images, and the synthetic ones behind them.
        sha256: Of both.
        condition: What is known of these findings in each image; nothing else is learned.
        train: Rows of the real training images, each with a known finding.
        synthetic: Rows of the synthetic images, likewise.
        test: Rows of the real test images, likewise.
        split: Where the test images are from.
    """

    fields: list[int]
    images: Stacked
    sha256: str
    condition: Condition
    train: Int[np.ndarray, " n"]
    synthetic: Int[np.ndarray, " m"]
    test: Int[np.ndarray, " k"]
    split: RealSplit


class Setting(NamedTuple):
    """On what a classifier is trained.

    Attributes:
        regime: `real`, the real training images alone; `synthetic`, the synthetic ones alone;
            `mixed`, half of the real images replaced by synthetic ones; `augmented`, the real
            images and all synthetic ones; `continued`, the classifier of `real` trained for as many
            steps again; `pretrained`, that of `synthetic` trained for as many steps again on the
            real images.
        fraction: Share of the real training patients; 0 for `synthetic`.
    """

    regime: Regime
    fraction: float


class Training(NamedTuple):
    """One classifier to train.

    Attributes:
        regime: See `Setting`.
        fraction: See `Setting`.
        seed: Of the choice of patients, the initial weights and the order.
    """

    regime: Regime
    fraction: float
    seed: int

    @property
    def first(self) -> "Training | None":
        """What the classifier was before; None where it begins with random weights."""
        if self.regime not in FIRST:
            return None
        regime = FIRST[self.regime]
        return Training(regime, self.fraction if regime == "real" else 0.0, self.seed)


def choose_task(inputs: EvaluationInputs) -> Task | str:
    """The task, or why there is none.

    The findings are those that are requested both present and absent, and that training and
    test images show and do not show. The test images are those of the split `test` where it has all
    findings that the held-out images have, else all held-out ones.
    """
    real = table_condition(inputs.real.table, POLICY)
    drawn = table_condition(inputs.synthetic.table, POLICY)
    if not inputs.synthetic.labelled:
        return "the synthetic set states no finding of any image"
    train, held_out, test = (inputs.split_rows(s) for s in ("train", "held_out", "test"))
    learned = both_classes(drawn) & both_classes(real, train)
    tested = learned & both_classes(real, held_out)
    split: RealSplit = "held_out"
    if len(test) and (tested <= both_classes(real, test)).all():
        split, held_out = "test", test
    fields = np.flatnonzero(tested[: len(OBSERVATIONS)])
    if not len(fields):
        return (
            f"no finding is shown and is absent in at least {MIN_PER_CLASS} images each of the "
            "synthetic set, the split train, and the splits valid and test"
        )
    mask = torch.from_numpy(np.isin(np.arange(len(FIELDS)), fields))[None]
    condition = Condition.cat([real, drawn]).keep(mask)
    stated = condition.known.any(dim=1).numpy()
    everything = np.arange(len(stated))
    return Task(
        fields=fields.tolist(),
        images=Stacked(inputs.real.images, inputs.synthetic.images),
        sha256=f"{inputs.real.sha256} {inputs.synthetic.sha256}",
        condition=condition,
        train=train[stated[train]],
        synthetic=everything[stated & (everything >= len(real.known))],
        test=held_out[stated[held_out]],
        split=split,
    )


def training_rows(
    task: Task, patients: Shaped[np.ndarray, " n"], training: Training
) -> Int[np.ndarray, " k"]:
    """Rows of the images that a classifier is trained on, in its last part where it has two.

    With one seed, the patients of a smaller share are among those of a larger one.

    Args:
        task: The task.
        patients: Patient of each real image.
        training: Regime, share and seed.
    """
    if training.regime == "synthetic":
        return task.synthetic
    names, patient = np.unique(patients[task.train], return_inverse=True)
    order = np.argsort([patient_fraction(name, training.seed) for name in names])
    rank = np.argsort(order)[patient]
    by_patient = np.argsort(rank, kind="stable")
    real = task.train[by_patient[np.sort(rank) < math.ceil(training.fraction * len(names))]]
    if training.regime == "augmented":
        return np.concatenate([real, task.synthetic])
    if training.regime == "mixed":
        kept, replaced = real[: len(real) // 2], len(real) - len(real) // 2
        drawn = np.random.default_rng(training.seed).permutation(task.synthetic)
        return np.concatenate([kept, np.resize(drawn, replaced)])
    return real


class Trainer:
    """Trains classifiers for a task, each once.

    Args:
        inputs: The evaluation.
        task: What is to be learned.
    """

    def __init__(self, inputs: EvaluationInputs, task: Task) -> None:
        self.inputs = inputs
        self.task = task
        self.folder = inputs.work / "utility"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.image_size = min(inputs.real.size, MAX_SIZE)

    def rows(self, training: Training) -> Int[np.ndarray, " k"]:
        """Rows of the images of a training."""
        return training_rows(self.task, self.inputs.real_patients, training)

    def answers(self, training: Training) -> Float32[np.ndarray, "k 17"]:
        """What the classifier says of the test images, from the disk where it was trained before.

        Args:
            training: Regime, share and seed.
        """
        test = hashlib.sha256(self.task.test.tobytes()).hexdigest()
        file = self.folder / f"{self._key(training)[:32]}-{test[:16]}.npy"
        found = _read(file, (len(self.task.test), len(FIELDS)))
        if found is not None:
            return found
        batch_size, device = self.inputs.settings.batch_size, self.inputs.device
        classifier = self._fit(training)
        found = predict(classifier, self.task.images, self.task.test, batch_size, device)
        write_whole(file, array_bytes(found))
        return found

    def _fit(self, training: Training) -> Classifier:
        """A trained classifier; those that others go on from are kept."""
        folder = self.folder / self._key(training)[:32]
        if folder.is_dir():
            try:
                check_product(folder, "classifier", "classifier")
                return load_network(Classifier, folder).to(self.inputs.device)
            except UserError as error:
                print(f"warning: trained again, since {error}", file=sys.stderr)
        network = fit_classifier(
            self.task.images,
            self.rows(training),
            self.task.condition,
            steps=self.inputs.settings.classifier_steps,
            seed=training.seed,
            device=self.inputs.device,
            image_size=self.image_size,
            initial=self._fit(training.first) if training.first else None,
        )
        if training.regime in FIRST.values():
            save_product(folder, "classifier", {"classifier": network}, {})
        return network

    def _key(self, training: Training) -> str:
        """Hash of all that decides about a classifier."""
        settings = {
            "steps": self.inputs.settings.classifier_steps,
            "seed": training.seed,
            "image_size": self.image_size,
            "first": self._key(training.first) if training.first else None,
        }
        task, device = self.task, self.inputs.device
        return training_key(task.sha256, self.rows(training), task.condition, device, settings)

    def counts(self, training: Training) -> tuple[int, int]:
        """Different real and synthetic images that a classifier has seen."""
        rows = np.unique(self._all_rows(training))
        synthetic = int(np.isin(rows, self.task.synthetic).sum())
        return len(rows) - synthetic, synthetic

    def rarer(self, training: Training, field: int) -> int:
        """Different images of the class of a finding of which a classifier has seen fewer."""
        rows = torch.from_numpy(np.unique(self._all_rows(training)))
        value, known, *_ = self.task.condition.rows(rows)
        present = int((known & (value == 1.0))[:, field].sum())
        return min(present, int(known[:, field].sum()) - present)

    def _all_rows(self, training: Training) -> Int[np.ndarray, " k"]:
        """Rows of the images of a training and of the one before it."""
        before = [self.rows(training.first)] if training.first else []
        return np.concatenate([self.rows(training), *before])


def _read(file: Path, shape: tuple[int, int]) -> Float32[np.ndarray, "k f"] | None:
    """An array of this shape; None where there is none."""
    try:
        found: np.ndarray = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == np.float32 else None
