"""The fidelity axis: how close are the distributions of synthetic and real images?"""

from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int, Shaped, UInt8
from torch import Tensor
from tqdm import tqdm

from cxr_lightning.metrics.extractors import Extractor
from cxr_lightning.metrics.fid import Floor, frechet_interval, frechet_of_features, real_floor
from cxr_lightning.metrics.inputs import EvaluationInputs
from cxr_lightning.metrics.records import OVERALL, AxisResult, Record, Skipped

TOO_CLOSE = 0.5
"""Share of the floor below which a distance is suspicious. The synthetic images may resemble both
halves of the real set, so somewhat less than the floor is natural for patients of many images."""


def fidelity(inputs: EvaluationInputs) -> AxisResult:
    """Fréchet distance of synthetic against real images, per condition and over all of them."""
    result = AxisResult()
    synthetic = {c.name: np.flatnonzero(inputs.synthetic.matches(c)) for c in inputs.conditions}
    real = {c.name: inputs.real_rows(c) for c in inputs.conditions}
    if len(inputs.conditions) > 1:
        synthetic[OVERALL] = np.unique(np.concatenate([*synthetic.values()]))
        real[OVERALL] = np.unique(np.concatenate([*real.values()]))
    used = np.unique(np.concatenate([*real.values()]))
    run = partial(_features, inputs.extractor, inputs.batch_size, inputs.device)
    real_features = run(inputs.real.images, used, "features of real images")
    everything = np.arange(len(inputs.synthetic.images))
    synthetic_features = run(inputs.synthetic.images, everything, "features of synthetic images")
    for name in synthetic:
        rows, drawn = real[name], synthetic[name]
        if min(len(rows), len(drawn)) < 2:
            reason = f"{len(rows)} real and {len(drawn)} synthetic images; 2 of each are needed"
            result.skipped.append(Skipped("fidelity", "fid", name, reason))
            continue
        features = real_features[torch.from_numpy(np.searchsorted(used, rows))]
        patients = inputs.real_patients[rows]
        drawn_features = synthetic_features[torch.from_numpy(drawn)]
        drawn_patients = inputs.synthetic.patients[drawn]
        print(f"fid of {name}: {len(rows)} real, {len(drawn)} synthetic images")
        result.records.append(
            _fid_record(inputs, name, features, drawn_features, patients, drawn_patients)
        )
    return result


def _fid_record(
    inputs: EvaluationInputs,
    name: str,
    real: Float32[Tensor, "n f"],
    synthetic: Float32[Tensor, "m f"],
    real_patients: Shaped[np.ndarray, " n"],
    synthetic_patients: Shaped[np.ndarray, " m"],
) -> Record:
    value = frechet_of_features(real, synthetic)
    patients = (real_patients, synthetic_patients)
    interval = frechet_interval(value, real, synthetic, *patients, inputs.bootstrap, inputs.seed)
    floor = real_floor(real, synthetic, real_patients, inputs.seed)
    low, high = interval or (None, None)
    return Record(
        axis="fidelity",
        metric="fid",
        condition=name,
        value=value,
        ci_low=low,
        ci_high=high,
        real_floor=floor.real if floor else None,
        n_real=len(real),
        n_synthetic=len(synthetic),
        extractor=inputs.extractor.name,
        extractor_sha256=inputs.extractor.sha256,
        warning=_warning(inputs.extractor, min(len(real), len(synthetic)), floor),
        details={
            "num_features": real.shape[1],
            "real_split": inputs.split,
            "real_patients": len(np.unique(real_patients)),
            **_floor_details(floor),
        },
    )


def _warning(extractor: Extractor, n: int, floor: Floor | None) -> str | None:
    reasons = []
    if n <= extractor.num_features:
        reasons.append(
            "no more images than features on one side, so the covariance is singular and the value "
            "biased upward: compare it only with the floor at equal n"
        )
    if floor and floor.synthetic < TOO_CLOSE * floor.real:
        reasons.append(
            "the synthetic images are much closer to the real ones than real patients are to each "
            "other, as copies of training images would be"
        )
    if extractor.name == "fixed":
        reasons.append("the extractor has random weights and serves smoke tests only")
    return "; ".join(reasons) or None


def _floor_details(floor: Floor | None) -> dict[str, Any]:
    if floor is None:
        return {"floor": "not defined: too few real patients or images for two halves"}
    return {
        "floor": f"mean over {floor.splits} random splits into two patient-disjoint halves, each "
        f"cut to {floor.n} images; value_at_floor_n: {floor.n} synthetic images against the same "
        "halves",
        "floor_n": floor.n,
        "value_at_floor_n": floor.synthetic,
    }


def _features(
    extractor: Extractor,
    batch_size: int,
    device: torch.device,
    images: UInt8[np.ndarray, "n h w"],
    rows: Int[np.ndarray, " m"],
    title: str,
) -> Float32[Tensor, "m f"]:
    """Features of some images, on the device."""
    batches = np.array_split(rows, range(batch_size, len(rows), batch_size))
    parts = [extractor(_raw(images[b], device)) for b in tqdm(batches, title, disable=None)]
    return torch.cat(parts)


def _raw(images: UInt8[np.ndarray, "n h w"], device: torch.device) -> UInt8[Tensor, "n 1 h w"]:
    return torch.from_numpy(np.array(images)[:, None]).to(device)
