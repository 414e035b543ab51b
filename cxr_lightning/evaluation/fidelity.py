"""The fidelity axis: how close are the distributions of synthetic and real images?

In the features of each extractor (FID, FID-infinity, KID, precision, recall, density, coverage,
spread within a condition), and in the pixels (`radiographs`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Shaped
from torch import Tensor

from cxr_lightning.evaluation.diversity import embedding_diversity
from cxr_lightning.evaluation.floors import floor_of
from cxr_lightning.evaluation.inputs import EvaluationInputs, Group, source_of
from cxr_lightning.evaluation.radiographs import radiographs
from cxr_lightning.evaluation.records import OVERALL, TOO_CLOSE, AxisResult, Record
from cxr_lightning.metrics.bootstrap import Sample, percentile_interval, replicate
from cxr_lightning.metrics.extractors import Extractor
from cxr_lightning.metrics.fid import frechet, frechet_interval, moments
from cxr_lightning.metrics.fid_infinity import (
    FEWEST_IMAGES,
    FEWEST_POINTS,
    fid_infinity,
    fid_infinity_interval,
)
from cxr_lightning.metrics.floor import MIN_IMAGES, SplitFloor, floor_size, split_floor
from cxr_lightning.metrics.kid import kid, kid_interval
from cxr_lightning.metrics.prdc import Prdc, prdc

AXIS = "fidelity"
FEW_IMAGES = 2
NEIGHBOURS = 5
MAX_NEIGHBOURS = 10_000
"""Images a side for precision, recall, density and coverage, as in their papers: time grows with
the square."""


IntervalOf = Callable[[float, Sample, Sample, int, int], tuple[float, float] | None]
"""From a value, both samples, draws and seed to an interval."""


def fidelity(inputs: EvaluationInputs) -> AxisResult:
    """All fidelity metrics, overall, per condition, and per view, sex and age band."""
    result = AxisResult()
    groups = []
    for group in inputs.groups():
        if min(len(group.real), len(group.synthetic)) >= FEW_IMAGES:
            groups.append(group)
        elif group.subgroup == OVERALL:
            reason = (
                f"{len(group.real)} real and {len(group.synthetic)} synthetic images; "
                f"{FEW_IMAGES} of each are needed"
            )
            result.skip(AXIS, "all", reason, group.condition)
    for extractor in inputs.extractors:
        equal_n = _equal_n(inputs, groups)
        for group in groups:
            print(
                f"fidelity by {extractor.name}: {group.condition}, {group.subgroup}: "
                f"{len(group.real)} real, {len(group.synthetic)} synthetic images"
            )
            metrics = _Metrics(inputs, extractor, group)
            found = list(metrics.records(equal_n))
            result.records += found
            if group.subgroup == OVERALL:
                _say_what_is_missing(result, group, extractor, found, equal_n)
            if metrics.curve and group.subgroup == OVERALL:
                curves = result.curves.setdefault("fid_infinity", {})
                curves.setdefault(extractor.name, {})[group.condition] = metrics.curve
    radiographs(inputs, groups, result)
    result.records = [_with_cautions(inputs, record) for record in result.records]
    return result


def _with_cautions(inputs: EvaluationInputs, record: Record) -> Record:
    """A record with what the set as a whole, or its encoder, gives reason to say."""
    reasons = [record.warning] if record.warning else []
    if inputs.other_mix and record.condition == OVERALL:
        record, reasons = replace(record, better=None), [*reasons, inputs.other_mix]
    in_loss = {encoder.source.sha256 for encoder in inputs.encoders if encoder.in_loss}
    if inputs.made_by_generator and record.source.sha256 in in_loss:
        reasons.append("the generator was fine-tuned with this very encoder, which flatters it")
    return replace(record, warning="; ".join(reasons) or None)


def _equal_n(inputs: EvaluationInputs, groups: list[Group]) -> int | None:
    """Images a side at which conditions can be compared; None with fewer than two.

    Conditions of too few images for a floor are left out.
    """
    whole = [g for g in groups if g.subgroup == OVERALL and g.condition != OVERALL]
    patients, seed = inputs.real_patients, inputs.settings.seed
    sizes = [floor_size(patients[g.real], len(g.synthetic), seed) for g in whole]
    sizes = [size for size in sizes if size >= MIN_IMAGES]
    return min(sizes) if len(sizes) >= 2 else None


def _say_what_is_missing(
    result: AxisResult,
    group: Group,
    extractor: Extractor,
    found: Sequence[Record],
    equal_n: int | None,
) -> None:
    """Notes the metrics that need more images than the group has."""
    counts = f"{len(group.real)} real and {len(group.synthetic)} synthetic images"
    needed = {
        "precision": f"more than {NEIGHBOURS} of each are needed",
        "fid_infinity": f"{FEWEST_IMAGES} of each are needed",
        "embedding_diversity": "two patients of each are needed",
    }
    if equal_n is not None and group.condition != OVERALL:
        needed["fid_equal_n"] = f"two halves of the real ones would have fewer than {MIN_IMAGES}"
    there = {record.metric for record in found}
    for metric, reason in needed.items():
        if metric not in there:
            name = f"{metric} by {extractor.name}"
            result.skip(AXIS, name, f"{counts}; {reason}", group.condition)


class _Metrics:
    """Metrics of one group of images in the features of one extractor."""

    def __init__(self, inputs: EvaluationInputs, extractor: Extractor, group: Group) -> None:
        self.inputs = inputs
        self.settings = inputs.settings
        self.extractor = extractor
        self.group = group
        self.real = Sample(
            inputs.real_features(extractor, group.real), inputs.real_patients[group.real]
        )
        self.synthetic = Sample(
            inputs.synthetic_features(extractor, group.synthetic),
            inputs.synthetic.patients[group.synthetic],
        )
        self.curve: dict[str, Any] = {}
        self.record = partial(
            Record,
            AXIS,
            source=source_of(extractor),
            condition=group.condition,
            subgroup=group.subgroup,
            n_real=len(group.real),
            n_synthetic=len(group.synthetic),
        )

    def records(self, equal_n: int | None) -> Iterator[Record]:
        """All records of the group; of sexes and ages only the distances and the neighbours."""
        yield self._fid()
        yield self._kid()
        yield from self._prdc()
        if not self.group.is_measured_whole:
            return
        is_condition = self.group.condition != OVERALL and self.group.subgroup == OVERALL
        if equal_n is not None and is_condition:
            yield from self._fid_equal_n(equal_n)
        yield from self._fid_infinity()
        yield from embedding_diversity(self.record, self.settings, self.real, self.synthetic)

    def _floor(self, statistic: Any, n: int | None = None) -> SplitFloor | None:
        (real, patients), synthetic = self.real, self.synthetic.features
        return split_floor(statistic, real, synthetic, patients, self.settings.seed, n=n)

    def _interval(
        self, of: IntervalOf, value: float, real: Sample | None = None, drawn: Sample | None = None
    ) -> tuple[float, float] | None:
        """Interval of a metric of both sides, by default with all images of the group."""
        sides = (real or self.real, drawn or self.synthetic)
        return of(value, *sides, self.settings.bootstrap, self.settings.seed)

    def _fid(self) -> Record:
        value = frechet(moments(self.real.features), moments(self.synthetic.features))
        floor = floor_of(self._floor(_frechet))
        record = self.record(
            "fid",
            value,
            interval=self._interval(frechet_interval, value),
            floor=floor,
            better="lower",
            details={
                "num_features": self.extractor.num_features,
                "real_split": self.settings.split,
                "real_patients": len(np.unique(self.real.patients)),
            },
        )
        return replace(record, warning=_warning(record, self.extractor))

    def _fid_equal_n(self, n: int) -> Iterator[Record]:
        """Mean over the floor's random subsets; its interval is that of one of them."""
        floor = floor_of(self._floor(_frechet, n))
        if floor is None or floor.at_n is None:
            return
        generator = np.random.default_rng(self.settings.seed)
        sides = [_at_most(side, n, generator) for side in (self.real, self.synthetic)]
        record = replace(
            self.record("fid_equal_n", floor.at_n, floor=floor, better="lower"),
            interval=self._interval(frechet_interval, floor.at_n, *sides),
            n_real=n,
            n_synthetic=n,
            details={"meaning": f"FID at {n} images a side, the same for every condition"},
        )
        yield replace(record, warning=_warning(record, self.extractor))

    def _fid_infinity(self) -> Iterator[Record]:
        sides = (self.real.features, self.synthetic.features)
        found = fid_infinity(*sides, seed=self.settings.seed)
        if found is None:
            return
        warning = None
        if found.smallest <= self.extractor.num_features:
            warning = (
                "extrapolated from no more images than features, where FID does not follow a "
                "straight line in 1/n: it may even be negative"
            )
        self.curve = {"n": [*found.sizes], "fid": [*found.values], "value": found.value}
        yield self.record(
            "fid_infinity",
            found.value,
            interval=self._interval(fid_infinity_interval, found.value),
            floor=floor_of(self._floor(_fid_infinity)),
            better="lower",
            warning=warning,
            details={"slope": found.slope, "from": found.smallest, "to": found.largest},
        )

    def _kid(self) -> Record:
        sides = (self.real.features, self.synthetic.features)
        found = kid(*sides, seed=self.settings.seed)
        return self.record(
            "kid",
            found.mean,
            interval=self._interval(kid_interval, found.mean),
            floor=floor_of(self._floor(_kid)),
            better="lower",
            warning=_random_weights(self.extractor),
            details={"sd": found.sd, "subsets": 100, "subset_size": found.subset_size},
        )

    def _prdc(self) -> Iterator[Record]:
        generator = np.random.default_rng(self.settings.seed)
        sides = (self.real, self.synthetic)
        real, drawn = (_at_most(side, MAX_NEIGHBOURS, generator) for side in sides)
        if min(len(real.features), len(drawn.features)) <= NEIGHBOURS:
            return
        found = prdc(real.features, drawn.features)
        splits = self._floor(_prdc)
        patients = {
            "precision": drawn.patients,
            "density": drawn.patients,
            "recall": real.patients,
            "coverage": real.patients,
        }
        for column, name in enumerate(Prdc._fields):
            values = _numbers(getattr(found, name))
            record = self.record(
                name,
                float(values.mean()),
                interval=self._mean_interval(values, patients[name]),
                floor=floor_of(splits, column),
                better="higher",
                warning=_random_weights(self.extractor),
                details={"k": NEIGHBOURS},
            )
            yield replace(record, n_real=len(real.features), n_synthetic=len(drawn.features))

    def _mean_interval(
        self, values: Float64[np.ndarray, " n"], patients: Shaped[np.ndarray, " n"]
    ) -> tuple[float, float] | None:
        """Interval of a mean over images, given the other side's neighbourhoods."""

        def mean(weights: Shaped[np.ndarray, " n"]) -> float:
            return float((weights * values).sum() / weights.sum())

        settings = self.settings
        return percentile_interval(replicate(mean, [patients], settings.bootstrap, settings.seed))


def _at_most(sample: Sample, number: int, generator: np.random.Generator) -> Sample:
    """Random images of a sample, in its order; all where there are no more."""
    rows = np.sort(generator.permutation(len(sample.patients))[:number])
    return Sample(sample.features[torch.from_numpy(rows)], sample.patients[rows])


def _frechet(real: Float32[Tensor, "n f"], other: Float32[Tensor, "m f"]) -> list[float]:
    return [frechet(moments(real), moments(other))]


def _fid_infinity(real: Float32[Tensor, "n f"], other: Float32[Tensor, "m f"]) -> list[float]:
    found = fid_infinity(real, other, points=FEWEST_POINTS, seed=0)
    return [float("nan") if found is None else found.value]


def _kid(real: Float32[Tensor, "n f"], other: Float32[Tensor, "m f"]) -> list[float]:
    return [kid(real, other, subsets=10).mean]


def _prdc(real: Float32[Tensor, "n f"], other: Float32[Tensor, "m f"]) -> list[float]:
    if len(real) <= NEIGHBOURS:
        return [float("nan")] * len(Prdc._fields)
    at_most = slice(MAX_NEIGHBOURS)
    return [float(_numbers(part).mean()) for part in prdc(real[at_most], other[at_most])]


def _numbers(values: Float[Tensor, " n"] | Bool[Tensor, " n"]) -> Float64[np.ndarray, " n"]:
    return values.double().cpu().numpy()


def _random_weights(extractor: Extractor) -> str | None:
    if extractor.name != "fixed":
        return None
    return "the extractor has random weights and serves smoke tests only"


def _warning(record: Record, extractor: Extractor) -> str | None:
    reasons = []
    if min(record.n_real, record.n_synthetic) <= extractor.num_features:
        reasons.append(
            "no more images than features on one side, so the covariance is singular and the value "
            "biased upward: compare it only with the floor at equal n"
        )
    floor = record.floor
    if floor is None:
        reasons.append("too few real patients or images for two halves, so there is no floor")
    elif floor.at_n is not None and floor.at_n < TOO_CLOSE * floor.value:
        reasons.append(
            "the synthetic images are much closer to the real ones than real patients are to each "
            "other, as copies of training images would be"
        )
    return "; ".join([*reasons, *filter(None, [_random_weights(extractor)])]) or None
