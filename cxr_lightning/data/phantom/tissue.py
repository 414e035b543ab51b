"""Normal soft tissue and air as thickness along the ray, in cm; positions in field units."""

import math
from functools import lru_cache

import numpy as np

from cxr_lightning.data.phantom.anatomy import APEX_LEVEL, HILUM_LEVEL, Chest
from cxr_lightning.data.phantom.canvas import Map, Points, curve, unit

CM = 20.0
"""Centimetres in a field unit: the field is about 40 cm wide."""
CARINA = (-0.005, -0.24)
"""Body point where the trachea divides."""


def chord(t: Map) -> Map:
    """Relative thickness of a squared-off cylinder at distance t (in radii) from its axis."""
    squared = t * t
    return np.sqrt(np.clip(1 - squared * squared, 0, None))


def body(chest: Chest) -> Map:
    """Thickness of torso, neck, shoulders and arms, blended into one skin."""
    canvas, patient = chest.canvas, chest.patient
    y, off = canvas.y, chest.off
    waist = 0.05 * patient.habitus * unit(y) - 0.05 * unit(0.1 - y)
    flank = patient.chest_width + 0.08 + 0.12 * patient.habitus + waist
    torso = (20 + 7 * patient.habitus) * chord(off / flank) * canvas.step(y + 0.70, 0.40)
    neck_half = 0.21 + 0.03 * patient.habitus
    neck = 12 * chord(off / (neck_half + 0.5 * unit((y + 0.95) / 0.35) ** 2))
    slope = -1.03 + 0.38 * off + 0.5 * unit(off - 0.78) ** 1.5
    armpit = 0.12 - 1.1 * unit(off - 0.80)
    shoulder = 12 * canvas.step(y - slope, 0.12) * canvas.step(armpit - y, 0.3)
    hang = 0.02 if chest.portable else 0.16
    arm_axis = 1.04 + hang * (y + 0.5)
    arm = 10 * chord((off - arm_axis) / 0.17) * canvas.step(y + 0.6, 0.25)
    skin = np.sqrt(np.sqrt(torso**4 + neck**4 + shoulder**4 + arm**4))
    abdomen = 1.5 * canvas.step(-chest.above_diaphragm, 0.1) * canvas.step(flank - off, 0.3)
    return skin + abdomen + _breasts(chest)


def _breasts(chest: Chest) -> Map:
    canvas, patient = chest.canvas, chest.patient
    amount = (2.6 if patient.sex == "Female" else 0.7) * (0.3 + patient.habitus)
    dx = (chest.off - 0.46) / 0.26
    dy = (canvas.y - 0.20) / (0.24 + 0.08 * patient.habitus)
    dome: Map = np.clip(1 - dx * dx - dy * dy, 0, None)
    # full below, fading out above
    return amount * dome * canvas.step(canvas.y - 0.12, 0.35)


def lung(chest: Chest) -> Map:
    """Thickness of aerated lung: chords of the chest, less what heart and great vessels take."""
    canvas = chest.canvas
    depth = 15 + 2 * chest.patient.habitus
    rounded = depth * np.sqrt(unit(1 - chest.across**2.4))
    below_apex = unit((canvas.y - APEX_LEVEL) / 0.45)
    near_dome = unit(chest.above_diaphragm / 0.10)
    rounded = rounded * (0.45 + 0.55 * np.sqrt(below_apex)) * (0.7 + 0.3 * near_dome)
    hidden = 0.52 * canvas.step(chest.heart, 0.018) + 0.30 * unit(chest.heart / 0.15)
    behind_dome = 0.16 * depth * canvas.step(chest.base - canvas.y, 0.15) * _flanks(chest)
    return np.asarray((rounded * chest.lung + behind_dome * (1 - chest.lung)) * (1 - hidden))


def _flanks(chest: Chest) -> Map:
    """Posterior recess: lung that reaches down behind the domes, away from the midline."""
    canvas = chest.canvas
    outside = canvas.step(chest.lateral, 0.03) * canvas.step(chest.off - 0.25, 0.3)
    return outside * canvas.step(-chest.above_diaphragm, 0.05)


def airways(chest: Chest) -> Map:
    """Thickness of the air in trachea and main bronchi, and of gas in the stomach."""
    trachea = curve([(0.0, -1.1), (0.0, -0.7), (-0.02, -0.45), CARINA])
    right = curve([CARINA, (-0.06, -0.17), (-0.13, -0.13)])
    left = curve([CARINA, (0.07, -0.17), (0.17, -0.14)])
    bronchi = chest.canvas.polyline(right, 0.026), chest.canvas.polyline(left, 0.022)
    tubes = np.maximum(chest.canvas.polyline(trachea, 0.036), np.maximum(*bronchi))
    return 1.3 * CM * tubes + _gastric_bubble(chest)


def _gastric_bubble(chest: Chest) -> Map:
    """Gas under the left dome, with a level when the patient stands."""
    canvas, seed = chest.canvas, chest.patient.texture_seed
    radius = 0.06 + 0.05 * (seed % 97) / 97
    x, y = 0.36 + 0.08 * (seed % 89) / 89, chest.dome_left + 0.05 + 0.6 * radius
    dx, dy = (canvas.x - x) / (1.5 * radius), (canvas.y - y) / radius
    bubble: Map = np.sqrt(np.clip(1 - dx * dx - dy * dy, 0, None))
    level = 1.0 if chest.portable else canvas.step(y + 0.3 * radius - canvas.y)
    return 3.2 * bubble * level * (seed % 3 > 0)


def vessels(chest: Chest) -> Map:
    """Thickness of the pulmonary vessels: trees from the hila that thin out to the periphery."""
    starts, ends, radii = _trees(chest.patient.texture_seed)
    stretch = np.array([chest.patient.chest_width / 0.75, 1.0])
    layer = chest.canvas.segments(starts * stretch, ends * stretch, radii)
    hila = [(0.150, 0.0, 0.032, 0.055), (-0.140, 0.03, 0.030, 0.065)]
    knots = sum(chest.canvas.spot(x, HILUM_LEVEL + dy - 0.02, rx, ry) for x, dy, rx, ry in hila)
    # exaggerated 2.7-fold: true vessels would drown below 256 pixels
    return 2.7 * CM * layer + 3.0 * knots


@lru_cache(maxsize=64)
def _trees(seed: int, trunks: int = 9, generations: int = 6) -> tuple[Points, Points, Points]:
    """Grow one vessel tree a side; starts (n, 2), ends (n, 2) and radii (n,) of all branches."""
    rng = np.random.default_rng(seed)
    side = np.repeat([1.0, -1.0], trunks)
    fan = np.tile(np.linspace(-1.35, 1.40, trunks), 2)
    # angle from the lateral direction, down positive
    angle = fan + rng.normal(0, 0.15, 2 * trunks)
    bend = rng.normal(0, 0.16, 2 * trunks)
    tip = np.stack([side * 0.13, HILUM_LEVEL - 0.03 * (side > 0) + 0.09 * np.sin(fan)], axis=1)
    radius = rng.uniform(0.015, 0.022, 2 * trunks) * (1 + 0.25 * (fan > 0.5))
    starts, ends, radii = [], [], []
    for generation in range(generations):
        length = rng.uniform(0.06, 0.11, len(tip)) * (1 + 0.35 * (angle > 0.4))
        step = length[:, None] * np.stack([side * np.cos(angle), np.sin(angle)], axis=1)
        starts.append(tip)
        ends.append(tip + step)
        radii.append(radius)
        tip, copies = tip + step, 2 if generation in (1, 3) else 1
        grown = (tip, side, angle, radius, bend)
        tip, side, angle, radius, bend = (np.repeat(a, copies, 0) for a in grown)
        fork = np.tile([-0.35, 0.35], len(tip) // 2) if copies == 2 else 0.0
        angle = angle * 0.96 + fork + bend + rng.normal(0, 0.15, len(tip))
        radius = radius * rng.uniform(0.62, 0.85, len(tip))
    return np.concatenate(starts), np.concatenate(ends), np.concatenate(radii)


def texture(chest: Chest) -> Map:
    """Relative unevenness of the soft tissue, about +-2 %; the same for all studies."""
    rng = np.random.default_rng([chest.patient.texture_seed, 1])
    fields = (chest.canvas.noise(cells, rng) * amount for cells, amount in ((6, 0.5), (18, 0.3)))
    fine = chest.canvas.noise(40, rng) * 0.2
    return np.float32(0.018) * (sum(fields) + fine)


def mediastinal_stripe(chest: Chest) -> Map:
    """Extra thickness of the descending aorta and of the aortic arch, left of the spine."""
    canvas, knob = chest.canvas, chest.patient.aortic_knob
    arch = canvas.spot(0.07 + 0.4 * knob, -0.29, 0.04 + 0.3 * knob)
    edge = 0.10 + 0.2 * knob - 0.03 * unit((canvas.y + 0.3) / 0.7)
    descending = canvas.step(edge - canvas.x) * canvas.step(canvas.x - 0.02, 0.05)
    descending = descending * canvas.step(canvas.y + 0.28, 0.05)
    return 1.2 * arch + 1.0 * descending * math.sqrt(0.5 + 10 * knob)
