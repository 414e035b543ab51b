"""Procedural phantom: frontal chest radiographs whose findings are known, in CheXpert's layout."""

from cxr_lightning.data.phantom.anatomy import (
    Acquisition,
    Anatomy,
    heart_to_thorax,
    sample_acquisition,
    sample_anatomy,
)
from cxr_lightning.data.phantom.dataset import write_phantom
from cxr_lightning.data.phantom.findings import (
    Effusion,
    Findings,
    Pneumonia,
    Pneumothorax,
    labels,
    report,
    sample_findings,
    truth,
)
from cxr_lightning.data.phantom.radiograph import render

__all__ = [
    "Acquisition",
    "Anatomy",
    "Effusion",
    "Findings",
    "Pneumonia",
    "Pneumothorax",
    "heart_to_thorax",
    "labels",
    "render",
    "report",
    "sample_acquisition",
    "sample_anatomy",
    "sample_findings",
    "truth",
    "write_phantom",
]
