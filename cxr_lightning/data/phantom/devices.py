"""Support devices as attenuation (mu t, without unit); positions in field units."""

import numpy as np

from cxr_lightning.data.phantom.anatomy import Chest
from cxr_lightning.data.phantom.canvas import Map, curve
from cxr_lightning.data.phantom.findings import Device
from cxr_lightning.data.phantom.tissue import CARINA


def draw_devices(chest: Chest, devices: frozenset[Device], rng: np.random.Generator) -> Map:
    """Attenuation of all `devices` together."""
    drawers = {
        "endotracheal tube": _endotracheal_tube,
        "central line": _central_line,
        "pacemaker": _pacemaker,
        "ECG leads": _ecg_leads,
    }
    layer = np.zeros_like(chest.canvas.y)
    for name, draw in drawers.items():
        if name in devices:
            layer = np.maximum(layer, draw(chest, rng))
    return layer


def _wire(chest: Chest, points: list[tuple[float, float]], radius: float, density: float) -> Map:
    """Opaque wire along a curve: attenuation `density` at its centre line."""
    return density * chest.canvas.polyline(curve(points), radius) / (2 * radius)


def _endotracheal_tube(chest: Chest, rng: np.random.Generator) -> Map:
    """Two walls of a tube that ends 2 to 5 cm above the carina."""
    tip = CARINA[1] - rng.uniform(0.10, 0.25)
    x = CARINA[0] + rng.uniform(-0.01, 0.01)
    walls = [
        _wire(chest, [(dx, -1.1), (x + dx, -0.7), (x + 0.6 * dx, tip)], 0.007, density)
        for dx, density in ((-0.017, 0.5), (0.017, 0.9))
    ]
    return np.maximum(*walls)


def _central_line(chest: Chest, rng: np.random.Generator) -> Map:
    """Catheter from the right neck or a subclavian vein to the superior vena cava."""
    tip = (-0.095 + rng.uniform(-0.01, 0.015), rng.uniform(-0.16, 0.02))
    route = rng.integers(3)
    if route == 0:
        path = [(-0.16, -1.1), (-0.15, -0.8), (-0.10, -0.5), (-0.115, -0.3), tip]
    elif route == 1:
        path = [(-0.75, -0.45), (-0.5, -0.70), (-0.22, -0.62), (-0.08, -0.45), tip]
    else:
        path = [(0.75, -0.45), (0.5, -0.72), (0.12, -0.60), (-0.15, -0.42), tip]
    return _wire(chest, path, 0.008, 0.9)


def _pacemaker(chest: Chest, rng: np.random.Generator) -> Map:
    """Generator below the left (seldom right) clavicle, and a lead to the right ventricle."""
    canvas = chest.canvas
    side = 1 if rng.random() < 0.85 else -1
    x, y = side * rng.uniform(0.48, 0.56), rng.uniform(-0.38, -0.28)
    dx, dy = np.abs(canvas.x - x) / 0.085, np.abs(canvas.y - y) / 0.085
    can = canvas.step(1 - np.sqrt(np.sqrt(dx**4 + dy**4)), 0.12) * (2.6 - 0.6 * (dy < 0.45))
    apex = (0.20 + rng.uniform(-0.03, 0.05), chest.dome_left - 0.06)
    lead = [(x, y - 0.06), (side * 0.40, -0.50), (side * 0.12, -0.46), (-0.08, -0.28)]
    lead += [(-0.10, 0.0), (0.02, 0.16), apex]
    return np.asarray(np.maximum(can, _wire(chest, lead, 0.009, 1.3)), np.float32)


def _ecg_leads(chest: Chest, rng: np.random.Generator) -> Map:
    """Three to five electrodes on the skin with their cables."""
    canvas = chest.canvas
    places = [(-0.58, -0.45), (0.58, -0.45), (0.55, 0.42), (-0.55, 0.42), (0.08, -0.05)]
    layer = np.zeros_like(canvas.y)
    for x, y in places[: rng.integers(3, 6)]:
        x, y = x + rng.uniform(-0.08, 0.08), y + rng.uniform(-0.08, 0.08)
        pad = canvas.step(0.030 - np.hypot(canvas.x - x, canvas.y - y))
        stud = canvas.step(0.012 - np.hypot(canvas.x - x, canvas.y - y))
        hook = (x * 0.3 + rng.normal(0, 0.1), y + rng.uniform(0.1, 0.4))
        cable = _wire(chest, [(x, y), hook, (rng.uniform(-0.4, 0.4), 1.2)], 0.006, 0.6)
        layer = np.maximum(layer, np.maximum(0.25 * pad + 1.2 * stud, cable))
    return layer
