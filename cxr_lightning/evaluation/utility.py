"""The utility axis: does a classifier learn from synthetic images what real patients show?

The same classifier is trained for the same number of steps in each regime (`pretrained`: as many
before), and tested after its last step on real patients of whom none is among its training images.
Each regime with synthetic images is compared with real images alone, in as many steps.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int

from cxr_lightning.evaluation.classification import FINDINGS
from cxr_lightning.evaluation.comparison import FEW, Side
from cxr_lightning.evaluation.inputs import EvaluationInputs
from cxr_lightning.evaluation.records import OVERALL, AxisResult, Floor, Record, Source
from cxr_lightning.evaluation.regimes import (
    FIRST,
    Regime,
    Setting,
    Trainer,
    Training,
    choose_task,
)
from cxr_lightning.metrics.bootstrap import bootstrap_weights, seeds_interval
from cxr_lightning.progress import progress_bar

MIN_SEEDS = 3
REAL_ALONE = "trained on {share} of the real patients alone, in as many steps"
SYNTHETIC = Setting("synthetic", 0.0)
WITH_BOTH: tuple[Regime, ...] = ("mixed", "augmented", "pretrained")


def utility(inputs: EvaluationInputs) -> AxisResult:
    """AUROC on real test images after training on real, synthetic or both kinds of images."""
    result = AxisResult()
    task = choose_task(inputs)
    if isinstance(task, str):
        result.skip("utility", OVERALL, task)
        return result
    fractions = sorted(inputs.settings.utility_fractions)
    regimes: tuple[Regime, ...] = ("real", "continued", *WITH_BOTH)
    with_real = [Setting(regime, fraction) for fraction in fractions for regime in regimes]
    first, count = inputs.settings.seed, inputs.settings.utility_seeds
    trainings = [
        Training(*setting, seed)
        for seed in range(first, first + count)
        for setting in (SYNTHETIC, *with_real)
    ]
    trainer = Trainer(inputs, task)
    bar = progress_bar(trainings, "utility: classifiers", unit="training")
    scores = _Scores(inputs, trainer, {training: trainer.answers(training) for training in bar})
    for setting in (SYNTHETIC, *with_real):
        result.records += scores.aurocs(setting)
    result.records += [scores.gain(SYNTHETIC, fraction) for fraction in fractions]
    result.records += [scores.gain(s, s.fraction) for s in with_real if s.regime in WITH_BOTH]
    for regime in ("real", "augmented"):
        result.records += scores.subgroups(Setting(regime, fractions[-1]))
    return result


def real_alone(setting: Setting, fraction: float) -> Setting:
    """The training on a share of the real images alone that has as many steps."""
    return Setting("continued" if setting.regime in FIRST else "real", fraction)


class _Scores:
    """Makes the records.

    Args:
        inputs: The evaluation.
        trainer: Knows the images of each training.
        answers: What each classifier says of the test images.
    """

    def __init__(
        self,
        inputs: EvaluationInputs,
        trainer: Trainer,
        answers: Mapping[Training, Float32[np.ndarray, "k 17"]],
    ) -> None:
        settings, task = inputs.settings, trainer.task
        value, known, *_ = task.condition.rows(torch.from_numpy(task.test))
        patients = inputs.real_patients[task.test]
        weights = bootstrap_weights(patients, settings.bootstrap, settings.seed)
        table = inputs.real.table.iloc[task.test]
        self.sides = {
            training: Side(value.numpy(), known.numpy(), said, weights, table)
            for training, said in answers.items()
        }
        self.test = next(iter(self.sides.values()))
        self.found = {
            (training, field): side.answers(field).auroc()
            for training, side in self.sides.items()
            for field in task.fields
        }
        self.task = task
        self.trainer = trainer
        self.seeds = sorted({training.seed for training in answers})
        self.fractions = sorted({training.fraction for training in answers} - {0.0})
        self.steps = settings.classifier_steps
        self.facts = {
            "seeds": len(self.seeds),
            "split": task.split,
            "test_patients": len(np.unique(patients)),
        }

    def aurocs(self, setting: Setting) -> Iterator[Record]:
        """AUROC of each finding, and the mean over them."""
        for field in self.task.fields:
            yield self._auroc(setting, [field], condition=FINDINGS[field])
        yield self._auroc(setting, self.task.fields)

    def subgroups(self, setting: Setting) -> Iterator[Record]:
        """Mean AUROC in each view, sex and age band, over the findings that have both classes."""
        for name, rows in self.test.subgroups.items():
            if fields := self.test.enough(self.task.fields, rows):
                yield self._auroc(setting, fields, rows, subgroup=name)

    def gain(self, setting: Setting, fraction: float) -> Record:
        """Mean AUROC less that of a share of the real images alone, in the same draws and seeds."""
        fields = self.task.fields
        gained = self._each(setting, fields) - self._each(real_alone(setting, fraction), fields)
        record = self._record("utility_gain", setting, gained, fields)
        settings = (1 + len(WITH_BOTH)) * len(self.fractions)
        low, high = seeds_interval(gained, 1.0 - 0.05 / settings) or (None, None)
        simultaneous = {"settings": settings, "low": low, "high": high}
        details = record.details | {"fraction": fraction, "simultaneous": simultaneous}
        floor = Floor(0.0, 0.0, 0.0, meaning=REAL_ALONE.format(share=f"{fraction:.0%}"))
        return replace(record, floor=floor, better="higher", details=details)

    def _auroc(
        self,
        setting: Setting,
        fields: list[int],
        rows: Int[np.ndarray, " k"] | None = None,
        **about: Any,
    ) -> Record:
        each = self._each(setting, fields, rows)
        record = self._record("utility_auroc", setting, each, fields, rows, **about)
        return replace(record, floor=self._real_alone(setting, fields, rows))

    def _real_alone(
        self, setting: Setting, fields: list[int], rows: Int[np.ndarray, " k"] | None
    ) -> Floor | None:
        """The same of the real images alone: shown beside it; `utility_gain` compares in pairs."""
        if setting.regime in ("real", "continued"):
            return None
        fraction = setting.fraction or self.fractions[-1]
        each = self._each(real_alone(setting, fraction), fields, rows)
        meaning = REAL_ALONE.format(share=f"{fraction:.0%}")
        return Floor.around(float(each[0].mean()), _clipped(seeds_interval(each)), meaning)

    def _each(
        self, setting: Setting, fields: list[int], rows: Int[np.ndarray, " k"] | None = None
    ) -> Float64[np.ndarray, "draws seeds"]:
        """Mean AUROC over some findings, of the classifier of each seed."""
        trainings = [Training(*setting, seed) for seed in self.seeds]
        if rows is not None:
            each = [self.sides[training].macro_auroc(fields, rows) for training in trainings]
        else:
            each = [np.mean([self.found[t, f] for f in fields], axis=0) for t in trainings]
        return np.stack(each, axis=1)

    def _record(
        self,
        metric: str,
        setting: Setting,
        each: Float64[np.ndarray, "draws seeds"],
        fields: list[int],
        rows: Int[np.ndarray, " k"] | None = None,
        **about: Any,
    ) -> Record:
        """A record of the mean over the seeds."""
        interval = seeds_interval(each)
        real, synthetic = self.trainer.counts(Training(*setting, self.seeds[0]))
        images = {"images": real + synthetic, "real_images": real, "synthetic_images": synthetic}
        steps = self.steps * (2 if setting.regime in FIRST else 1)
        return Record(
            "utility",
            metric,
            float(each[0].mean()),
            len(self.test.value) if rows is None else len(rows),
            synthetic,
            source=Source("classifier", "", f"{self.trainer.image_size} pixels"),
            interval=interval if metric == "utility_gain" else _clipped(interval),
            warning=self._warning(setting, fields, rows),
            details=setting._asdict()
            | self.facts
            | images
            | {"steps": steps, "values": each[0].tolist()},
            **about,
        )

    def _warning(
        self, setting: Setting, fields: list[int], rows: Int[np.ndarray, " k"] | None
    ) -> str | None:
        reasons = []
        for field in fields:
            tested = self.test.rarer(field, rows)
            trained = self.trainer.rarer(Training(*setting, self.seeds[0]), field)
            if min(tested, trained) < FEW:
                reasons.append(
                    f"{FINDINGS[field]}: the rarer class has {trained} training and {tested} test "
                    "images"
                )
        if len(self.seeds) < MIN_SEEDS:
            reasons.append(f"only {len(self.seeds)} trainings of each kind")
        return "; ".join(reasons) or None


def _clipped(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    """An interval of an AUROC, which lies in [0, 1]."""
    return None if interval is None else (max(interval[0], 0.0), min(interval[1], 1.0))
