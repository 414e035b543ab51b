"""The privacy axis: are synthetic images copies of training images?

Each number is set beside what real images of held-out patients reach in the place of synthetic
ones: those resemble training images without copying any. The pixels and each network are a space of
their own, since an alteration that hides a copy from one may not hide it from another.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int, Shaped, UInt8
from scipy.stats import betabinom
from torch import Tensor

from cxr_lightning.evaluation.inputs import EvaluationInputs, source_of, subgroups
from cxr_lightning.evaluation.privacy_records import AXIS, CANDIDATES, Recorder, Split
from cxr_lightning.evaluation.records import AxisResult, Floor, Record, Source
from cxr_lightning.evaluation.reidentification import Reidentification, load_reidentification
from cxr_lightning.files import sha256_file
from cxr_lightning.metrics.data_copying import MIN_CELL_IMAGES, data_copying
from cxr_lightning.metrics.extractors import Extractor, pixel_extractor
from cxr_lightning.metrics.memorization import (
    Space,
    closer_to_train,
    closer_to_train_by_chance,
    copy_threshold,
    measure_space,
)
from cxr_lightning.metrics.neighbours import nearest
from cxr_lightning.progress import progress_bar

PAIRS = 8
ROUNDING = 1 / 255
"""Root mean square of the difference, of the grey range, up to which images are the same."""

BINS = 30


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
        _add_records(result, Recorder(inputs, split, source_of(extractor)), space)
        result.curves.setdefault("nearest", {})[extractor.name] = _histograms(space)
        if number < 2:
            _add_pairs(result, inputs, split, extractor.name, space)
    if model is not None:
        result.records += _reidentified(inputs, split, extractors[:2][-1], model)
    return result


def _split(inputs: EvaluationInputs) -> Split:
    patient = np.unique(inputs.real_patients, return_inverse=True)[1].astype(np.int64)
    return Split(inputs.split_rows("train"), inputs.split_rows("held_out"), patient)


def _features(
    inputs: EvaluationInputs, split: Split, extractor: Extractor
) -> tuple[Float32[Tensor, "m f"], Float32[Tensor, "t f"], Float32[Tensor, "h f"]]:
    """Features of the synthetic, the training and the held-out images."""
    everything = np.arange(len(inputs.synthetic.images))
    return (
        inputs.synthetic_features(extractor, everything),
        inputs.real_features(extractor, split.train),
        inputs.real_features(extractor, split.held_out),
    )


def _measure(inputs: EvaluationInputs, split: Split, extractor: Extractor) -> Space:
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
        progress=extractor.name,
    )


def _add_records(result: AxisResult, make: Recorder, space: Space) -> None:
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
        _nearer_than_any(make, space),
        *_copied(make, space),
    ]
    if make.source.name == "pixels":
        result.records.append(_exact_copies(make, space))
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


def _closer_to_train(make: Recorder, space: Space) -> Record:
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
    meaning = "95 % range, had other patients been held out"
    floor = Floor(0.5, low, high, meaning=meaning, is_null=True)
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


def _nearer_than_any(make: Recorder, space: Space) -> Record:
    """How many images lie relatively nearer to a training image than every held-out one.

    The floor is what chance gives: the share p of new images below the least of h independent ones
    follows Beta(1, h), so their number among m is beta-binomial. Each held-out patient counts once.
    """
    limit = float(space.held_out.train.relative.min())
    images = len(space.synthetic.train.relative)
    chance = betabinom(images, 1, make.held_out_patients)
    high = float(chance.ppf(0.975))
    meaning = "95 % range, were the images of new patients"
    floor = Floor(float(chance.mean()), 0.0, high, meaning=meaning, is_null=True)
    count = float((space.synthetic.train.relative < limit).sum())
    return make.record("nearer_than_any", (count, None), floor, "lower", {"limit": limit})


def _exact_copies(make: Recorder, space: Space) -> Record:
    """How many images are a training image, within rounding; no real image of a new patient is."""
    found = int((space.synthetic.train.distance <= ROUNDING).sum())
    held_out = float((space.held_out.train.distance <= ROUNDING).mean())
    expected = held_out * len(space.synthetic.train.distance)
    meaning = "as many images if they were held-out ones"
    floor = Floor(expected, expected, expected, meaning=meaning)
    return make.record("exact_copies", (float(found), None), floor, "lower")


def _data_copying(make: Recorder, space: Space) -> Record | None:
    """The floor's range is that of sets that copy nothing.

    That of independent images, or, where images of a patient are alike, of the patients drawn.
    """
    sets = (space.synthetic, make.synthetic), (space.held_out, make.held_out)
    samples = [((found.train.distance, found.cell), patients) for found, patients in sets]
    whole = data_copying(*samples[0][0], *samples[1][0])
    if whole is None:
        return None

    def statistic(*columns: Shaped[np.ndarray, " _"]) -> float:
        found = data_copying(*columns)
        return float("nan") if found is None else found.value

    found = make.estimate(statistic, *samples)
    low, high = found[1] or (0.0, 0.0)
    reach = max(1.96 * whole.error, (high - low) / 2)
    floor = Floor(0.0, -reach, reach, meaning="95 % range where nothing is copied", is_null=True)
    details = {"cells": whole.cells, "held_out_share_in_cells": whole.share}
    return make.record("data_copying", found, floor, "higher", details)


def _copied(make: Recorder, space: Space) -> Iterator[Record]:
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
    result: AxisResult, inputs: EvaluationInputs, split: Split, name: str, space: Space
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


def _reidentified(
    inputs: EvaluationInputs, split: Split, extractor: Extractor, model: Reidentification
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
        for start in progress_bar(range(0, len(rows), size), model.path.name):
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
    make = Recorder(inputs, split, source)
    yield make.compare("reid_score", np.mean, (drawn,), (real,), "lower")
    shown = {"threshold": -threshold.value}  # of the score, above which an image is flagged
    flagged = threshold.flags(-drawn)
    yield make.rate("reid_rate", threshold, flagged, everything, least=-1.0, details=shown)
