"""Bones as thickness of compact bone along the ray, in cm; positions in field units."""

import numpy as np

from cxr_lightning.data.phantom.anatomy import APEX_LEVEL, Chest
from cxr_lightning.data.phantom.canvas import Canvas, Map, unit


def skeleton(chest: Chest) -> Map:
    """Thickness of all bones together; older patients have less mineral."""
    mineral = 1.15 - 0.006 * max(0, chest.patient.age - 30)
    bones = _ribs(chest) + _spine(chest) + _clavicles(chest) + _scapulae(chest)
    return mineral * (bones + _humeri(chest))


def _band(canvas: Canvas, distance: Map, half: float | Map, shell: float) -> Map:
    """Cross-section of a flat bone: spongy inside, compact `shell` cm thick along both edges."""
    pixel = canvas.pixel
    inside = canvas.step(half - np.abs(distance))
    rim = (np.abs(distance) - half + 0.008) / max(0.008, 0.8 * pixel)
    edge = np.exp(np.float32(-0.5) * rim * rim) * (0.008 / max(0.008, 0.8 * pixel))
    return shell * (inside + np.float32(0.8) * edge * inside)


def _ribs(chest: Chest) -> Map:
    """All posterior ribs at once, then all anterior ribs: one periodic field each.

    Each pair of ribs projects to an ellipse: y = y_k + D (1 - sqrt(1 - u^2)) behind, falling from
    the spine (u = 0) to the chest wall (u = 1), and y = y_k + D + E sqrt(1 - u^2) in front.
    """
    canvas, patient = chest.canvas, chest.patient
    u = unit(chest.off / (chest.wall + 0.025))
    turn = np.sqrt(np.clip(1 - u * u, 1e-4, 1))
    down = np.clip((canvas.y - APEX_LEVEL) / 1.2, 0, 1.3)
    fall = patient.rib_slope * (0.55 + 0.9 * down)
    cage = canvas.step(chest.wall + 0.03 - chest.off, 0.02) * canvas.step(
        chest.base + 0.15 - canvas.y, 0.4
    )
    slope = np.minimum(u / turn, 4) / chest.wall
    back = _comb(chest, canvas.y - fall * (1 - turn), fall * slope, 0.023)
    start = canvas.step(chest.off - 0.07, 0.04)
    rise = 0.30 * (0.6 + 0.5 * down)
    front = _comb(chest, canvas.y - fall - rise * turn, rise * slope, 0.026)
    # costal cartilage does not show: the front ends near the mid-clavicular line
    end = canvas.step(u - 0.42 - 0.15 * unit(canvas.y), 0.10)
    end = end * canvas.step(0.45 - canvas.y, 0.25)
    return cage * (back * start + np.float32(0.8) * front * end)


def _comb(chest: Chest, level: Map, slope: Map, half: float) -> Map:
    """Bones at equal spacing in `level` = y along the rib; `slope` = dy/dx of the rib there."""
    spacing = chest.patient.rib_spacing
    phase = (level - APEX_LEVEL - 0.02) / spacing
    distance = (phase - np.round(phase)) * spacing / np.sqrt(1 + slope * slope)
    shown = chest.canvas.step(phase + 0.5, 0.3)
    return _band(chest.canvas, distance, half, 0.30) * shown


def _spine(chest: Chest) -> Map:
    """Vertebral bodies with disc spaces, pedicles and spinous processes."""
    canvas, off = chest.canvas, chest.off
    height = 0.105 + 0.02 * np.clip(canvas.y + 1, 0, 2)
    phase = (canvas.y + 1.02) / height
    cycle = phase - np.round(phase)
    half = 0.066 + 0.015 * unit(canvas.y + 0.3) + 0.006 * np.cos(2 * np.pi * phase + np.pi)
    body = canvas.step(half - off, 0.012) * (0.9 + 0.35 * canvas.step(0.40 - np.abs(cycle), 0.08))
    endplate = np.exp(-(((np.abs(cycle) - 0.38) / 0.05) ** 2)) * canvas.step(half - off)
    pedicle = np.exp(-(((off - 0.045) / 0.012) ** 2) - ((cycle + 0.1) / 0.16) ** 2)
    spinous = np.exp(-((off / 0.010) ** 2) - ((cycle - 0.2) / 0.2) ** 2)
    return 0.5 * body + 0.15 * endplate + 0.4 * pedicle + 0.3 * spinous


def _clavicles(chest: Chest) -> Map:
    """S-shaped clavicles; in the AP view of a supine patient they lie higher."""
    canvas = chest.canvas
    lift = 0.05 if chest.portable else 0.0
    span = chest.patient.chest_width - 0.02
    t = unit((chest.off - 0.06) / (span - 0.06))
    line = -0.50 - lift - 0.15 * t + 0.05 * np.sin(2 * np.pi * t) - 0.05 * t * t
    half = 0.026 + 0.012 * (2 * t - 1) ** 2
    ends = canvas.step(chest.off - 0.055, 0.03) * canvas.step(span - chest.off, 0.03)
    return _band(canvas, (canvas.y - line) * np.float32(0.95), half, 0.55) * ends


def _scapulae(chest: Chest) -> Map:
    """Thin triangular blades; turned off the lungs in the PA view, over them in the AP view."""
    canvas = chest.canvas
    inward = 0.16 if chest.portable else 0.0
    x, y = chest.off + inward - chest.patient.chest_width, canvas.y
    medial = x - 0.01 - 0.06 * (y + 0.35)
    lateral = 0.215 - 0.30 * (y + 0.50) - x
    upper = y + 0.56 + 0.15 * x
    inside = np.minimum(np.minimum(medial, lateral), upper)
    blade = canvas.step(inside, 0.02)
    border = np.exp(-(((lateral - 0.02) / 0.018) ** 2)) * blade
    ridge = np.exp(-(((y + 0.50 + 0.35 * (x - 0.1)) / 0.02) ** 2)) * canvas.step(x, 0.05)
    ridge = ridge * canvas.step(0.28 - x, 0.05)
    return 0.16 * blade + 0.35 * border + 0.30 * ridge


def _humeri(chest: Chest) -> Map:
    """Head and shaft of the upper arm bones, mostly at or beyond the edge of the field."""
    canvas = chest.canvas
    hang = 0.02 if chest.portable else 0.16
    reach = chest.patient.chest_width + 0.16
    dx, dy = (chest.off - reach) / 0.085, (canvas.y + 0.56) / 0.095
    head: Map = np.sqrt(unit(1 - dx * dx - dy * dy))
    axis = reach + 0.05 + hang * (canvas.y + 0.5)
    shaft = _band(canvas, chest.off - axis, 0.042, 0.7) * canvas.step(canvas.y + 0.52, 0.1)
    return 1.3 * head + shaft * (1 - unit(2 * head))
