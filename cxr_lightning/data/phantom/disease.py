"""Effusion, pneumonia and pneumothorax as shares of the lung they replace; maps in [0, 1]."""

from typing import NamedTuple

import numpy as np

from cxr_lightning.data.phantom.anatomy import APEX_LEVEL, HILUM_LEVEL, Chest
from cxr_lightning.data.phantom.canvas import Map, curve, unit
from cxr_lightning.data.phantom.findings import Effusion, Pneumonia, Pneumothorax, sides

FLUID_HEIGHT = {"small": (0.07, 0.11), "moderate": (0.28, 0.38), "large": (0.55, 0.78)}
"""Height of the fluid at mid-lung over the height of the lung, from the costophrenic angle up."""
COLLAPSE = {"small": (0.05, 0.07), "moderate": (0.10, 0.14), "large": (0.19, 0.26)}
"""Width of the pneumothorax at mid-lung, field units (times 20: cm)."""
LOBE_CENTRE = {"upper": (0.38, 0.26), "middle": (0.26, 0.74), "lower": (0.44, 0.88)}
"""Centre of a lobe: distance from the midline (field units), height (0 apex, 1 diaphragm)."""


def fluid(chest: Chest, effusion: Effusion, rng: np.random.Generator) -> Map:
    """Share of the lung that the effusion hides.

    Upright (PA) the fluid ends in a meniscus that rises to the chest wall and a little to the
    mediastinum. Supine (AP) its edge is softer and a veil lies over the lung above.
    """
    canvas = chest.canvas
    share = np.zeros_like(canvas.y)
    for sign in sides(effusion.side):
        height = rng.uniform(*FLUID_HEIGHT[effusion.size]) * (chest.base - APEX_LEVEL)
        rise = (0.16 + 0.12 * min(height, 0.5)) * rng.uniform(0.9, 1.2)
        meniscus = rise * chest.across**3 + 0.25 * rise * (1 - chest.across) ** 4
        depth = canvas.y - (chest.base - height - meniscus)
        pooled = canvas.step(depth, 0.12 if chest.portable else 0.06)
        if chest.portable and effusion.size != "small":
            pooled = np.maximum(pooled, 0.30 * unit(1 + depth / 0.5))
        share = np.where(chest.side == sign, pooled, share)
    return share


def infiltrate(chest: Chest, pneumonia: Pneumonia, rng: np.random.Generator) -> Map:
    """Share of the air that the infiltrate replaces: fluffy patches with air bronchograms."""
    canvas = chest.canvas
    share = np.zeros_like(canvas.y)
    off, height = LOBE_CENTRE[pneumonia.lobe]
    for sign in sides(pneumonia.side):
        x = sign * (off * chest.patient.chest_width / 0.75 + rng.uniform(-0.04, 0.04))
        floor = chest.dome_left if sign > 0 else chest.dome_right
        y = APEX_LEVEL + (height + rng.uniform(-0.05, 0.05)) * (floor - APEX_LEVEL)
        spread = rng.uniform(0.16, 0.22)
        blob = canvas.spot(x, y, spread, spread * rng.uniform(0.75, 1.0))
        fluff = 0.20 * canvas.noise(7, rng) + 0.15 * canvas.noise(16, rng)
        patch = unit((blob - 0.22 + fluff * np.sqrt(blob)) / 0.75)
        patch = patch * canvas.step(blob - 0.06, 0.08) * rng.uniform(0.72, 0.90)
        patch = patch * (1 - 0.40 * _bronchogram(chest, sign, (x, y), rng))
        share = np.where(chest.side == sign, patch, share)
    return share


def _bronchogram(
    chest: Chest, sign: int, centre: tuple[float, float], rng: np.random.Generator
) -> Map:
    """Air-filled bronchi that run from the hilum into the infiltrate, 0 to 1."""
    hilum = (sign * 0.13, HILUM_LEVEL)
    layers = []
    for _ in range(4):
        dx, dy = rng.normal(0, 0.08, 2)
        bend = (hilum[0] * 0.4 + centre[0] * 0.6, centre[1] * 0.6 + rng.normal(0, 0.05))
        path = curve([hilum, bend, (centre[0] + dx, centre[1] + dy)], 3)
        layers.append(chest.canvas.polyline(path, 0.007))
    return unit(np.maximum.reduce(layers) / 0.014)


class Collapse(NamedTuple):
    """Pneumothorax: free gas between chest wall and retracted lung."""

    rim: Map
    """Share of the ray's lung that is free gas without markings."""
    line: Map
    """Visceral pleura, 0 to 1."""


def collapse(chest: Chest, pneumothorax: Pneumothorax, rng: np.random.Generator) -> Collapse:
    """Retract the lung from the wall; gas gathers at the apex, or below in the supine patient."""
    canvas = chest.canvas
    width = rng.uniform(*COLLAPSE[pneumothorax.size])
    level = unit((canvas.y - APEX_LEVEL) / (chest.base - APEX_LEVEL))
    taper = (0.8 + 0.4 * level) if chest.portable else (1.5 - level)
    wave = 1 + 0.08 * np.sin(5 * level + rng.uniform(0, 6))
    inside = chest.lateral - width * taper * wave
    here = (chest.side == sides(pneumothorax.side)[0]) * canvas.step(chest.lateral, 0.01)
    sigma = max(0.006, 0.7 * canvas.pixel)
    line = np.exp(np.float32(-0.5 / sigma**2) * inside * inside) * (0.006 / sigma)
    return Collapse(here * canvas.step(-inside), (here * line).astype(np.float32))
