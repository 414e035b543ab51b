"""Radiograph from thickness maps: Beer-Lambert, scatter, blur, quantum noise, display window."""

import numpy as np
from numpy.typing import NDArray

from cxr_lightning.data.phantom.anatomy import Acquisition, Anatomy, Chest, sample_acquisition
from cxr_lightning.data.phantom.canvas import Canvas, Map, Points, unit
from cxr_lightning.data.phantom.devices import draw_devices
from cxr_lightning.data.phantom.disease import Collapse, collapse, fluid, infiltrate
from cxr_lightning.data.phantom.findings import Findings
from cxr_lightning.data.phantom.skeleton import skeleton
from cxr_lightning.data.phantom.tissue import (
    airways,
    body,
    lung,
    mediastinal_stripe,
    texture,
    vessels,
)

MU_SOFT = 0.19
"""Linear attenuation of soft tissue and fluid, 1/cm, at about 70 keV (120 kVp; NIST XCOM)."""
MU_LUNG = 0.045
"""Linear attenuation of inflated lung, 1/cm: a quarter of soft tissue's density."""
MU_BONE = 0.48
"""Linear attenuation of compact bone, 1/cm, at about 70 keV (NIST XCOM)."""
MIN_SIZE = 16


def render(
    patient: Anatomy,
    findings: Findings,
    *,
    size: int,
    rng: np.random.Generator,
    acquisition: Acquisition | None = None,
) -> NDArray[np.uint8]:
    """Render a frontal chest radiograph.

    Args:
        patient: Whose chest.
        findings: What it shows.
        size: Side of the image in pixels, at least 16.
        rng: Source of the study (where not given), of the findings' details and of the noise.
        acquisition: View, positioning and exposure; drawn from `rng` first where None.

    Returns:
        Raw image, uint8 (size, size): bright = dense; the patient's right is on the image's left.

    Raises:
        ValueError: If `size` is too small.
    """
    if size < MIN_SIZE:
        raise ValueError(f"size is {size}; a phantom needs at least {MIN_SIZE} pixels a side")
    study = sample_acquisition(rng) if acquisition is None else acquisition
    canvas = Canvas(size, study.pose)
    chest = Chest(patient, study, canvas, findings.cardiomegaly)
    return _expose(_attenuation(chest, findings, rng), chest, rng)


def _attenuation(chest: Chest, findings: Findings, rng: np.random.Generator) -> Map:
    """Line integral of the attenuation, sum of mu t over all structures; no unit."""
    # one stream a finding, so that adding one leaves the others and the noise as they are
    streams = rng.spawn(4)
    air = lung(chest)
    if findings.effusion:
        air = air * (1 - fluid(chest, findings.effusion, streams[0]))
    if findings.pneumonia:
        air = air * (1 - infiltrate(chest, findings.pneumonia, streams[1]))
    # vessels stand out against air only
    markings = vessels(chest) * (0.15 + 0.85 * unit((air - 3) / 5))
    total = MU_SOFT * (body(chest) * (1 + texture(chest)) + mediastinal_stripe(chest))
    total -= (MU_SOFT - MU_LUNG) * air + MU_SOFT * airways(chest)
    total += (MU_BONE - MU_SOFT) * skeleton(chest)
    if findings.pneumothorax:
        gas = collapse(chest, findings.pneumothorax, streams[2])
        total += _collapsed(chest, gas, air)
        markings = markings * (1 - gas.rim)
    total += (MU_SOFT - MU_LUNG) * markings
    return np.maximum(total, 0) + draw_devices(chest, findings.devices, streams[3])


def _collapsed(chest: Chest, gas: Collapse, air: Map) -> Map:
    """Change of attenuation: none left in the rim, a denser lung beside it, its pleura."""
    same_side: NDArray[np.bool_] = chest.side == np.sign((gas.rim * chest.side).sum())
    denser = 0.35 * MU_LUNG * air * same_side * (1 - gas.rim)
    return denser - MU_LUNG * air * gas.rim + 0.16 * gas.line * (air > 0)


def _expose(attenuation: Map, chest: Chest, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Beer-Lambert law I = I0 exp(-sum mu t), then detector and display."""
    study, canvas = chest.acquisition, chest.canvas
    primary = np.exp(-attenuation)
    scatter = canvas.low_pass(primary, 8) * np.float32(0.10 * study.scatter)
    signal = canvas.blur(primary + scatter, 0.004 if study.view == "PA" else 0.006)
    quanta = study.dose * (128 / canvas.size) ** 2
    # Poisson noise of `signal * quanta` counts, in the normal approximation
    noise = rng.standard_normal(signal.shape, dtype=np.float32) / np.sqrt(signal * quanta)
    density = -np.log(signal) + noise
    return _display(density + _marker(canvas, study), chest)


def _display(density: Map, chest: Chest) -> NDArray[np.uint8]:
    """Sigmoid display curve, bright = dense; the window follows the patient's build."""
    study = chest.acquisition
    # automatic exposure: a lung field's density grows by about 1 from slender to obese
    centre = 2.55 + chest.patient.habitus + study.window_centre
    t = (density - centre) * np.float32(1.3 / study.window_width)
    return np.asarray(np.rint(255 / (1 + np.exp(-t))), np.uint8)


def _marker(canvas: Canvas, study: Acquisition) -> Map:
    """Lead letter in the corner of the side it names; upright whatever the pose."""
    if study.marker is None:
        return np.zeros_like(canvas.y)
    strokes = {
        "L": [(0, 0, 0, 2), (0, 2, 1.1, 2)],
        "R": [(0, 0, 0, 2), (0, 0, 1, 0.1), (1, 0.1, 1, 1), (1, 1, 0, 1), (0.3, 1, 1.1, 2)],
    }
    corner = np.array([0.80 if study.marker == "L" else -0.86, -0.92])
    lines: Points = np.array(strokes[study.marker], np.float64)
    plane = Canvas(canvas.size, type(study.pose)())
    starts, ends = corner + 0.045 * lines[:, :2], corner + 0.045 * lines[:, 2:]
    return plane.segments(starts, ends, np.full(len(lines), 0.012)) * np.float32(2.2 / 0.024)
