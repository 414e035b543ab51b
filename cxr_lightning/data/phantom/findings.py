"""What a radiograph shows, how CheXpert would label it, and how a radiologist would word it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

Side = Literal["left", "right", "bilateral"]
Size = Literal["small", "moderate", "large"]
Lobe = Literal["upper", "middle", "lower"]
Device = Literal["endotracheal tube", "central line", "pacemaker", "ECG leads"]

OBSERVATIONS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""CheXpert's column order (Irvin et al. 2019, arXiv 1901.07031). Equal to
`cxr_lightning.types.OBSERVATIONS`, repeated so that the phantom needs no torch."""

UNCERTAIN_SHARE = {
    "Cardiomegaly": 0.15,
    "Lung Opacity": 0.05,
    "Consolidation": 0.50,
    "Pneumonia": 0.35,
    "Pneumothorax": 0.10,
    "Pleural Effusion": 0.10,
}
"""Share of true findings that `labels` calls uncertain (-1): the order of CheXpert's, but lower
for pneumonia and consolidation (there 0.76 and 0.65), so that positives are not too rare."""

ABSENT_SHARE = {
    "Enlarged Cardiomediastinum": 0.11,
    "Cardiomegaly": 0.06,
    "Lung Opacity": 0.06,
    "Lung Lesion": 0.01,
    "Edema": 0.13,
    "Consolidation": 0.16,
    "Pneumonia": 0.01,
    "Atelectasis": 0.01,
    "Pneumothorax": 0.28,
    "Pleural Effusion": 0.28,
    "Fracture": 0.01,
    "Support Devices": 0.06,
}
"""Share of absent findings that `labels` states as absent (0); the rest is blank. Rounded from
the zeros and blanks of CheXpert's train.csv."""


@dataclass(frozen=True)
class Effusion:
    """Pleural effusion."""

    side: Side
    size: Size
    """small: blunted angle; moderate: up to mid-zone; large: most of the hemithorax."""

    def __post_init__(self) -> None:
        """Check the values."""
        _check("Effusion.side", self.side, get_args(Side))
        _check("Effusion.size", self.size, get_args(Size))


@dataclass(frozen=True)
class Pneumonia:
    """Lobar or patchy pneumonia."""

    side: Side
    lobe: Lobe
    """Only the right lung has a middle lobe."""

    def __post_init__(self) -> None:
        """Check the values."""
        _check("Pneumonia.side", self.side, get_args(Side))
        _check("Pneumonia.lobe", self.lobe, get_args(Lobe))
        if self.lobe == "middle" and self.side != "right":
            raise ValueError(
                f"Pneumonia.lobe is 'middle' with side {self.side!r}, but only the right lung has "
                "a middle lobe; use side 'right', or lobe 'upper' or 'lower'"
            )


@dataclass(frozen=True)
class Pneumothorax:
    """Pneumothorax of one side."""

    side: Literal["left", "right"]
    size: Size

    def __post_init__(self) -> None:
        """Check the values."""
        _check("Pneumothorax.side", self.side, ("left", "right"))
        _check("Pneumothorax.size", self.size, get_args(Size))


@dataclass(frozen=True)
class Findings:
    """Truth of one radiograph; without arguments: no finding."""

    effusion: Effusion | None = None
    pneumonia: Pneumonia | None = None
    pneumothorax: Pneumothorax | None = None
    cardiomegaly: bool = False
    devices: frozenset[Device] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        """Check the devices."""
        for device in self.devices:
            _check("Findings.devices", device, get_args(Device))

    @property
    def normal(self) -> bool:
        """CheXpert's No Finding: no pathology; devices do not count."""
        return not (self.effusion or self.pneumonia or self.pneumothorax or self.cardiomegaly)


def _check(argument: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{argument} is {value!r}; use one of {', '.join(allowed)}")


def sides(side: Side) -> tuple[int, ...]:
    """Signs of body x: left +1, right -1."""
    return {"left": (1,), "right": (-1,), "bilateral": (1, -1)}[side]


def sample_findings(rng: np.random.Generator, portable: bool) -> Findings:
    """Draw the truth of one radiograph.

    30 % no finding, 25 % pneumonia, 30 % effusion, 10 % both, 5 % neither but cardiomegaly or
    pneumothorax, which also accompany the others. Of both, the effusion never hides the pneumonia.

    Args:
        rng: Source of randomness.
        portable: Bedside film: devices are commoner.
    """
    kinds = ("normal", "pneumonia", "effusion", "both", "other")
    kind = kinds[rng.choice(5, p=[0.30, 0.25, 0.30, 0.10, 0.05])]
    devices = _sample_devices(rng, portable)
    if kind == "normal":
        return Findings(devices=devices)
    cardiomegaly = rng.random() < (0.5 if kind == "other" else 0.15)
    collapsed = not cardiomegaly if kind == "other" else rng.random() < 0.05
    effusion, pneumonia = _sample_effusion(rng), _sample_pneumonia(rng)
    while kind == "both" and _hides(effusion, pneumonia):
        effusion, pneumonia = _sample_effusion(rng), _sample_pneumonia(rng)
    return Findings(
        effusion=effusion if kind in ("effusion", "both") else None,
        pneumonia=pneumonia if kind in ("pneumonia", "both") else None,
        pneumothorax=_sample_pneumothorax(rng) if collapsed else None,
        cardiomegaly=cardiomegaly,
        devices=devices,
    )


def _hides(effusion: Effusion, pneumonia: Pneumonia) -> bool:
    """Whether fluid covers the infiltrate, so that nobody could see it."""
    deep = effusion.size == "large" or (effusion.size == "moderate" and pneumonia.lobe != "upper")
    return deep and bool(set(sides(effusion.side)) & set(sides(pneumonia.side)))


def _sample_effusion(rng: np.random.Generator) -> Effusion:
    side = get_args(Side)[rng.choice(3, p=[0.35, 0.35, 0.30])]
    return Effusion(side, get_args(Size)[rng.choice(3, p=[0.3, 0.4, 0.3])])


def _sample_pneumonia(rng: np.random.Generator) -> Pneumonia:
    side = get_args(Side)[rng.choice(3, p=[0.35, 0.45, 0.20])]
    share = [0.3, 0.25, 0.45] if side == "right" else [0.35, 0.0, 0.65]
    return Pneumonia(side, get_args(Lobe)[rng.choice(3, p=share)])


def _sample_pneumothorax(rng: np.random.Generator) -> Pneumothorax:
    return Pneumothorax(
        "left" if rng.random() < 0.5 else "right",
        get_args(Size)[rng.choice(3, p=[0.4, 0.35, 0.25])],
    )


def _sample_devices(rng: np.random.Generator, portable: bool) -> frozenset[Device]:
    share = (0.20, 0.35, 0.08, 0.35) if portable else (0.0, 0.06, 0.06, 0.03)
    present = rng.random(4) < share
    return frozenset(d for d, there in zip(get_args(Device), present, strict=True) if there)


def truth(findings: Findings) -> dict[str, float]:
    """State of all 14 observations as 1 or 0, as CheXpert's radiologists label its valid set."""
    present = {
        "No Finding": findings.normal,
        "Cardiomegaly": findings.cardiomegaly,
        "Enlarged Cardiomediastinum": findings.cardiomegaly,
        "Lung Opacity": findings.pneumonia is not None,
        "Consolidation": findings.pneumonia is not None,
        "Pneumonia": findings.pneumonia is not None,
        "Pneumothorax": findings.pneumothorax is not None,
        "Pleural Effusion": findings.effusion is not None,
        "Support Devices": bool(findings.devices),
    }
    return {name: float(present.get(name, False)) for name in OBSERVATIONS}


def labels(findings: Findings, rng: np.random.Generator) -> dict[str, float]:
    """Label the 14 observations as CheXpert's automatic labeller labels its train set.

    A finding that is there is 1, or -1 (uncertain) with the share of `UNCERTAIN_SHARE`. Of those
    not there, the share of `ABSENT_SHARE` is 0, the rest NaN (not mentioned). No Finding is 1 or
    NaN only. Consolidation and Enlarged Cardiomediastinum, which a report often words otherwise,
    are mentioned half of the time.

    Args:
        findings: The truth.
        rng: Source of randomness.

    Returns:
        1, 0, -1 or NaN by observation, in CheXpert's order.
    """
    draws = rng.random((len(OBSERVATIONS), 2))
    result: dict[str, float] = {}
    for (name, there), (mention, doubt) in zip(truth(findings).items(), draws, strict=True):
        if name == "No Finding":
            result[name] = 1.0 if there else math.nan
        elif not there:
            result[name] = 0.0 if mention < ABSENT_SHARE.get(name, 0.0) else math.nan
        elif name in ("Consolidation", "Enlarged Cardiomediastinum") and mention < 0.5:
            result[name] = math.nan
        else:
            result[name] = -1.0 if doubt < UNCERTAIN_SHARE.get(name, 0.0) else 1.0
    return result


def report(findings: Findings) -> str:
    """Word the findings as one line of a radiology report, with side and severity."""
    if findings.normal:
        sentences = ["No acute cardiopulmonary abnormality."]
    else:
        sentences = [_effusion_text(findings.effusion), _pneumothorax_text(findings.pneumothorax)]
        sentences += [_opacity_text(findings.pneumonia), _heart_text(findings.cardiomegaly)]
    if findings.devices:
        names = ", ".join(d for d in get_args(Device) if d in findings.devices)
        sentences.append(f"{names[0].upper()}{names[1:]} in place.")
    return " ".join(sentences)


def _effusion_text(effusion: Effusion | None) -> str:
    if effusion is None:
        return "No pleural effusion."
    plural = "s" if effusion.side == "bilateral" else ""
    return f"{effusion.size.capitalize()} {effusion.side} pleural effusion{plural}."


def _pneumothorax_text(pneumothorax: Pneumothorax | None) -> str:
    if pneumothorax is None:
        return "No pneumothorax."
    return f"{pneumothorax.size.capitalize()} {pneumothorax.side} pneumothorax."


def _opacity_text(pneumonia: Pneumonia | None) -> str:
    if pneumonia is None:
        return "No focal consolidation."
    plural = "s" if pneumonia.side == "bilateral" else ""
    place = f"{pneumonia.side} {pneumonia.lobe} lobe{plural}"
    return f"Patchy opacity in the {place}, consistent with pneumonia."


def _heart_text(cardiomegaly: bool) -> str:
    return "The heart is enlarged." if cardiomegaly else "Heart size is normal."
