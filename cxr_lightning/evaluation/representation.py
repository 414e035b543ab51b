"""The representation axis: do reconstructions of held-out images keep their meaning?"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int, Shaped, UInt8
from torch import Tensor

from cxr_lightning.data.transforms import to_image, to_model
from cxr_lightning.data.vocabulary import HealthCondition
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.evaluation.inputs import (
    EvaluationInputs,
    RealSplit,
    ScoreEncoder,
    subgroups,
)
from cxr_lightning.evaluation.records import AxisResult, Floor, Record
from cxr_lightning.losses.representation import embedding_distance
from cxr_lightning.metrics.bootstrap import percentile_interval, replicate
from cxr_lightning.metrics.representation_score import (
    MEANINGS,
    embed,
    embedding_l1,
    floor_pairs,
    other_patients,
)
from cxr_lightning.networks.encoder import Encoder
from cxr_lightning.progress import progress_bar

AXIS = "representation"
GRID_IMAGES = 8
FEW_PATIENTS = 16

OF_THE_VIEW = "rrs_ceil_view"
"""A ceiling that the view does not raise: of another patient as `rrs_ceil_same` chooses, many have
another view where a condition mixes them, which makes any reconstruction look near."""

MEANING = MEANINGS | {
    OF_THE_VIEW: "original against another patient of the same condition and view"
}

Rows = Int[np.ndarray, " _"]
Raw = UInt8[np.ndarray, "_ h w"]


def representation(inputs: EvaluationInputs) -> AxisResult:
    """Reconstructed representation score on held-out images, with its calibration.

    By each encoder, from the same images: one that the generator was not fine-tuned with says more.
    """
    result = AxisResult()
    if not inputs.encoders:
        result.skip(AXIS, "all", "it needs --encoder")
        return result
    if inputs.generator is None:
        reason = "it needs --generator, since the product that made the images was not found"
        result.skip(AXIS, "all", reason)
        return result
    if not inputs.conditions:
        result.skip(AXIS, "all", "the synthetic set has no labels, so no condition is named")
    for condition in inputs.conditions:
        split = _held_out(inputs)
        rows = inputs.real_rows(condition, split)
        if len(rows) == 0:
            reason = f"no real image of this condition in the held-out split ({split})"
            result.skip(AXIS, "rrs", reason, condition.name)
            continue
        generator = np.random.default_rng(inputs.settings.seed)
        chosen = generator.permutation(rows)[: inputs.settings.reconstructions]
        chosen.sort()
        print(f"rrs of {condition.name}: {len(chosen)} of {len(rows)} held-out images")
        images = _Images(inputs, inputs.generator, condition, chosen)
        for encoder in inputs.encoders:
            result.records += _records(inputs, encoder, condition, images.score(encoder.network))
        result.grids[f"{condition.name}_original"] = images.original[:GRID_IMAGES]
        result.grids[f"{condition.name}_reconstruction"] = images.reconstruction[:GRID_IMAGES]
    return result


def _held_out(inputs: EvaluationInputs) -> RealSplit:
    """The test split, by which no training is stopped; the validation split without one."""
    return "test" if len(inputs.split_rows("test")) else "valid"


class _Scores(NamedTuple):
    """1 - cos of each held-out image against something, by metric; L1 a dimension of `rrs`."""

    distances: dict[str, Float64[np.ndarray, " n"]]
    l1: Float64[np.ndarray, " n"]
    patients: Shaped[np.ndarray, " n"]
    subgroups: dict[str, Rows]


class _Images:
    """Held-out images of one condition, and what each is compared with, raw."""

    def __init__(
        self,
        inputs: EvaluationInputs,
        generator: Generator,
        condition: HealthCondition,
        rows: Rows,
    ) -> None:
        self.inputs = inputs
        self.generator = generator
        self.condition = condition
        self.patients = inputs.real_patients[rows]
        self.subgroups = subgroups(inputs.real.table.iloc[rows])
        self.original: Raw = np.array(inputs.real.images[rows])
        (self.reconstruction,) = self._in_batches(self._reconstruct, rows, "rrs")
        (autoencoded,) = self._in_batches(
            lambda part: [generator.autoencode(self._model_form(part))], rows, "rrs_vae"
        )
        self.pairs: dict[str, tuple[Raw, Raw]] = {
            "rrs": (self.original, self.reconstruction),
            **self._floors(rows),
            "rrs_vae": (self.original, autoencoded),
            **self._other_patients(rows),
        }

    def score(self, encoder: Encoder) -> _Scores:
        """Distances by an encoder."""
        original = self._embed(encoder, self.original)
        distances = {}
        for name, (one, other) in self.pairs.items():
            left = original if one is self.original else self._embed(encoder, one)
            right = self._embed(encoder, other)
            distances[name] = embedding_distance(left, right).double().cpu().numpy()
            if name == "rrs":
                l1 = embedding_l1(left, right).double().cpu().numpy()
        return _Scores(distances, l1, self.patients, self.subgroups)

    def _floors(self, rows: Rows) -> dict[str, tuple[Raw, Raw]]:
        """The two floors; an image that is the original itself is embedded once."""

        def make(part: Rows) -> list[Float[Tensor, "b 1 h w"]]:
            index, seed = torch.from_numpy(part), self.inputs.settings.seed
            pairs = floor_pairs(self._model_form(part), index, seed)
            return [pairs["rrs_floor_pixel"][1], *pairs["rrs_floor_augment"]]

        round_trip, first, second = self._in_batches(make, rows, "floors")
        return {
            "rrs_floor_pixel": (self.original, round_trip),
            "rrs_floor_augment": (first, second),
        }

    def _other_patients(self, rows: Rows) -> dict[str, tuple[Raw, Raw]]:
        """An image of another patient for each row; a ceiling is left out where there is none."""
        same = self.inputs.real_rows(self.condition, _held_out(self.inputs))
        pools = {
            "rrs_ceil_same": same,
            "rrs_ceil_random": self.inputs.split_rows(_held_out(self.inputs)),
        }
        views = self.inputs.real.table["AP/PA"].to_numpy(dtype=str)
        if len(np.unique(views[same])) > 1:
            pools[OF_THE_VIEW] = same
        patients = self.inputs.real_patients
        found = {}
        for name, pool in pools.items():
            generator = np.random.default_rng(self.inputs.settings.seed)
            kinds = (views[rows], views[pool]) if name == OF_THE_VIEW else ()
            other = other_patients(patients[rows], patients[pool], generator, *kinds)
            if other is not None:
                found[name] = (self.original, np.array(self.inputs.real.images[pool[other]]))
        return found

    def _reconstruct(self, rows: Rows) -> list[Float[Tensor, "b 1 h w"]]:
        image = self._model_form(rows)
        condition = self.condition.request(len(rows)).to(image.device)
        index = torch.from_numpy(rows).to(image.device)
        seed, sampling = self.inputs.settings.seed, self.generator.choose_sampling()
        return [self.generator.reconstruct(image, condition, index, sampling, seed=seed)]

    def _model_form(self, rows: Rows) -> Float[Tensor, "b 1 h w"]:
        return _to_model(np.array(self.inputs.real.images[rows]), self.inputs.device)

    @torch.no_grad()
    def _in_batches(
        self, make: Callable[[Rows], list[Float[Tensor, "b 1 h w"]]], rows: Rows, title: str
    ) -> list[Raw]:
        """Raw images that a step makes of the images in some rows, by its position."""
        size = self.inputs.settings.batch_size
        batches = np.array_split(rows, range(size, len(rows), size))
        parts = [
            [to_image(made)[:, 0].cpu().numpy() for made in make(batch)]
            for batch in progress_bar(batches, title)
        ]
        return [np.concatenate(images) for images in zip(*parts, strict=True)]

    def _embed(self, encoder: Encoder, raw: Raw) -> Float32[Tensor, "n d"]:
        size, device = self.inputs.settings.batch_size, self.inputs.device
        batches = np.array_split(raw, range(size, len(raw), size))
        return torch.cat([embed(encoder, _to_model(batch, device)) for batch in batches])


def _to_model(raw: UInt8[np.ndarray, "b h w"], device: torch.device) -> Float[Tensor, "b 1 h w"]:
    return to_model(torch.from_numpy(raw[:, None]).to(device))


def _records(
    inputs: EvaluationInputs, encoder: ScoreEncoder, condition: HealthCondition, scores: _Scores
) -> list[Record]:
    """The score and its calibration with intervals over patients, and the score by subgroup."""
    record = partial(_record, inputs, encoder, condition, scores)
    everything = np.arange(len(scores.patients))
    names = [*scores.distances]
    same = scores.distances.get("rrs_ceil_same")
    if same is not None and same.sum() > 0:
        names.append("nrrs")
    records = {name: record(name, everything) for name in names}
    floor = records["rrs_floor_pixel"]
    pixel = Floor.around(floor.value, floor.interval, MEANING["rrs_floor_pixel"])
    records["rrs"] = replace(
        records["rrs"],
        floor=pixel,
        details=records["rrs"].details | _protocol(inputs, scores),
    )
    parts = {k: rows for k, rows in scores.subgroups.items() if 2 <= len(rows) < len(everything)}
    of_parts = [
        replace(record(name, rows), subgroup=part)
        for part, rows in parts.items()
        for name in ("rrs", "nrrs")
        if name in records
    ]
    return [*records.values(), *of_parts]


def _record(
    inputs: EvaluationInputs,
    encoder: ScoreEncoder,
    condition: HealthCondition,
    scores: _Scores,
    name: str,
    rows: Rows,
) -> Record:
    """A mean over some of the images, or for `nrrs` a ratio of two."""
    above = scores.distances["rrs" if name == "nrrs" else name][rows]
    below = scores.distances["rrs_ceil_same"][rows] if name == "nrrs" else np.ones(len(rows))
    settings, patients = inputs.settings, scores.patients[rows]
    statistic = partial(_ratio, above, below)
    replicates = replicate(statistic, [patients], settings.bootstrap, settings.seed)
    warned = name in ("rrs", "nrrs")
    return Record(
        AXIS,
        name,
        _ratio(above, below, np.ones(len(rows))),
        condition=condition.name,
        interval=percentile_interval(replicates),
        n_real=len(rows),
        n_synthetic=len(rows) if warned or name == "rrs_vae" else 0,
        source=encoder.source,
        warning=_warning(encoder, patients, len(inputs.encoders) > 1) if warned else None,
        details={"meaning": MEANING[name]},
    )


def _ratio(
    numerator: Float64[np.ndarray, " n"],
    denominator: Float64[np.ndarray, " n"],
    weights: Shaped[np.ndarray, " n"],
) -> float:
    return float((weights * numerator).sum() / (weights * denominator).sum())


def _protocol(inputs: EvaluationInputs, scores: _Scores) -> dict[str, Any]:
    assert inputs.generator is not None
    sampling = inputs.generator.choose_sampling()
    return {
        "median": float(np.median(scores.distances["rrs"])),
        "l1_per_dimension": float(scores.l1.mean()),
        "split": _held_out(inputs),
        "sampler": sampling.sampler,
        "steps": sampling.steps,
        "spacing": sampling.spacing,
    }


def _warning(
    encoder: ScoreEncoder, patients: Shaped[np.ndarray, " n"], has_held_out: bool
) -> str | None:
    reasons = []
    count = len(np.unique(patients))
    if count < FEW_PATIENTS:
        reasons.append(f"only {len(patients)} held-out images of {count} patients")
    if encoder.in_loss:
        remedy = "read that of the held-out encoder" if has_held_out else "give --encoder_held_out"
        reasons.append(
            "the generator was fine-tuned with this very encoder, so the score flatters it: "
            + remedy
        )
    return "; ".join(reasons) or None
