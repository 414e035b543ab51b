"""The 14 labels of NIH ChestX-ray14 as observations (Wang et al. 2017, arXiv 1705.02315)."""

import numpy as np
from jaxtyping import Bool, Float

from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS

NIH_LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
"""The labels in the column order of ChestMNIST."""

COUNTERPARTS = {
    "Atelectasis": ("Atelectasis",),
    "Cardiomegaly": ("Cardiomegaly",),
    "Pleural Effusion": ("Effusion",),
    "Lung Lesion": ("Mass", "Nodule"),
    "Pneumonia": ("Pneumonia",),
    "Pneumothorax": ("Pneumothorax",),
    "Consolidation": ("Consolidation",),
    "Edema": ("Edema",),
    "Pleural Other": ("Pleural_Thickening",),
}
"""Observation -> labels: absent where none of them is set. Emphysema, Fibrosis and Hernia have no
counterpart; Infiltration is treated apart."""


def map_nih(labels: Bool[np.ndarray, "n 14"]) -> Float[np.ndarray, "n 14"]:
    """Observations from the `NIH_LABELS` of images, of which every image has all 14.

    No Finding is 1 where none is set, else blank (NaN). Infiltration is a Lung Opacity; without it,
    Lung Opacity is 0 only where none is set, else blank, since other labels may be opacities too.
    Enlarged Cardiomediastinum, Fracture and Support Devices are not annotated.
    """
    observations = np.full((len(labels), len(OBSERVATIONS)), NOT_ANNOTATED)
    for observation, names in COUNTERPARTS.items():
        columns = [NIH_LABELS.index(name) for name in names]
        observations[:, OBSERVATIONS.index(observation)] = labels[:, columns].any(axis=1)
    none = ~labels.any(axis=1)
    opacity = np.where(labels[:, NIH_LABELS.index("Infiltration")], 1.0, np.nan)
    observations[:, OBSERVATIONS.index("No Finding")] = np.where(none, 1.0, np.nan)
    observations[:, OBSERVATIONS.index("Lung Opacity")] = np.where(none, 0.0, opacity)
    return observations
