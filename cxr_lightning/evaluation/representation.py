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
from cxr_lightning.diffusion.samplers import Sampling
from cxr_lightning.evaluation.inputs import EvaluationInputs, RealSplit
from cxr_lightning.evaluation.records import AxisResult, Floor, Record
from cxr_lightning.metrics.bootstrap import percentile_interval, replicate
from cxr_lightning.metrics.representation_score import (
    embed,
    embedding_distance,
    embedding_l1,
    other_patients,
    resize_round_trip,
)
from cxr_lightning.networks.encoder import Encoder
from cxr_lightning.progress import progress_bar

AXIS = "representation"
HELD_OUT: RealSplit = "valid"
GRID_IMAGES = 8
FEW_PATIENTS = 16
SAMPLING = Sampling("ddim", steps=20)
"""Of reconstructions, unless the generator was tuned to a sampler of its own."""

MEANINGS = {
    "rrs": "original against its reconstruction by autoencoder and denoiser",
    "rrs_floor_pixel": "original against its own resize round trip in 8 bit",
    "rrs_vae": "original against its reconstruction by the autoencoder alone",
    "rrs_ceil_same": "original against another patient of the same condition",
    "rrs_ceil_random": "original against any other patient",
    "nrrs": "rrs / rrs_ceil_same: 1 = no closer than another patient of the condition",
}


def representation(inputs: EvaluationInputs) -> AxisResult:
    """Reconstructed representation score on held-out images, with its calibration."""
    result = AxisResult()
    if inputs.encoder is None or inputs.generator is None:
        result.skip(AXIS, "all", "it needs --generator and --encoder")
        return result
    if not inputs.conditions:
        result.skip(AXIS, "all", "the synthetic set has no labels, so no condition is named")
    for condition in inputs.conditions:
        rows = inputs.real_rows(condition, HELD_OUT)
        if len(rows) == 0:
            reason = f"no real image of this condition in the held-out split ({HELD_OUT})"
            result.skip(AXIS, "rrs", reason, condition.name)
            continue
        generator = np.random.default_rng(inputs.settings.seed)
        chosen = generator.permutation(rows)[: inputs.settings.reconstructions]
        chosen.sort()
        print(f"rrs of {condition.name}: {len(chosen)} of {len(rows)} held-out images")
        scores = _Scorer(inputs, inputs.encoder, inputs.generator, condition).score(chosen)
        result.records += _records(inputs, condition, chosen, scores)
        result.grids[f"{condition.name}_original"] = inputs.real.images[chosen[:GRID_IMAGES]]
        result.grids[f"{condition.name}_reconstruction"] = scores.reconstructions[:GRID_IMAGES]
    return result


class _Scores(NamedTuple):
    """1 - cos of each held-out image against something, by metric; L1 a dimension of `rrs`."""

    distances: dict[str, Float64[np.ndarray, " n"]]
    l1: Float64[np.ndarray, " n"]
    reconstructions: UInt8[np.ndarray, "n h w"]


class _Scorer:
    """Embeds held-out images of one condition, their reconstructions and other patients."""

    def __init__(
        self,
        inputs: EvaluationInputs,
        encoder: Encoder,
        generator: Generator,
        condition: HealthCondition,
    ) -> None:
        self.inputs = inputs
        self.encoder = encoder
        self.generator = generator
        self.condition = condition

    def score(self, rows: Int[np.ndarray, " n"]) -> _Scores:
        """Distances of the images in some rows of the prepared data set."""
        steps = {
            "rrs": self._reconstruct,
            "rrs_floor_pixel": lambda rows: resize_round_trip(self._images(rows)),
            "rrs_vae": lambda rows: self.generator.autoencode(self._images(rows)),
        }
        raw = {name: self._in_batches(step, rows, name) for name, step in steps.items()}
        raw |= self._other_patients(rows)
        original = self._embed(np.array(self.inputs.real.images[rows]))
        embeddings = {name: self._embed(images) for name, images in raw.items()}
        distances = {k: embedding_distance(original, v) for k, v in embeddings.items()}
        return _Scores(
            {k: v.double().cpu().numpy() for k, v in distances.items()},
            embedding_l1(original, embeddings["rrs"]).double().cpu().numpy(),
            raw["rrs"],
        )

    def _other_patients(self, rows: Int[np.ndarray, " n"]) -> dict[str, UInt8[np.ndarray, "n h w"]]:
        """An image of another patient for each row; a ceiling is left out where there is none."""
        pools = {
            "rrs_ceil_same": self.inputs.real_rows(self.condition, HELD_OUT),
            "rrs_ceil_random": self.inputs.split_rows(HELD_OUT),
        }
        patients = self.inputs.real_patients
        found = {}
        for name, pool in pools.items():
            generator = np.random.default_rng(self.inputs.settings.seed)
            other = other_patients(patients[rows], patients[pool], generator)
            if other is not None:
                found[name] = np.array(self.inputs.real.images[pool[other]])
        return found

    def _reconstruct(self, rows: Int[np.ndarray, " b"]) -> Float[Tensor, "b 1 h w"]:
        image = self._images(rows)
        stated = self.condition.request(len(rows))
        condition = type(stated)(*(part.to(image.device) for part in stated))
        index = torch.from_numpy(rows).to(image.device)
        sampling = self.generator.own_sampling or SAMPLING
        return self.generator.reconstruct(
            image, condition, index, sampling, seed=self.inputs.settings.seed
        )

    def _images(self, rows: Int[np.ndarray, " b"]) -> Float[Tensor, "b 1 h w"]:
        return _to_model(np.array(self.inputs.real.images[rows]), self.inputs.device)

    @torch.no_grad()
    def _in_batches(
        self,
        step: Callable[[Int[np.ndarray, " b"]], Float[Tensor, "b 1 h w"]],
        rows: Int[np.ndarray, " n"],
        title: str,
    ) -> UInt8[np.ndarray, "n h w"]:
        """Raw images that a step makes of the images in some rows."""
        size = self.inputs.settings.batch_size
        batches = np.array_split(rows, range(size, len(rows), size))
        parts = [to_image(step(batch)) for batch in progress_bar(batches, title)]
        return torch.cat(parts)[:, 0].cpu().numpy()

    def _embed(self, raw: UInt8[np.ndarray, "n h w"]) -> Float32[Tensor, "n d"]:
        size, device = self.inputs.settings.batch_size, self.inputs.device
        batches = np.array_split(raw, range(size, len(raw), size))
        return torch.cat([embed(self.encoder, _to_model(batch, device)) for batch in batches])


def _to_model(raw: UInt8[np.ndarray, "b h w"], device: torch.device) -> Float[Tensor, "b 1 h w"]:
    return to_model(torch.from_numpy(raw[:, None]).to(device))


def _records(
    inputs: EvaluationInputs,
    condition: HealthCondition,
    rows: Int[np.ndarray, " n"],
    scores: _Scores,
) -> list[Record]:
    """The score and its calibration with intervals over patients."""
    one = np.ones(len(rows))
    terms = {name: (distance, one) for name, distance in scores.distances.items()}
    same = scores.distances.get("rrs_ceil_same")
    if same is not None and same.sum() > 0:
        terms["nrrs"] = (scores.distances["rrs"], same)
    patients = inputs.real_patients[rows]
    protocol = {"rrs": _protocol(inputs, scores)}
    records = []
    for name, (numerator, denominator) in terms.items():
        statistic = partial(_ratio, numerator, denominator)
        replicates = replicate(
            statistic, [patients], inputs.settings.bootstrap, inputs.settings.seed
        )
        records.append(
            Record(
                AXIS,
                name,
                _ratio(numerator, denominator, one),
                condition=condition.name,
                interval=percentile_interval(replicates),
                n_real=len(rows),
                n_synthetic=len(rows) if name in ("rrs", "nrrs", "rrs_vae") else 0,
                source=inputs.encoder_source,
                warning=_warning(inputs, patients) if name in ("rrs", "nrrs") else None,
                details={"meaning": MEANINGS[name]} | protocol.get(name, {}),
            )
        )
    floor = next(r for r in records if r.metric == "rrs_floor_pixel")
    low, high = floor.interval or (floor.value, floor.value)
    pixel = Floor(floor.value, low, high, meaning=MEANINGS["rrs_floor_pixel"])
    return [replace(r, floor=pixel) if r.metric == "rrs" else r for r in records]


def _ratio(
    numerator: Float64[np.ndarray, " n"],
    denominator: Float64[np.ndarray, " n"],
    weights: Shaped[np.ndarray, " n"],
) -> float:
    return float((weights * numerator).sum() / (weights * denominator).sum())


def _mean(values: Float64[np.ndarray, " n"]) -> float:
    return float(values.mean())


def _protocol(inputs: EvaluationInputs, scores: _Scores) -> dict[str, Any]:
    own = None if inputs.generator is None else inputs.generator.own_sampling
    sampling = own or SAMPLING
    return {
        "median": float(np.median(scores.distances["rrs"])),
        "l1_per_dimension": _mean(scores.l1),
        "split": HELD_OUT,
        "sampler": sampling.sampler,
        "steps": sampling.steps,
    }


def _warning(inputs: EvaluationInputs, patients: Shaped[np.ndarray, " n"]) -> str | None:
    reasons = []
    count = len(np.unique(patients))
    if count < FEW_PATIENTS:
        reasons.append(f"only {len(patients)} held-out images of {count} patients")
    if inputs.encoder_is_parent:
        reasons.append(
            "the generator was fine-tuned with this very encoder, so the score flatters it: use "
            "another encoder as well"
        )
    return "; ".join(reasons) or None
