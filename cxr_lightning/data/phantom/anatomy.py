"""Who is imaged and how: patient, study, and the outline of the chest that follows from both.

Lengths are in field units (see `canvas`); the patient's left side is at positive x.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from cxr_lightning.data.phantom.canvas import Canvas, Map, Pose, unit

Sex = Literal["Female", "Male"]
View = Literal["AP", "PA"]

APEX_LEVEL = -0.70
"""Body y of the lung apices."""
HILUM_LEVEL = -0.12
"""Body y of the hila."""
AP_HEART_MAGNIFICATION = 1.06
"""The heart is further from the detector in the AP view, so it is projected larger."""


@dataclass(frozen=True)
class Anatomy:
    """What stays the same from study to study of one patient."""

    sex: Sex
    age: int
    """Years, 18 to 90."""
    habitus: float
    """0 slender, 0.5 average, 1 obese."""
    chest_width: float
    """Half the internal width of the thorax at its widest, 0.64 to 0.80."""
    lung_base: float
    """Body y of the costophrenic angles in full inspiration in the PA view, 0.44 to 0.70."""
    chest_shape: float
    """Power of the superellipse of the chest wall: 2 narrow apices to 3.2 square shoulders."""
    dome_height: float
    """Height of the right dome over the costophrenic angle, 0.16 to 0.25."""
    rib_spacing: float
    """Distance between neighbouring ribs, 0.105 to 0.125."""
    rib_slope: float
    """Fall of a posterior rib from the spine to the chest wall, 0.22 to 0.34."""
    heart_ratio: float
    """Cardiothoracic ratio in the PA view without cardiomegaly, 0.42 to 0.45."""
    enlargement: float
    """What cardiomegaly adds to `heart_ratio`, 0.12 to 0.20."""
    heart_drop: float
    """Height of the widest part of the left heart border above the left dome, 0.06 to 0.14."""
    aortic_knob: float
    """How far the aortic knob bulges into the left lung, 0.01 to 0.06; grows with age."""
    texture_seed: int
    """Seeds the vessel trees and the soft-tissue texture."""


@dataclass(frozen=True)
class Acquisition:
    """What differs between the studies of one patient."""

    view: View
    """AP: bedside film with the patient supine; PA: patient upright."""
    pose: Pose
    inspiration: float
    """0 expiration, 1 full inspiration."""
    window_centre: float
    """Shift of the display window, attenuation units, about -0.5 to 0.5."""
    window_width: float
    """Factor on the width of the display window: larger means less contrast."""
    scatter: float
    """Scatter-to-primary ratio behind the thickest part."""
    dose: float
    """Quanta per pixel of a 128-pixel image in air."""
    marker: Literal["L", "R"] | None
    """Side letter burnt into the upper corner."""


def sample_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw a patient from a population of adults."""
    sex: Sex = "Male" if rng.random() < 0.58 else "Female"
    age = int(np.clip(rng.normal(60, 18), 18, 90))
    habitus = min(max(rng.normal(0.45, 0.25), 0.0), 1.0)
    return Anatomy(
        sex=sex,
        age=age,
        habitus=habitus,
        chest_width=rng.uniform(0.67, 0.80) - (0.03 if sex == "Female" else 0.0),
        lung_base=rng.uniform(0.52, 0.70) - 0.08 * habitus,
        chest_shape=rng.uniform(2.0, 3.2),
        dome_height=rng.uniform(0.16, 0.25),
        rib_spacing=rng.uniform(0.105, 0.125),
        rib_slope=rng.uniform(0.22, 0.34),
        heart_ratio=rng.uniform(0.42, 0.45),
        enlargement=rng.uniform(0.12, 0.20),
        heart_drop=rng.uniform(0.06, 0.14),
        aortic_knob=0.01 + 0.04 * max(0, age - 30) / 60 + rng.uniform(0, 0.01),
        texture_seed=int(rng.integers(2**31)),
    )


def sample_acquisition(rng: np.random.Generator, view: View | None = None) -> Acquisition:
    """Draw a study; without `view`, 60 % AP and 40 % PA.

    The view does not depend on the findings, unlike in CheXpert, so that it gives none away.
    """
    portable = rng.random() < 0.6 if view is None else view == "AP"
    loose = 2.0 if portable else 1.0
    return Acquisition(
        view="AP" if portable else "PA",
        pose=Pose(
            rotation=math.radians(float(rng.normal(0, 1.3 * loose))),
            shift=(rng.normal(0, 0.025 * loose), rng.normal(0, 0.03 * loose)),
            magnification=rng.uniform(0.92, 1.07) + (0.04 if portable else 0.0),
        ),
        inspiration=rng.uniform(0.35, 0.8) if portable else rng.uniform(0.7, 1.0),
        window_centre=rng.normal(0, 0.13 * loose),
        window_width=rng.uniform(0.88, 1.15) * (1.15 if portable else 1.0),
        scatter=rng.uniform(0.9, 1.5) if portable else rng.uniform(0.4, 0.9),
        dose=rng.uniform(3e4, 9e4) if portable else rng.uniform(9e4, 2e5),
        marker=(None, "L", "R")[rng.choice(3, p=[0.4, 0.35, 0.25])],
    )


def heart_to_thorax(patient: Anatomy, acquisition: Acquisition, enlarged: bool) -> float:
    """Cardiothoracic ratio as projected: 0.42 to 0.48, or more than 0.5 where `enlarged`.

    Greatest width of the heart shadow over greatest internal width of the thorax (Danzer 1919).
    """
    ratio = patient.heart_ratio + (patient.enlargement if enlarged else 0.0)
    return ratio * (AP_HEART_MAGNIFICATION if acquisition.view == "AP" else 1.0)


def _quarter(t: Map, power: float) -> Map:
    """Quarter of a superellipse: 0 at t = 0 (vertical tangent), 1 from t = 1 on."""
    rest = 1 - unit(t)
    return np.asarray(np.sqrt(1 - rest**power))


class Chest:
    """Outlines of one study as signed distances, positive inside; maps of shape (size, size).

    Attributes:
        side: +1 on the patient's left (image right), -1 on the right.
        across: Distance from the midline over the distance of the chest wall, 0 to 1.
        wall: Half the internal width of the thorax at each height.
    """

    def __init__(
        self, patient: Anatomy, acquisition: Acquisition, canvas: Canvas, enlarged: bool
    ) -> None:
        """Place the chest of `patient` on `canvas`; `enlarged` is cardiomegaly."""
        self.patient = patient
        self.acquisition = acquisition
        self.canvas = canvas
        self.portable = acquisition.view == "AP"
        self.heart_ratio = heart_to_thorax(patient, acquisition, enlarged)
        self.side: Map = np.where(canvas.x >= 0, 1, -1).astype(np.float32)
        self.off: Map = np.abs(canvas.x)
        raised = 0.22 * (1 - acquisition.inspiration) + (0.02 if self.portable else 0.0)
        self.base = patient.lung_base - 0.8 * raised
        self.dome_right = self.base - patient.dome_height - 0.25 * raised
        self.dome_left = self.dome_right + 0.045
        height = (canvas.y - APEX_LEVEL) / (0.30 - APEX_LEVEL)
        top = 0.27
        self.wall: Map = top + (patient.chest_width - top) * _quarter(height, patient.chest_shape)
        self.across: Map = unit(self.off / self.wall)

    @cached_property
    def lateral(self) -> Map:
        """Depth below the inner chest wall, apex included."""
        slope = np.gradient(self.wall, self.canvas.pixel, axis=0)
        return np.asarray((self.wall - self.off) / np.sqrt(1 + np.minimum(slope * slope, 9)))

    @cached_property
    def medial(self) -> Map:
        """Distance from the mediastinal border of the lung."""
        y, patient = self.canvas.y, self.patient
        left = self.side > 0
        apex = 0.27 - 0.17 * _quarter((y - APEX_LEVEL) / 0.22, 2.0)
        knob = patient.aortic_knob * np.exp(-(((y + 0.29) / 0.06) ** 2))
        trunk = 0.035 * np.exp(-(((y + 0.13) / 0.08) ** 2))
        border: Map = apex + np.where(left, knob + trunk, 0.02 * np.exp(-(((y + 0.2) / 0.2) ** 2)))
        return self.off - border - (0.015 if self.portable else 0.0)

    @cached_property
    def dome(self) -> Map:
        """Body y of the diaphragm at each pixel's column; the right dome stands higher."""
        top = np.where(self.side > 0, self.dome_left, self.dome_right)
        peak = 0.45
        outer = unit((self.across - peak) / (1 - peak)) ** 2
        inner = 0.35 * unit((peak - self.across) / peak) ** 2
        return np.asarray(top + (self.base - top) * (outer + inner), np.float32)

    @cached_property
    def above_diaphragm(self) -> Map:
        """Distance above the diaphragm, measured straight up but thinned where it is steep."""
        steep = 1 + 1.5 * unit(self.across - 0.7) / 0.3
        return (self.dome - self.canvas.y) / steep

    @cached_property
    def lung(self) -> Map:
        """Lung fields, 0 to 1, as if there were no heart."""
        inside = np.minimum(np.minimum(self.lateral, self.medial), self.above_diaphragm)
        return self.canvas.step(inside, 0.02)

    @cached_property
    def heart(self) -> Map:
        """Distance inside the heart shadow; its greatest width is `heart_ratio` x the thorax's.

        Right border: right atrium. Left border: from the pulmonary trunk to the ventricle's apex.
        """
        y, width = self.canvas.y, 2 * self.heart_ratio * self.patient.chest_width
        growth = self.heart_ratio / 0.45
        atrium = self.dome_right - 0.13
        fade = unit((atrium - y) / (0.10 + 0.32 * growth))
        below = unit(1 - (np.clip(y - atrium, 0, None) / 0.30) ** 2)
        right = 0.08 + (0.34 * width - 0.08) * (1 - fade * fade * (3 - 2 * fade)) * np.sqrt(below)
        ventricle = self.dome_left - self.patient.heart_drop
        rise = unit((ventricle - y) / (0.16 + 0.34 * growth))
        apex = np.sqrt(unit(1 - (np.clip(y - ventricle, 0, None) / 0.20) ** 2))
        left = 0.08 + (0.66 * width - 0.08) * (1 - rise * rise * (3 - 2 * rise)) * apex
        inside = np.minimum(self.canvas.x + right, 0.8 * (left - self.canvas.x))
        return np.asarray(np.minimum(inside, y + 0.40), np.float32)
