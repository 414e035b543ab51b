"""Fidelity in the pixels: grey values, spatial frequencies, and spread within a condition."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Shaped, UInt8
from torch import Tensor

from cxr_lightning.evaluation.diversity import Pairs, compare_pairs, draw_pairs
from cxr_lightning.evaluation.floors import floor_of
from cxr_lightning.evaluation.inputs import EvaluationInputs, Group
from cxr_lightning.evaluation.records import OVERALL, AxisResult, Record
from cxr_lightning.metrics.bootstrap import centred_interval, replicate
from cxr_lightning.metrics.diversity import MIN_SIZE, ms_ssim, scales
from cxr_lightning.metrics.floor import split_floor
from cxr_lightning.metrics.radiograph_statistics import (
    histograms,
    power_spectra,
    spectral_distance,
    wasserstein,
)
from cxr_lightning.progress import progress_bar

BLOCK = 1024
BINS = 64
"""Bins of the histogram in the report."""

Images = UInt8[np.ndarray, "_ h w"]
Statistics = Callable[[Images], Float64[np.ndarray, "_ k"]]
Distance = Callable[[Float64[np.ndarray, " k"], Float64[np.ndarray, " k"]], float]


def radiographs(inputs: EvaluationInputs, groups: list[Group], result: AxisResult) -> None:
    """Adds the metrics in pixels to the fidelity axis."""
    measured = [group for group in groups if group.is_measured_whole]
    for group in progress_bar(measured, "statistics of pixels"):
        record = partial(
            Record,
            "fidelity",
            condition=group.condition,
            subgroup=group.subgroup,
            n_real=len(group.real),
            n_synthetic=len(group.synthetic),
        )
        for metric, unit, name, statistics, distance in (
            ("histogram_distance", "grey levels", "histogram", histograms, wasserstein),
            ("spectral_distance", "dB", "power_spectrum", power_spectra, spectral_distance),
        ):
            real = _statistics(inputs.real.images, group.real, statistics)
            drawn = _statistics(inputs.synthetic.images, group.synthetic, statistics)
            result.records.append(
                _compare(inputs, group, partial(record, metric, unit=unit), distance, real, drawn)
            )
            if group.subgroup == OVERALL:
                means = {"real": real.mean(axis=0), "synthetic": drawn.mean(axis=0)}
                curves = result.curves.setdefault(name, {})
                curves[group.condition] = {k: _curve(name, v) for k, v in means.items()}
        _add_ms_ssim(inputs, group, record, result)


def _statistics(
    images: Images, rows: Int[np.ndarray, " n"], statistics: Statistics
) -> Float64[np.ndarray, "n k"]:
    blocks = np.array_split(rows, range(BLOCK, len(rows), BLOCK))
    return np.concatenate([statistics(np.asarray(images[block])) for block in blocks])


def _compare(
    inputs: EvaluationInputs,
    group: Group,
    record: Callable[..., Record],
    distance: Distance,
    real: Float64[np.ndarray, "n k"],
    synthetic: Float64[np.ndarray, "m k"],
) -> Record:
    """A distance between the mean statistics of both sides."""
    settings = inputs.settings
    patients = inputs.real_patients[group.real]
    drawn_patients = inputs.synthetic.patients[group.synthetic]

    def weighted(
        real_weights: Shaped[np.ndarray, " n"], weights: Shaped[np.ndarray, " m"]
    ) -> float:
        of_real, of_synthetic = real_weights.astype(float), weights.astype(float)
        return distance(
            of_real @ real / of_real.sum(), of_synthetic @ synthetic / of_synthetic.sum()
        )

    def of_means(one: Float[Tensor, "n k"], other: Float[Tensor, "m k"]) -> list[float]:
        return [distance(one.mean(dim=0).numpy(), other.mean(dim=0).numpy())]

    value = distance(real.mean(axis=0), synthetic.mean(axis=0))
    replicates = replicate(weighted, [patients, drawn_patients], settings.bootstrap, settings.seed)
    floor = split_floor(
        of_means, torch.from_numpy(real), torch.from_numpy(synthetic), patients, settings.seed
    )
    interval = centred_interval(value, replicates)
    return record(value, interval=interval, floor=floor_of(floor), better="lower")


def _curve(name: str, mean: Float64[np.ndarray, " k"]) -> list[float]:
    if name == "histogram":
        mean = mean.reshape(BINS, -1).sum(axis=1)
    return [float(value) for value in mean]


def _add_ms_ssim(
    inputs: EvaluationInputs, group: Group, record: Callable[..., Record], result: AxisResult
) -> None:
    """Multi-scale SSIM of pairs within the condition: high where all images look alike."""
    if inputs.real.size < MIN_SIZE:
        reason = f"images of {inputs.real.size} pixels are below its {MIN_SIZE}"
        result.skip("fidelity", "ms_ssim", reason, group.condition)
        return
    found: list[Pairs] = []
    for images, rows, patients in (
        (inputs.real.images, group.real, inputs.real_patients[group.real]),
        (inputs.synthetic.images, group.synthetic, inputs.synthetic.patients[group.synthetic]),
    ):
        pairs = draw_pairs(patients, inputs.settings.seed)
        if pairs is None:
            result.skip("fidelity", "ms_ssim", "fewer than two patients", group.condition)
            return
        values = _ms_ssim(images, rows, pairs, inputs.device)
        found.append((values, pairs, patients))
    compared = compare_pairs(record, "ms_ssim", "equal", inputs.settings, found[0], found[1])
    compared.details["scales"] = scales(inputs.real.size)
    result.records.append(compared)


def _ms_ssim(
    images: Images,
    rows: Int[np.ndarray, " n"],
    pairs: Int[np.ndarray, "2 p"],
    device: torch.device,
) -> Float64[np.ndarray, " p"]:
    values = []
    for block in np.array_split(pairs, range(BLOCK, pairs.shape[1], BLOCK), axis=1):
        one, other = (
            torch.from_numpy(np.asarray(images[rows[side]])[:, None]).to(device) for side in block
        )
        values.append(ms_ssim(one, other).double().cpu().numpy())
    return np.concatenate(values)
