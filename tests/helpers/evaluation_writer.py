"""Writes what `cxr evaluate` writes: folders for tests of the report, with all axes or few."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cxr_lightning.evaluation.records import (
    OVERALL,
    PIXELS,
    Better,
    Floor,
    Record,
    Skipped,
    Source,
)

ENCODER = Source("encoder", "e1" * 32, "128 pixels, antialiased; [-1, 1]")
HELD_OUT = Source("encoder_held_out", "e2" * 32, "128 pixels, antialiased; [-1, 1]")
FIXED = Source("fixed", "f1" * 32, "64 pixels")
CLASSIFIER = Source("classifier", "c1" * 32, "as prepared")
CONDITIONS = ("healthy", "pneumonia", "pleural_effusion", "pneumonia+pleural_effusion")
FINDINGS = ("pneumonia", "pleural_effusion", "edema")
SUBGROUPS = ("view=AP", "view=PA", "sex=Female", "sex=Male", "age=40-59", "age=80+")
AXES = ("fidelity", "representation", "condition", "utility", "privacy")

DISTANCES: dict[str, tuple[float, float, Better, str]] = {
    "fid": (14.2, 9.1, "lower", ""),
    "fid_equal_n": (17.9, 11.8, "lower", ""),
    "fid_infinity": (12.6, 7.9, "lower", ""),
    "kid": (0.0021, -0.0002, "lower", ""),
    "precision": (0.71, 0.78, "higher", ""),
    "recall": (0.52, 0.74, "higher", ""),
    "density": (0.93, 0.99, "higher", ""),
    "coverage": (0.81, 0.9, "higher", ""),
    "embedding_diversity": (0.301, 0.334, "equal", ""),
}
IN_PIXELS: dict[str, tuple[float, float, Better, str]] = {
    "ms_ssim": (0.31, 0.27, "equal", ""),
    "histogram_distance": (6.4, 3.1, "lower", "grey levels"),
    "spectral_distance": (1.9, 0.62, "lower", "dB"),
}
CLASSIFIED: dict[str, tuple[float, float, Better, str]] = {
    "auroc": (0.81, 0.79, "higher", ""),
    "accuracy": (0.74, 0.73, "higher", ""),
    "presence": (0.69, 0.66, "higher", ""),
    "calibration_error": (0.061, 0.042, "lower", ""),
    "brier": (0.17, 0.155, "lower", ""),
}
AGREEMENT: dict[str, tuple[float, float, Better, str]] = {
    "view_agreement": (0.98, 0.99, "higher", ""),
    "sex_agreement": (0.83, 0.92, "higher", ""),
    "age_error": (9.4, 7.2, "lower", "years"),
    "age_agreement": (0.61, 0.72, "higher", ""),
}
SCORES = {
    "rrs": 0.0351,
    "rrs_floor_pixel": 0.0012,
    "rrs_floor_augment": 0.0614,
    "rrs_vae": 0.0832,
    "rrs_ceil_same": 0.2514,
    "rrs_ceil_random": 0.3017,
    "nrrs": 0.1396,
}


class _Maker:
    """Records with a little noise; `shift` > 1 makes distances larger and shares smaller."""

    def __init__(self, shift: float, seed: int) -> None:
        self.shift = shift
        self.random = np.random.default_rng(seed)
        self.records: list[Record] = []

    def add(
        self,
        axis: str,
        metric: str,
        numbers: tuple[float, float | None, Better | None, str],
        source: Source,
        at_n: bool = False,
        **where: Any,
    ) -> None:
        """Adds a record with interval and floor."""
        value, floor, better, unit = numbers
        worse = self.shift if better == "lower" else 1 / self.shift
        value = value * worse * self.random.uniform(0.93, 1.07)
        value = min(value, 0.99) if better == "higher" and value < 1.2 else value
        spread = 0.09 * abs(value)
        facts: dict[str, Any] = {"n_real": 412, "n_synthetic": 250} | where
        made = None
        if floor is not None:
            ends = (floor - 0.12 * abs(floor), floor + 0.12 * abs(floor))
            shifted = value + 0.4 * floor if at_n else None
            made = Floor(
                floor, *ends, 61 if at_n else None, shifted, "real against real: 10 splits"
            )
        self.records.append(
            Record(
                axis,
                metric,
                value,
                source=source,
                interval=(value - spread, value + spread),
                floor=made,
                better=better,
                unit=unit,
                **facts,
            )
        )


def full_metrics(shift: float = 1.0, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Content of metrics.json with all axes, curves and pairs."""
    maker = _Maker(shift, seed)
    _fidelity(maker)
    _representation(maker)
    _condition(maker)
    _utility(maker)
    _privacy(maker)
    skipped = [
        Skipped("representation", "rrs", "edema", "no real image of it in the held-out split"),
        Skipped("condition", "age_agreement", "healthy", "the real images state no age"),
    ]
    return minimal_metrics(
        real={
            "source": "chexpert",
            "sha256": "aa" * 32,
            "size": 64,
            "count": 1850,
            "patients": 1204,
            "splits": {"train": 1400, "valid": 210, "test": 240},
            "resize": {"filter": "area", "crop": "centre"},
            "is_training_data": True,
        },
        synthetic={
            "count": 1000,
            "sha256": "ab" * 32,
            "labelled": True,
            "failures": {},
            "notes": ["64 pixels as generated"],
            "product_sha256": f"b{seed}" * 32,
            "seed": 0,
            "sampler": "unipc",
            "steps": 20 + seed,
            "guidance": 1.5,
            "size": 64,
        },
        axes=[*AXES],
        command="cxr evaluate --real prepared --synthetic synthetic --generator product --out out",
        encoder="e1" * 32,
        generator=f"d{seed}" * 32,
        generator_card={
            "version": "0.1.0",
            "step": 20000,
            "data": "aa" * 32,
            "parents": {"generator": "d9" * 32, "encoder": "e1" * 32},
            "metrics": {"finetune/valid/loss": 0.0412},
        },
        extractors=[
            asdict(ENCODER) | {"num_features": 128},
            asdict(FIXED) | {"num_features": 64},
        ],
        conditions=[
            {"name": name, "definition": f"{name} = 1", "n_real": 412, "n_synthetic": 250}
            for name in CONDITIONS
        ],
        records=[record.as_json() for record in maker.records],
        skipped=[asdict(entry) for entry in skipped],
        curves=_curves(shift),
        pairs=_pairs(),
        **changes,
    )


def minimal_metrics(**parts: Any) -> dict[str, Any]:
    """Content of metrics.json with the FID of one condition and nothing else."""
    record = Record("fidelity", "fid", 41.7, 40, 30, ENCODER, "pneumonia", interval=(35.0, 49.0))
    return {
        "format": 2,
        "version": "0.1.0",
        "axes": ["fidelity"],
        "real": {"sha256": "aa" * 32, "size": 64, "is_training_data": True},
        "synthetic": {"count": 30},
        "settings": {"split": "all", "bootstrap": 200, "seed": 0},
        "extractors": [asdict(ENCODER) | {"num_features": 128}],
        "conditions": [{"name": "pneumonia"}],
        "records": [record.as_json()],
        "skipped": [],
    } | parts


def write_evaluation(folder: Path, metrics: dict[str, Any] | None = None) -> Path:
    """Writes a folder with metrics.json, grids of its conditions and pictures of its pairs."""
    metrics = metrics or full_metrics()
    for name in ("grids", "pairs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    for i, condition in enumerate(metrics.get("conditions") or []):
        kinds = ("original", "generated", "reconstruction")[: 3 if i < 3 else 2]
        for j, kind in enumerate(kinds):
            _save(folder / "grids" / f"{condition['name']}_{kind}.png", 2, 4, 10 * i + j)
    for i, pair in enumerate(metrics.get("pairs") or []):
        _save(folder / "pairs" / f"{pair['picture']}.png", 1, 3, 100 + i)
    return folder


def _save(file: Path, rows: int, columns: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    sheet = np.zeros((rows * 65 - 1, columns * 65 - 1), dtype=np.uint8)
    for i in range(rows * columns):
        top, left = i // columns * 65, i % columns * 65
        sheet[top : top + 64, left : left + 64] = _chest(random)
    Image.fromarray(sheet).save(file)


def _chest(random: np.random.Generator) -> np.ndarray:
    """Two dark lungs and a bright heart."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    image = 150 - 90 * (x**2 + 0.4 * y**2) + random.normal(0, 5, (64, 64))
    for side in (-0.45, 0.45):
        middle = side + random.uniform(-0.05, 0.05)
        image -= 95 * np.exp(-(((x - middle) / 0.3) ** 4) - ((y + 0.05) / 0.65) ** 4)
    image += 70 * np.exp(-(((x - 0.12) / 0.25) ** 2) - ((y - 0.3) / 0.3) ** 2)
    return np.asarray(image.clip(0, 255), dtype=np.uint8)


def _fidelity(maker: _Maker) -> None:
    for condition in (OVERALL, *CONDITIONS):
        for source in (ENCODER, FIXED):
            for metric, numbers in DISTANCES.items():
                maker.add("fidelity", metric, numbers, source, "fid" in metric, condition=condition)
        for metric, numbers in IN_PIXELS.items():
            maker.add("fidelity", metric, numbers, PIXELS, True, condition=condition)
    for subgroup in SUBGROUPS:
        for metric in ("fid", "precision", "recall"):
            maker.add("fidelity", metric, DISTANCES[metric], ENCODER, True, subgroup=subgroup)


def _representation(maker: _Maker) -> None:
    for condition in CONDITIONS[:3]:
        for source in (ENCODER, HELD_OUT):
            for metric, value in SCORES.items():
                floor = 0.0012 if metric == "rrs" else None
                numbers = (value, floor, None, "")
                maker.add("representation", metric, numbers, source, condition=condition)


def _condition(maker: _Maker) -> None:
    for finding in FINDINGS:
        for metric, numbers in CLASSIFIED.items():
            maker.add("condition", metric, numbers, CLASSIFIER, condition=finding)
    for metric, numbers in AGREEMENT.items():
        maker.add("condition", metric, numbers, CLASSIFIER)
    for subgroup in ("view=AP", "view=PA"):
        where = {"condition": "pneumonia", "subgroup": subgroup}
        maker.add("condition", "auroc", CLASSIFIED["auroc"], CLASSIFIER, **where)
    joint = {
        "joint_all": (0.41, 0.55),
        "joint_only_pneumonia": (0.22, 0.18),
        "joint_only_pleural_effusion": (0.3, 0.2),
        "joint_none": (0.07, 0.07),
    }
    for metric, (value, floor) in joint.items():
        numbers = (value, floor, None, "")
        maker.add("condition", metric, numbers, CLASSIFIER, condition=CONDITIONS[3])


def _utility(maker: _Maker) -> None:
    gains = {"real": 0.0, "synthetic": -0.05, "mixed": 0.012, "augmented": 0.02, "pretrained": 0.03}
    gains |= {"continued": 0.004}

    def add(metric: str, regime: str, fraction: float, value: float, **where: Any) -> None:
        details = {"regime": regime, "fraction": fraction, "seeds": 3, "images": 500}
        ends = (value - 0.01, value + 0.01)
        facts: dict[str, Any] = {"source": CLASSIFIER, "interval": ends, "details": details}
        if metric == "utility_gain":
            facts |= {"floor": Floor(0.0, 0.0, 0.0), "better": "higher"}
        maker.records.append(Record("utility", metric, value, 240, 1000, **facts, **where))

    add("utility_auroc", "synthetic", 0.0, 0.66)
    for fraction, base in ((0.1, 0.68), (0.5, 0.75), (1.0, 0.79)):
        for regime, best in gains.items():
            gain = best * (1.3 - fraction) / maker.shift
            if regime != "synthetic":
                add("utility_auroc", regime, fraction, base + gain)
            if regime not in ("real", "continued"):
                add("utility_gain", regime, fraction, gain)
    for regime in ("real", "augmented"):
        add("utility_auroc", regime, 1.0, 0.8, condition="pneumonia")
        add("utility_auroc", regime, 1.0, 0.77, subgroup="view=PA")


def _privacy(maker: _Maker) -> None:
    numbers: dict[str, tuple[float, float | None, Better | None, str]] = {
        "nearest_train": (0.134, None, None, ""),
        "nearest_held_out": (0.137, None, None, ""),
        "closer_to_train": (0.52, 0.5, "lower", ""),
        "authenticity": (0.87, 0.86, "higher", ""),
        "data_copying": (0.4, 0.0, "higher", ""),
    }
    for source in (ENCODER, PIXELS):
        for metric, entry in numbers.items():
            maker.add("privacy", metric, entry, source)
        rate = 0.008 if maker.shift < 1.2 else 0.042
        maker.records.append(
            Record(
                "privacy", "copy_rate", rate, 1400, 1000, source,
                interval=(rate - 0.004, rate + 0.005), floor=Floor(0.01, 0.01, 0.01),
                better="lower", details={"false_positive_rate": 0.01, "threshold": 0.07},
            )
        )  # fmt: skip
        for metric, count in (("copied_images", 8.0), ("copied_patients", 3.0)):
            facts = {"floor": Floor(10.0, 2.0, 22.0), "better": "lower"}
            maker.records.append(Record("privacy", metric, count, 1400, 1000, source, **facts))
        by_sex = Record("privacy", "copied_patients", 2.0, 700, 1000, source, subgroup="sex=Male")
        maker.records.append(by_sex)


def _curves(shift: float) -> dict[str, Any]:
    greys = np.linspace(0, 1, 64)
    cycles = np.arange(1, 33)

    def shares(middle: float) -> list[float]:
        bump = np.exp(-(((greys - middle) / 0.16) ** 2)) + 0.4 * np.exp(-((greys / 0.1) ** 2))
        return [float(v) for v in bump / bump.sum()]

    def points(slope: float) -> dict[str, Any]:
        confidence = np.linspace(0.05, 0.95, 8)
        frequency = np.clip(confidence**slope, 0, 1)
        return {"confidence": [*confidence], "frequency": [*frequency], "count": [20] * 8}

    def heap(middle: float) -> list[int]:
        return [int(v) for v in 300 * np.exp(-(((np.arange(30) - middle) / 6) ** 2))]

    counts = [100, 140, 250, 500, 1000]
    fids = {
        condition: {
            "n": counts,
            "fid": [12.6 * shift + 900 / n for n in counts],
            "value": 12.6 * shift,
        }
        for condition in (OVERALL, *CONDITIONS)
    }
    return {
        "histogram": {
            c: {"real": shares(0.5), "synthetic": shares(0.45 + 0.1 * (shift - 1))}
            for c in (OVERALL, *CONDITIONS)
        },
        "power_spectrum": {
            c: {
                "real": [float(v) for v in 4000 / cycles**2.4],
                "synthetic": [float(v) for v in 4000 * shift / cycles**2.7],
            }
            for c in (OVERALL, *CONDITIONS)
        },
        "fid_infinity": {"encoder": fids, "fixed": {OVERALL: fids[OVERALL]}},
        "calibration": {f: {"real": points(1.1), "synthetic": points(1.5)} for f in FINDINGS},
        "nearest": {
            space: {
                "edges": [*np.linspace(0, 0.3, 31)],
                "synthetic_train": heap(14 / shift),
                "held_out_train": heap(15),
            }
            for space in ("encoder", "pixels")
        },
    }


def _pairs() -> list[dict[str, Any]]:
    return [
        {
            "picture": f"pair_encoder_{rank}",
            "space": "encoder",
            "rank": rank,
            "condition": CONDITIONS[rank % 3],
            "synthetic": f"train/patient{rank:05d}/study1/view1_frontal.png",
            "train_row": 17 * rank,
            "distance_train": 0.04 + 0.006 * rank,
            "distance_held_out": 0.09 + 0.004 * rank,
            "relative": 0.4 + 0.05 * rank,
            "flagged": rank in (1, 3),
        }
        for rank in range(1, 9)
    ]
