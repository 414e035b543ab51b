"""What stands around the numbers: cautions, and the cards of data, models and settings."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from cxr_lightning.evaluation.records import OVERALL
from cxr_lightning.report.read import Evaluation, Measurement, unique
from cxr_lightning.report.words import (
    METRICS,
    as_json,
    fact,
    label,
    metric_title,
    subgroup_label,
)

Facts = list[tuple[str, list[str]]]

DATA = {
    "Real data": ("real", "source"),
    "Real images": ("real", "count"),
    "Patients": ("real", "patients"),
    "Images by split": ("real", "splits"),
    "Image size (pixels)": ("real", "size"),
    "Resize": ("real", "resize"),
    "Real images sha256": ("real", "sha256"),
    "Real labels sha256": ("real", "labels_sha256"),
    "The generator was trained on it": ("real", "is_training_data"),
    "Synthetic images": ("synthetic", "count"),
    "Synthetic images labelled": ("synthetic", "labelled"),
    "Synthetic images sha256": ("synthetic", "sha256"),
    "Made by product sha256": ("synthetic", "product_sha256"),
    "Sampler": ("synthetic", "sampler"),
    "Steps": ("synthetic", "steps"),
    "Guidance": ("synthetic", "guidance"),
    "View asked for": ("synthetic", "view"),
    "Seed of the images": ("synthetic", "seed"),
    "What was done to them": ("synthetic", "notes"),
}
"""Facts of the data, and where metrics.json holds them."""

CARD = {
    "version": "made by cxr_lightning",
    "step": "training steps",
    "data": "sha256 of its training images",
    "parents": "made from",
    "metrics": "metric",
    "parts": "part",
    "arguments": "setting",
}
"""Facts of the generator, in other words than its manifest's."""

PUBLISHED = {"inception": "Inception-v3", "xrv": "TorchXRayVision", "rad_dino": "RadDINO"}
"""Extractors that published numbers are made with."""

SHOWN_FAILURES = 3
LONG = 6
"""Places that a caution names one by one."""


def data_card(evaluations: Sequence[Evaluation]) -> Facts:
    """Facts of the real and the synthetic data; what no evaluation states is left out."""
    return _stated((title, [e.look_up(*path) for e in evaluations]) for title, path in DATA.items())


def model_card(evaluations: Sequence[Evaluation]) -> Facts:
    """Facts of the generator, the encoder and the extractors."""
    rows: list[tuple[str, list[Any]]] = [
        ("Generator sha256", [e.look_up("generator") for e in evaluations]),
        ("Encoder sha256", [e.look_up("encoder") for e in evaluations]),
        ("Held-out encoder sha256", [e.look_up("encoder_held_out") for e in evaluations]),
        ("Classifier sha256", [e.look_up("classifier") for e in evaluations]),
    ]
    cards = [_flat(e.metrics["generator_card"]) for e in evaluations]
    rows += [
        (f"Generator: {key}", [card.get(key) for card in cards])
        for key in unique(key for card in cards for key in card)
    ]
    found = [{str(x.get("name")): x for x in e.metrics["extractors"]} for e in evaluations]
    rows += [
        (f"Extractor {name}", [_extractor(x[name]) if name in x else None for x in found])
        for name in unique(name for x in found for name in x)
    ]
    return _stated(rows)


def definitions(evaluations: Sequence[Evaluation]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The health conditions, once for all evaluations that have the same, with their names."""
    found: dict[str, list[str]] = {}
    for e in evaluations:
        found.setdefault(as_json(e.metrics["conditions"]), []).append(e.name)
    several = len(found) > 1
    return [
        (", ".join(names) if several else "", json.loads(text))
        for text, names in found.items()
        if any(condition.get("definition") for condition in json.loads(text))
    ]


def settings(evaluations: Sequence[Evaluation]) -> Facts:
    """Version and settings of the evaluations."""
    keys = unique(key for e in evaluations for key in e.metrics["settings"])
    rows = [("cxr_lightning", [e.look_up("version") for e in evaluations])]
    rows += [(_sentence(key), [e.look_up("settings", key) for e in evaluations]) for key in keys]
    return _stated(rows)


def _stated(rows: Iterable[tuple[str, Sequence[Any]]]) -> Facts:
    texts = [(title, [fact(value) for value in values]) for title, values in rows]
    return [(title, values) for title, values in texts if any(v != "–" for v in values)]


def _flat(card: dict[str, Any]) -> dict[str, Any]:
    """The card with one level less."""
    flat: dict[str, Any] = {}
    for key, value in card.items():
        name = CARD.get(key, _plain(key))
        if isinstance(value, dict):
            flat |= {f"{name}, {_plain(str(k))}": v for k, v in value.items()}
        else:
            flat[name] = value
    return flat


def _plain(key: str) -> str:
    return key.replace("_", " ")


def _sentence(key: str) -> str:
    text = _plain(key)
    return text[:1].upper() + text[1:]


def _extractor(facts: dict[str, Any]) -> str:
    parts = [
        f"{fact(facts['num_features'])} features" if facts.get("num_features") else "",
        fact(facts["preprocessing"]) if facts.get("preprocessing") else "",
        f"sha256 {facts['sha256']}" if facts.get("sha256") else "",
    ]
    return "; ".join(filter(None, parts))


def cautions(evaluations: Sequence[Evaluation]) -> list[str]:
    """What makes evaluations incomparable, warnings of the records, images not read; each once."""
    several = len(evaluations) > 1
    found: dict[str, dict[str, list[str]]] = {}
    for e in evaluations:
        for record in e.records:
            for reason in filter(None, record.warning.split("; ")):
                found.setdefault(reason, {}).setdefault(e.name, []).append(_place(record))
    texts = _differences(evaluations)
    for e in evaluations:
        known = e.look_up("real", "is_training_data")
        if known is not True and any(e.select("copy_rate")):
            texts.append(
                f"Privacy of {e.name}: whether the generator was trained on these real images is "
                "not known (--generator tells); only copies of these can be found."
                if known is None
                else f"Privacy of {e.name}: the generator was trained on other images than these "
                "real ones, so copies of its training images cannot be found."
            )
    texts += [
        f"{reason[:1].upper()}{reason[1:]} [{_places(where, several)}]."
        for reason, where in found.items()
    ]
    for e in evaluations:
        failures = e.look_up("synthetic", "failures")
        if isinstance(failures, dict) and failures:
            listed = [f"{path}: {why}" for path, why in [*failures.items()][:SHOWN_FAILURES]]
            more = ", …" if len(failures) > SHOWN_FAILURES else ""
            texts.append(
                f"Images of {e.name} that could not be read, not counted: {len(failures)} "
                f"({', '.join(listed)}{more})."
            )
    return texts


def _differences(evaluations: Sequence[Evaluation]) -> list[str]:
    extractors: set[Any] = {
        tuple(sorted((str(x.get("name")), str(x.get("sha256"))) for x in e.metrics["extractors"]))
        for e in evaluations
    }
    parts: dict[str, set[Any]] = {
        "real data": {str(e.look_up("real", "sha256")) for e in evaluations},
        "extractors": extractors,
        "splits of the real data": {str(e.look_up("settings", "split")) for e in evaluations},
    }
    return [
        f"The evaluations use different {title}: their numbers must not be compared."
        for title, values in parts.items()
        if len(values) > 1
    ]


def _place(record: Measurement) -> str:
    place = f"{label(record.condition)} {_short(record.metric)}"
    if record.subgroup != OVERALL:
        place += f" of {subgroup_label(record.subgroup)}"
    return place


def _short(metric: str) -> str:
    names = {"fid": "FID", "kid": "KID", "rrs": "RRS", "nrrs": "NRRS", "auroc": "AUROC"}
    if metric in names:
        return names[metric]
    title = metric_title(metric)
    return title if metric.startswith("fid") else f"“{title}”"


def _places(where: dict[str, list[str]], several: bool) -> str:
    listed = {name: _some(unique(places)) for name, places in where.items()}
    if several:
        return ", ".join(f"{name} ({places})" for name, places in listed.items())
    return ", ".join(listed.values())


def _some(places: list[str]) -> str:
    if len(places) <= LONG:
        return ", ".join(places)
    return f"{', '.join(places[:LONG])} and {len(places) - LONG} more"


def left_out(evaluations: Sequence[Evaluation]) -> list[str]:
    """What was skipped, each reason once."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for e in evaluations:
        for entry in e.metrics["skipped"]:
            what = _sort(str(entry.get("metric")), str(entry.get("axis")))
            reason = str(entry.get("reason")).rstrip(".")
            where = found.setdefault((what, reason), {})
            condition = str(entry.get("condition") or OVERALL)
            where.setdefault(label(condition).lower(), []).append(e.name)
    texts = []
    for (what, reason), where in found.items():
        conditions = [name for name in where if name != label(OVERALL).lower()]
        names = unique(name for names in where.values() for name in names)
        of = f" for {_some(conditions)}" if conditions else ""
        only = f" [{', '.join(names)}]" if len(names) < len(evaluations) else ""
        texts.append(f"No {what}{of}, since {reason}{only}.")
    return texts


def _sort(metric: str, axis: str) -> str:
    if metric == OVERALL:
        return f"{axis} axis"
    return _short(metric) if metric in METRICS else _plain(metric)


def extractors_used(evaluations: Sequence[Evaluation]) -> list[str]:
    """Which extractors were used, and which numbers cannot be compared with published ones."""
    names = unique(str(x.get("name")) for e in evaluations for x in e.metrics["extractors"])
    if not names:
        return []
    texts = [f"Extractors used: {', '.join(names)}."]
    used = {name.split(":")[0] for name in names}
    absent = [title for name, title in PUBLISHED.items() if name not in used]
    if absent:
        listed = " and ".join(filter(None, [", ".join(absent[:-1]), absent[-1]]))
        texts.append(
            f"Not used: {listed}. Published numbers made with "
            f"{'it' if len(absent) == 1 else 'them'} cannot be compared with the numbers here."
        )
    return texts
