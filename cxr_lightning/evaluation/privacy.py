"""The privacy axis: are synthetic images copies of training images?

Each number is set beside what real images of held-out patients reach in the place of synthetic
ones: those resemble training images without copying any. The pixels and each network are a space of
their own, since an alteration that hides a copy from one may not hide it from another.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, Shaped, UInt8
from torch import Tensor, nn
from tqdm import tqdm

from cxr_lightning.errors import UserError
from cxr_lightning.evaluation.inputs import EvaluationInputs, source_of, subgroups
from cxr_lightning.evaluation.records import AxisResult, Better, Floor, Record, Source
from cxr_lightning.files import sha256_file
from cxr_lightning.metrics.bootstrap import percentile_interval, replicate
from cxr_lightning.metrics.extractors import Extractor, pixel_extractor
from cxr_lightning.metrics.memorization import (
    MIN_CELL_IMAGES,
    NEIGHBOURHOOD,
    Space,
    Threshold,
    closer_to_train,
    closer_to_train_by_chance,
    copy_threshold,
    data_copying,
    false_positive_range,
    measure_space,
)
from cxr_lightning.metrics.neighbours import nearest

AXIS = "privacy"
FEW_IMAGES = 50
PAIRS = 8
BINS = 30
CANDIDATES = 10
"""Nearest training images that the re-identification model compares an image with."""

MEANINGS = {
    "nearest_train": "median distance to the nearest training image",
    "nearest_held_out": "median distance to the nearest held-out image",
    "closer_to_train": "chance that the nearest real image is a training image, at equal numbers "
    "of training and held-out images; 0.5 = nothing memorised",
    "authenticity": "share of images farther from their nearest training image than that is from "
    "its nearest one of another patient; blur lowers it too",
    "data_copying": "C_T, a z of the distances to the training images against those of held-out "
    "images; negative = nearer, which blur makes them too",
    "copy_rate": "share flagged by the distance to the nearest training image",
    "copy_rate_relative": "share flagged by the distance to the nearest training image over the "
    f"mean distance to the next {NEIGHBOURHOOD - 1} of other patients",
    "copied_images": "training images nearest to an image that copy_rate_relative flags",
    "copied_patients": "patients of the training images nearest to an image that "
    "copy_rate_relative flags",
    "reid_score": f"mean of the highest same-patient score with the {CANDIDATES} nearest training "
    "images",
    "reid_rate": f"share flagged by the highest same-patient score with the {CANDIDATES} nearest "
    "training images",
}


def privacy(inputs: EvaluationInputs) -> AxisResult:
    """Distances to the training images, and how many of them, and who, are copied."""
    result = AxisResult()
    split = _split(inputs)
    for name, rows in (("training", split.train), ("held-out", split.held_out)):
        patients = len(np.unique(split.patient[rows]))
        if patients < 2:
            reason = f"the prepared set has images of {patients} {name} patients; 2 are needed"
            result.skip(AXIS, "all", reason)
            return result
    file = inputs.reidentification
    model = None if file is None else load_reidentification(file, inputs.device)
    several = len(inputs.extractors) > 1
    networks = [e for e in inputs.extractors if e.name != "fixed" or not several]
    extractors = [pixel_extractor(inputs.real.size), *networks]
    for number, extractor in enumerate(extractors):
        print(
            f"privacy by {extractor.name}: {len(inputs.synthetic.images)} synthetic, "
            f"{len(split.train)} training, {len(split.held_out)} held-out images"
        )
        space = _measure(inputs, split, extractor)
        _add_records(result, _Recorder(inputs, split, source_of(extractor)), space)
        result.curves.setdefault("nearest", {})[extractor.name] = _histograms(space)
        if number < 2:
            _add_pairs(result, inputs, split, extractor.name, space)
    if model is not None:
        result.records += _reidentified(inputs, split, extractors[:2][-1], model)
    return result


@dataclass(frozen=True)
class _Split:
    """Who was there to be copied, and who was not.

    Attributes:
        train: Rows of the prepared table.
        held_out: Rows of the prepared table, of none of the training patients.
        patient: Number of the patient of each row.
        leaked: Held-out images that were left out since their patients are in training too.
    """

    train: Int[np.ndarray, " t"]
    held_out: Int[np.ndarray, " h"]
    patient: Int[np.ndarray, " n"]
    leaked: int


def _split(inputs: EvaluationInputs) -> _Split:
    patient = np.unique(inputs.real_patients, return_inverse=True)[1].astype(np.int64)
    train, held_out = inputs.split_rows("train"), inputs.split_rows("held_out")
    known = np.isin(patient[held_out], patient[train])
    return _Split(train, held_out[~known], patient, int(known.sum()))


def _features(
    inputs: EvaluationInputs, split: _Split, extractor: Extractor
) -> tuple[Float32[Tensor, "m f"], Float32[Tensor, "t f"], Float32[Tensor, "h f"]]:
    """Features of the synthetic, the training and the held-out images."""
    everything = np.arange(len(inputs.synthetic.images))
    return (
        inputs.synthetic_features(extractor, everything),
        inputs.real_features(extractor, split.train),
        inputs.real_features(extractor, split.held_out),
    )


def _measure(inputs: EvaluationInputs, split: _Split, extractor: Extractor) -> Space:
    synthetic, train, held_out = _features(inputs, split, extractor)
    patient = torch.from_numpy(split.patient)
    return measure_space(
        synthetic,
        train,
        held_out,
        patient[split.train].to(train.device),
        patient[split.held_out].to(train.device),
        inputs.settings.false_positives,
        inputs.settings.seed,
        progress=f"{extractor.name}: nearest training images",
    )


Estimate = tuple[float, tuple[float, float] | None]
"""A number and its 95 % interval."""

Columns = tuple[Shaped[np.ndarray, " _"], ...]
"""What is known of each image of a sample."""

Patients = Shaped[np.ndarray, " _"]
"""Patient of each image of a sample."""


class _Recorder:
    """Makes records of numbers from one source, with their intervals, floors and warnings.

    Args:
        inputs: The evaluation's.
        split: Its real images.
        source: What the numbers come from.
    """

    def __init__(self, inputs: EvaluationInputs, split: _Split, source: Source) -> None:
        self.inputs = inputs
        self.split = split
        self.source = source
        self.synthetic = inputs.synthetic.patients
        self.held_out = inputs.real_patients[split.held_out]
        self.held_out_patients = len(np.unique(self.held_out))
        self.facts = {
            "train_images": len(split.train),
            "train_patients": len(np.unique(split.patient[split.train])),
            "held_out_images": len(split.held_out),
            "held_out_patients": self.held_out_patients,
        }
        self.warnings = [*_warnings(len(self.synthetic), split, source)]

    def record(
        self,
        metric: str,
        estimate: Estimate,
        floor: Floor | None = None,
        better: Better | None = None,
        details: dict[str, Any] | None = None,
        warning: str = "",
        **fields: Any,
    ) -> Record:
        """A record with what all records of this axis say."""
        common: dict[str, Any] = {
            "n_real": len(self.split.train) + len(self.split.held_out),
            "n_synthetic": len(self.synthetic),
            "source": self.source,
            "warning": "; ".join(filter(None, [*self.warnings, warning])) or None,
            "details": {"meaning": MEANINGS[metric], **self.facts, **(details or {})},
        }
        value, interval = estimate
        made = {"interval": interval, "floor": floor, "better": better}
        return Record(AXIS, metric, value, **(common | made | fields))

    def compare(
        self,
        metric: str,
        statistic: Callable[..., Any],
        synthetic: Columns,
        held_out: Columns,
        better: Better | None,
        **fields: Any,
    ) -> Record:
        """A statistic of synthetic images; its floor is that of held-out images in their place."""
        value, interval = self.estimate(statistic, (held_out, self.held_out))
        low, high = interval or (value, value)
        floor = Floor(value, low, high, meaning="held-out images in the place of synthetic ones")
        found = self.estimate(statistic, (synthetic, self.synthetic))
        return self.record(metric, found, floor, better, **fields)

    def rate(
        self,
        metric: str,
        threshold: Threshold,
        flagged: Bool[np.ndarray, " m"],
        rows: Int[np.ndarray, " k"],
        **fields: Any,
    ) -> Record:
        """Share of some rows that is flagged.

        How sure the threshold is stands in the floor's range, not in the interval.
        """
        values = flagged[rows].astype(float)
        low, high = false_positive_range(threshold, self.held_out_patients)
        share = threshold.false_positive_rate
        floor = Floor(share, low, high, meaning="share of real images of new patients it flags")
        return self.record(
            metric,
            self.estimate(np.mean, ((values,), self.synthetic[rows])),
            floor,
            "lower",
            {**threshold.facts(), "flagged": int(values.sum())},
            self.threshold_warning(threshold),
            n_synthetic=len(rows),
            **fields,
        )

    def count(
        self,
        metric: str,
        threshold: Threshold,
        flagged: Bool[np.ndarray, " m"],
        copied: Int[np.ndarray, " m"],
    ) -> Record:
        """Number of those whom flagged images copy; the floor is that all flags are false.

        The interval is that of the number of flagged images, at as many of them on each one copied:
        draws with repetition would hold too few distinct ones.
        """
        value, n = len(np.unique(copied[flagged])), len(flagged)
        images, interval = self.estimate(np.sum, ((flagged,), self.synthetic))
        if interval is not None and images:
            interval = interval[0] * value / images, interval[1] * value / images
        low, high = false_positive_range(threshold, self.held_out_patients)
        meaning = "as many images if all were real and of new patients"
        floor = Floor(n * threshold.false_positive_rate, n * low, n * high, meaning=meaning)
        warning, facts = self.threshold_warning(threshold), threshold.facts()
        return self.record(metric, (float(value), interval), floor, "lower", facts, warning)

    def estimate(
        self, statistic: Callable[..., Any], *samples: tuple[Columns, Patients]
    ) -> Estimate:
        """A statistic of the columns of all samples, with its interval over their patients."""

        def resampled(*weights: Int[np.ndarray, " _"]) -> float:
            rows = [np.repeat(np.arange(len(weight)), weight) for weight in weights]
            pairs = zip(samples, rows, strict=True)
            return float(statistic(*(column[row] for (part, _), row in pairs for column in part)))

        settings = self.inputs.settings
        patients = [part for _, part in samples]
        replicates = replicate(resampled, patients, settings.bootstrap, settings.seed)
        value = float(statistic(*(column for part, _ in samples for column in part)))
        return value, percentile_interval(replicates)

    def threshold_warning(self, threshold: Threshold) -> str:
        """Why the threshold needs care."""
        wanted, reached = self.inputs.settings.false_positives, threshold.false_positive_rate
        if threshold.value == 0.0:
            return "held-out images equal training images, so that no copy can be told from them"
        if reached > wanted + 1e-9:
            return (
                f"{threshold.n} held-out images allow no less than {reached:.1%} false positives "
                f"instead of {wanted:.1%}"
            )
        return ""


def _warnings(synthetic: int, split: _Split, source: Source) -> Iterator[str]:
    for name, count in (("held-out", len(split.held_out)), ("synthetic", synthetic)):
        if count < FEW_IMAGES:
            yield f"only {count} {name} images"
    if split.leaked:
        yield f"{split.leaked} held-out images left out, whose patients are in training too"
    if source.name == "fixed":
        yield "the extractor has random weights and serves smoke tests only"


def _add_records(result: AxisResult, make: _Recorder, space: Space) -> None:
    """Adds the records of one space."""
    synthetic, held_out = space.synthetic, space.held_out
    unit = "of the grey range" if make.source.name == "pixels" else ""
    near = (synthetic.train.distance,), (held_out.train.distance,)
    to_held_out = (synthetic.to_held_out,), (held_out.to_held_out,)
    is_authentic = (synthetic.authentic,), (held_out.authentic,)
    near_copies = space.absolute.flags(synthetic.train.distance)
    everything = np.arange(len(near_copies))
    relative = partial(make.rate, "copy_rate_relative", space.relative, space.copies)
    result.records += [
        make.compare("nearest_train", np.median, *near, None, unit=unit),
        make.compare("nearest_held_out", np.median, *to_held_out, None, unit=unit),
        _closer_to_train(make, space),
        make.compare("authenticity", np.mean, *is_authentic, "higher"),
        make.rate("copy_rate", space.absolute, near_copies, everything),
        relative(everything),
        *_copied(make, space),
    ]
    for condition in make.inputs.conditions:
        rows = np.flatnonzero(make.inputs.synthetic.matches(condition))
        if len(rows):
            result.records.append(relative(rows, condition=condition.name))
    copying = _data_copying(make, space)
    if copying is not None:
        result.records.append(copying)
        return
    reason = f"in {make.source.name} no cell has {MIN_CELL_IMAGES} synthetic and held-out images"
    result.skip(AXIS, "data_copying", reason)


def _closer_to_train(make: _Recorder, space: Space) -> Record:
    """The floor is what it would be, had other patients been held out at random."""
    patient, split, images = make.split.patient, make.split, space.synthetic
    train = images.train.distance < images.to_held_out
    rows = split.train[images.train.index], split.held_out[images.held_out]
    chance = closer_to_train_by_chance(
        patient[np.where(train, *rows)],
        patient[split.train],
        patient[split.held_out],
        make.inputs.settings.seed,
    )
    low, high = np.quantile(chance, [0.025, 0.975]).tolist()
    floor = Floor(0.5, low, high, meaning="95 % range, had other patients been held out")
    _, own, sizes = np.unique(make.held_out, return_inverse=True, return_counts=True)
    statistic = partial(closer_to_train, train=len(split.train))
    columns = images.train.distance, images.to_held_out, np.full(len(train), float(len(own)))
    found = make.estimate(statistic, (columns, make.synthetic))
    left_out = space.held_out
    others = len(own) - sizes[own].astype(float)
    real = statistic(left_out.train.distance, left_out.to_held_out, others)
    warning = "" if low <= real <= high else "held-out images lie apart from training images"
    details = {"of_held_out_images": real}
    return make.record("closer_to_train", found, floor, "lower", details, warning)


def _data_copying(make: _Recorder, space: Space) -> Record | None:
    """The floor's range is that of independent images that copy nothing."""
    sets = (space.synthetic, make.synthetic), (space.held_out, make.held_out)
    samples = [((found.train.distance, found.cell), patients) for found, patients in sets]
    whole = data_copying(*samples[0][0], *samples[1][0])
    if whole is None:
        return None

    def statistic(*columns: Shaped[np.ndarray, " _"]) -> float:
        found = data_copying(*columns)
        return float("nan") if found is None else found.value

    reach = 1.96 * whole.error
    floor = Floor(0.0, -reach, reach, meaning="95 % range where nothing is copied")
    details = {"cells": whole.cells, "held_out_share_in_cells": whole.share}
    found = make.estimate(statistic, *samples)
    return make.record("data_copying", found, floor, "higher", details)


def _copied(make: _Recorder, space: Space) -> Iterator[Record]:
    """How many training images and patients are copied, these also by view, sex and age band."""
    row = make.split.train[space.synthetic.train.index]
    patient = make.split.patient
    yield make.count("copied_images", space.relative, space.copies, row)
    yield make.count("copied_patients", space.relative, space.copies, patient[row])
    for name, rows in subgroups(make.inputs.real.table).items():
        group = np.intersect1d(rows, make.split.train)
        if len(group):
            record = make.count(
                "copied_patients", space.relative, space.copies & np.isin(row, group), patient[row]
            )
            facts = record.details | {"subgroup_train_patients": len(np.unique(patient[group]))}
            yield replace(record, subgroup=name, floor=None, better=None, details=facts)


def _histograms(space: Space) -> dict[str, list[float]]:
    """Distances to the nearest training image of both sets, in bins of equal width."""
    parts = {"synthetic_train": space.synthetic, "held_out_train": space.held_out}
    distances = {name: found.train.distance for name, found in parts.items()}
    top = max(float(distance.max()) for distance in distances.values())
    edges = np.linspace(0.0, top or 1.0, BINS + 1)
    counts = {name: np.histogram(d, edges)[0].tolist() for name, d in distances.items()}
    return {"edges": edges.tolist(), **counts}


def _add_pairs(
    result: AxisResult, inputs: EvaluationInputs, split: _Split, name: str, space: Space
) -> None:
    """Adds the closest pairs: synthetic, nearest training and nearest held-out image."""
    real, drawn, found = inputs.real.images, inputs.synthetic, space.synthetic
    for rank, row in enumerate(np.argsort(found.train.relative, kind="stable")[:PAIRS].tolist(), 1):
        picture = f"pair_{name.replace(':', '_')}_{rank}"
        train_row = int(split.train[found.train.index[row]])
        held_out_row = int(split.held_out[found.held_out[row]])
        panels = [drawn.images[row], real[train_row], real[held_out_row]]
        result.grids[picture] = np.stack(panels)
        result.pairs.append(
            {
                "picture": picture,
                "space": name,
                "rank": rank,
                "condition": None if drawn.requested is None else str(drawn.requested[row]),
                "synthetic": str(drawn.table["Path"].iloc[row]),
                "train_row": train_row,
                "distance_train": float(found.train.distance[row]),
                "distance_held_out": float(found.to_held_out[row]),
                "relative": float(found.train.relative[row]),
                "flagged": bool(space.copies[row]),
            }
        )


@dataclass(frozen=True)
class Reidentification:
    """A network that says whether two images show the same patient.

    Attributes:
        path: Its file.
        network: From two batches of images (b, 1, h, w), float32 in [0, 1], to the probability of
            the same patient, (b,) or (b, 1).
        device: Where it runs.
    """

    path: Path
    network: nn.Module
    device: torch.device

    @torch.no_grad()
    def scores(
        self, first: UInt8[np.ndarray, "b h w"], second: UInt8[np.ndarray, "b h w"]
    ) -> Float[Tensor, " b"]:
        """The score of each pair.

        Raises:
            UserError: If the network fails, or does not bring one finite number a pair.
        """
        one, other = (
            torch.from_numpy(np.array(raw)[:, None]).to(self.device).float() / 255
            for raw in (first, second)
        )
        try:
            scores = self.network(one, other)
        except RuntimeError as error:
            raise UserError(
                f"reidentification: {self.path} fails on two images of {tuple(first.shape[1:])} "
                f"pixels ({error}); let the network take images (b, 1, h, w) of that size."
            ) from error
        fits = isinstance(scores, Tensor) and scores.shape in ((len(first),), (len(first), 1))
        if not fits or not bool(scores.isfinite().all()):
            raise UserError(
                f"reidentification: {self.path} does not bring one finite number a pair; let it "
                "return the probability of the same patient, (b,) or (b, 1)."
            )
        return scores.flatten()


def load_reidentification(path: Path, device: torch.device) -> Reidentification:
    """Loads a re-identification network from a TorchScript file.

    Raises:
        UserError: If the file cannot be loaded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates TorchScript, but reads it
            network = torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"reidentification: {path} is no TorchScript file; save the network with "
            "torch.jit.trace(network, (image, image)).save(FILE)."
        ) from error
    return Reidentification(path, network, device)


def _reidentified(
    inputs: EvaluationInputs, split: _Split, extractor: Extractor, model: Reidentification
) -> Iterator[Record]:
    """Records of the highest score of each image with its nearest training images."""
    synthetic, train, held_out = _features(inputs, split, extractor)
    k = min(CANDIDATES, len(train))

    def highest(
        images: UInt8[np.ndarray, "n h w"],
        rows: Int[np.ndarray, " m"],
        features: Float32[Tensor, "m f"],
    ) -> Float64[np.ndarray, " m"]:
        near = split.train[nearest(features, train, k).index.cpu().numpy()]
        size = max(inputs.settings.batch_size // k, 1)
        found = []
        for start in tqdm(range(0, len(rows), size), model.path.name, disable=None):
            batch = slice(start, start + size)
            first = images[np.repeat(rows[batch], k)]
            scores = model.scores(first, inputs.real.images[near[batch].flatten()])
            found.append(scores.view(-1, k).amax(1))
        return torch.cat(found).double().cpu().numpy()

    everything = np.arange(len(synthetic))
    drawn = highest(inputs.synthetic.images, everything, synthetic)
    real = highest(inputs.real.images, split.held_out, held_out)
    threshold = copy_threshold(-real, inputs.settings.false_positives)
    preprocessing = f"grey in [0, 1]; candidates: the {k} nearest by {extractor.name}"
    source = Source(model.path.name, sha256_file(model.path), preprocessing)
    make = _Recorder(inputs, split, source)
    yield make.compare("reid_score", np.mean, (drawn,), (real,), "lower")
    yield make.rate("reid_rate", threshold, threshold.flags(-drawn), everything)
