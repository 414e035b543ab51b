"""Names, explanations and numbers as the report writes them."""

import json
import math
from typing import Literal, NamedTuple

from cxr_lightning.evaluation.records import OVERALL
from cxr_lightning.report.read import Measurement

Kind = Literal["distance", "share", "signed", "count"]


class Metric(NamedTuple):
    """What the report says of a metric.

    Attributes:
        axis: Where it belongs.
        title: Its name.
        meaning: What it is, in one plain sentence without a full stop.
        kind: A distance starts at 0, a share lies between 0 and 1, a signed number around 0.
    """

    axis: str
    title: str
    meaning: str
    kind: Kind = "distance"


AXES = {
    "fidelity": "Fidelity",
    "representation": "Representation",
    "condition": "Conditions",
    "utility": "Utility",
    "privacy": "Privacy",
}

_FIDELITY = {
    "fid": ("Fréchet distance (FID)", "between the feature distributions of both sets", "distance"),
    "fid_equal_n": (
        "FID at equal n",
        "every condition cut to the same number of images, so that conditions can be compared",
        "distance",
    ),
    "fid_infinity": (
        "FID at infinite n",
        "extrapolated to infinitely many images, which takes away the bias of few images",
        "distance",
    ),
    "kid": ("Kernel distance (KID)", "mean over subsets; unbiased for few images too", "signed"),
    "precision": ("Precision", "share of synthetic images that lie among real ones", "share"),
    "recall": ("Recall", "share of real images that lie among synthetic ones", "share"),
    "density": ("Density", "how densely real images surround the synthetic ones", "distance"),
    "coverage": ("Coverage", "share of real images with a synthetic one close by", "share"),
    "embedding_diversity": ("Diversity", "mean distance between images of the set", "distance"),
    "ms_ssim": (
        "Likeness within the set (MS-SSIM)",
        "structural likeness of two images of one condition; more than real = less variety",
        "share",
    ),
    "histogram_distance": ("Grey-level distance", "between the histograms", "distance"),
    "spectral_distance": ("Spectral distance", "between the mean power spectra", "distance"),
}
_REPRESENTATION = {
    "rrs": ("RRS", "1 − cos of the embeddings of an original and its reconstruction", "distance"),
    "rrs_floor_pixel": (
        "Resize round trip",
        "the same for a harmless change of pixels",
        "distance",
    ),
    "rrs_floor_augment": (
        "Two views of one image",
        "the same for two random crops and turns of it",
        "distance",
    ),
    "rrs_vae": ("Autoencoder alone", "the same without the denoiser", "distance"),
    "rrs_ceil_view": (
        "Other patient, same condition and view",
        "the same for two patients of one view, who differ less where a condition mixes views",
        "distance",
    ),
    "rrs_ceil_same": ("Other patient, same condition", "the same for two patients", "distance"),
    "rrs_ceil_random": ("Any other patient", "the same for any two patients", "distance"),
    "nrrs": ("RRS / same condition", "1 = no closer than another patient", "distance"),
}
_CONDITION = {
    "auroc": (
        "Finding recognised (AUROC)",
        "how well a classifier of real images tells images with the finding from others",
        "share",
    ),
    "accuracy": ("Finding recognised (accuracy)", "the same at one threshold", "share"),
    "presence": (
        "Finding present",
        "share of the images made for a finding in which the classifier sees it",
        "share",
    ),
    "calibration_error": (
        "Calibration error",
        "how far the classifier's confidence is from the frequency of the finding",
        "distance",
    ),
    "brier": ("Brier score", "mean squared error of the classifier's probabilities", "distance"),
    "view_agreement": ("View as asked for", "share of images with the requested view", "share"),
    "sex_agreement": ("Sex as asked for", "share of images that show the requested sex", "share"),
    "age_agreement": ("Age as asked for", "share of images near the requested age", "share"),
    "age_error": ("Age error", "mean difference from the requested age", "distance"),
}
_UTILITY = {
    "utility_auroc": (
        "AUROC on held-out real patients",
        "of a classifier trained this way",
        "share",
    ),
    "utility_gain": (
        "Gain in AUROC",
        "over the classifier trained on the same real images alone",
        "signed",
    ),
}
_PRIVACY = {
    "nearest_train": ("Distance to the nearest training image", "median", "distance"),
    "nearest_held_out": (
        "Distance to the nearest held-out image",
        "median; fewer held-out than training images make it larger",
        "distance",
    ),
    "closer_to_train": (
        "Closer to training than to held-out images",
        "share at equal numbers of both; a half without copying",
        "share",
    ),
    "authenticity": (
        "Authenticity",
        "share farther from the nearest training image than that one is from its own neighbour",
        "share",
    ),
    "data_copying": (
        "Data copying (C_T)",
        "below 0 = nearer to training images than held-out ones are; blur does it too",
        "signed",
    ),
    "copy_rate": ("Copies", "share flagged at a fixed rate of false positives", "distance"),
    "copy_rate_relative": (
        "Copies, by relative distance",
        "the same, with the distance over that to the next training images of other patients",
        "distance",
    ),
    "nearer_than_any": ("Nearer than any held-out image", "number, by relative distance", "count"),
    "exact_copies": ("Exact copies", "number that equal a training image", "count"),
    "copied_images": ("Training images with a flagged copy", "number", "count"),
    "copied_patients": ("Training patients with a flagged copy", "number", "count"),
    "reid_score": ("Re-identification score", "highest of each image, mean", "share"),
    "reid_rate": ("Re-identified", "share of images above the threshold", "distance"),
}
METRICS: dict[str, Metric] = {
    name: Metric(axis, *entry)  # type: ignore[arg-type]
    for axis, part in zip(
        AXES, (_FIDELITY, _REPRESENTATION, _CONDITION, _UTILITY, _PRIVACY), strict=True
    )
    for name, entry in part.items()
}
"""Metrics that the report has words for, in its order; others appear among all records."""

SPACE = "\u00a0"
"""A space at which no line ends."""

SMALLEST = 5e-7
"""Below it six decimals are all zero."""

DIRECTIONS = {
    "lower": "lower is better",
    "higher": "higher is better",
    "equal": "best where real images are",
}


def label(condition: str) -> str:
    """`pleural_effusion+edema` as `Pleural effusion + edema`."""
    if condition == OVERALL:
        return "All conditions"
    text = " + ".join(condition.replace("_", " ").split("+"))
    return text[:1].upper() + text[1:]


def subgroup_label(subgroup: str) -> str:
    """`view=PA` as `View PA`, `sex=Female` as `Female`, `age=40-59` with a dash."""
    if subgroup == OVERALL:
        return "All patients"
    kind, equals, value = subgroup.partition("=")
    if kind == "sex" and equals:
        return value
    return f"{kind.capitalize()} {value.replace('-', '–')}" if equals else subgroup


def metric_title(metric: str) -> str:
    """The name of a metric."""
    return METRICS[metric].title if metric in METRICS else metric.replace("_", " ")


def number(value: float | None) -> str:
    """A number with at least three significant digits but no more than six decimals, or a dash."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) < SMALLEST:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    text = f"{value:,.{min(max(3 - max(magnitude, 1), 2 - magnitude, 0), 6)}f}"
    return text.replace("-", "−")


def percent(share: float) -> str:
    """`0.014` as `1.4 %`, not broken at the end of a line; only all is `100 %`."""
    value = round(100 * share, 6)
    if value == round(value):
        text = f"{value:.0f}"
    elif 99 < value < 100:
        text = f"{min(value, 99.9):.1f}"
    elif abs(value) >= 10:
        text = f"{value:.0f}"
    else:
        text = f"{value:.1f}" if f"{value:.2g}".isdigit() else f"{value:.2g}"
    return f"{text}{SPACE}%"


def value_text(record: Measurement, value: float | None) -> str:
    """A number of a record with its unit; counts have no decimals."""
    if _is_count(record) and value is not None:
        return f"{value:,.0f}"
    unit = f" {record.unit}" if record.unit and value is not None else ""
    return number(value) + unit


def range_text(record: Measurement, low: float | None, high: float | None) -> str:
    """`0.9 to 1.1`; counts have no decimals; empty where there is no range."""
    if low is None or high is None:
        return ""
    if _is_count(record):
        return f"{low:,.0f} to {high:,.0f}"
    return f"{number(low)} to {number(high)}"


def _is_count(record: Measurement) -> bool:
    return record.metric in METRICS and METRICS[record.metric].kind == "count"


def fact(value: object) -> str:
    """A value of a card in words."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {fact(part)}" for key, part in value.items()) or "–"
    if isinstance(value, list):
        return ", ".join(fact(part) for part in value) or "–"
    return str(value)


def as_json(value: object) -> str:
    """A value as indented JSON."""
    return json.dumps(value, indent=1, ensure_ascii=False)
