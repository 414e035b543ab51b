"""`cxr report`: evaluations as one self-contained HTML page, and as Markdown beside it."""

import base64
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr_lightning.errors import UserError

FORMAT = 1
TEMPLATES = {".html": "report.html.j2", ".md": "report.md.j2"}

CALIBRATION = {
    "rrs_floor_pixel": "resize round trip",
    "rrs_vae": "autoencoder alone",
    "rrs": "reconstruction",
    "rrs_ceil_same": "other patient, same condition",
    "rrs_ceil_random": "any other patient",
}
"""What an original is compared with, from nearest to farthest."""

FACTS: dict[str, tuple[str, ...]] = {
    "Real data": ("real", "source"),
    "Real images prepared": ("real", "count"),
    "Image size (pixels)": ("real", "size"),
    "Real data sha256": ("real", "sha256"),
    "Split for the Fréchet distance": ("settings", "split"),
    "Synthetic images": ("synthetic", "count"),
    "Made by product sha256": ("synthetic", "product_sha256"),
    "Sampler": ("synthetic", "sampler"),
    "Steps": ("synthetic", "steps"),
    "Guidance": ("synthetic", "guidance"),
    "Seed of the images": ("synthetic", "seed"),
    "Extractor": ("extractor", "name"),
    "Extractor features": ("extractor", "num_features"),
    "Extractor sha256": ("extractor", "sha256"),
    "Encoder sha256": ("encoder",),
    "Generator sha256": ("generator",),
    "Bootstrap draws": ("settings", "bootstrap"),
    "Seed of the evaluation": ("settings", "seed"),
    "cxr_lightning": ("version",),
}
"""Facts of how an evaluation was made, and where metrics.json holds them."""


@dataclass(frozen=True)
class Evaluation:
    """An evaluation as read.

    Attributes:
        name: What the report calls it, from its folder's name.
        folder: Its folder.
        metrics: Content of metrics.json.
        grids: Image files by name without suffix.
    """

    name: str
    folder: Path
    metrics: dict[str, Any]
    grids: dict[str, Path]

    def record(self, metric: str, condition: str) -> dict[str, Any] | None:
        """The record of a metric and a condition, if there is one."""
        for record in self.metrics["records"]:
            if (record["metric"], record["condition"]) == (metric, condition):
                return dict(record)
        return None


def report(evaluation: Path | list[Path], out: Path) -> None:
    """Writes one or several evaluations as one HTML file, and as Markdown next to it.

    The HTML file holds its images and styles, needs no network and prints well. Several
    evaluations stand side by side, named by their folders.

    Args:
        evaluation: Folder made by 'cxr evaluate', or several: --evaluation+=A --evaluation+=B.
        out: The HTML file; the Markdown file has the same name with the suffix .md.

    Raises:
        UserError: If a folder holds no evaluation or `out` cannot be written; nothing is written.
    """
    if out.suffix != ".html" or out.is_dir():
        raise UserError(f"out: {out} is no name of an HTML file; give one such as report.html.")
    folders = evaluation if isinstance(evaluation, list) else [evaluation]
    if not folders:
        raise UserError("evaluation: none given; name one or more folders made by 'cxr evaluate'.")
    names = distinct_names(folders)
    read = [_read(folder, name) for folder, name in zip(folders, names, strict=True)]
    view = build_view(read)
    pages = {suffix: _render(name, view, out) for suffix, name in TEMPLATES.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    for suffix, text in pages.items():
        partial = out.with_name(f".{out.stem}{suffix}.{os.getpid()}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(out.with_suffix(suffix))
    print(f"report in {out} and {out.with_suffix('.md')}")


def distinct_names(folders: list[Path]) -> list[str]:
    """The shortest ends of the paths that tell the folders apart."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        twice = next(f for f, p in zip(folders, parts, strict=True) if parts.count(p) > 1)
        raise UserError(f"evaluation: {twice} is named twice; name each folder once.")
    depth = 1
    while len({p[-depth:] for p in parts}) < len(parts):
        depth += 1
    return ["/".join(p[-depth:]) for p in parts]


def _read(folder: Path, name: str) -> Evaluation:
    file = folder / "metrics.json"
    if not file.is_file():
        raise UserError(f"evaluation: no metrics.json in {folder}; make it with 'cxr evaluate'.")
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
        known = metrics["format"] == FORMAT
        complete = {"real", "synthetic", "extractor", "conditions", "records", "skipped"}
        known = known and complete <= set(metrics)
        needed = {"axis", "metric", "condition", "value", "ci_low", "ci_high", "real_floor"}
        needed |= {"n_real", "n_synthetic", "extractor"}
        known = known and all(needed <= set(record) for record in metrics["records"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"evaluation: {file} is no evaluation ({error!r}); make it again with 'cxr evaluate'."
        ) from error
    if not known:
        raise UserError(
            f"evaluation: {file} is no evaluation in format {FORMAT}; make it again with "
            "'cxr evaluate' of this version."
        )
    grids = {grid.stem: grid for grid in sorted((folder / "grids").glob("*.png"))}
    return Evaluation(name, folder, metrics, grids)


def build_view(evaluations: list[Evaluation]) -> dict[str, Any]:
    """All that the templates show, as plain values."""
    names = dict.fromkeys(c for e in evaluations for c in e.metrics["conditions"])
    shown = [*names, "all"] if any(e.record("fid", "all") for e in evaluations) else [*names]
    cells = {name: [_cell(e, name) for e in evaluations] for name in shown}
    _add_scales([cell for row in cells.values() for cell in row])
    return {
        "evaluations": [e.name for e in evaluations],
        "rows": [
            {
                "label": label(name),
                "original": next((c["original"] for c in cells[name] if c["original"]), None),
                "cells": cells[name],
                "has_scores": any(cell["scores"]["rrs"] for cell in cells[name]),
            }
            for name in names
        ],
        "headlines": [_headline(e, [*names]) for e in evaluations],
        "fid_rows": [{"label": label(n), "cells": cells[n]} for n in shown],
        "calibration": CALIBRATION,
        "cautions": _cautions(evaluations),
        "skipped": [(e.name, s) for e in evaluations for s in e.metrics["skipped"]],
        "facts": [
            (title, [_look_up(e.metrics, path) for e in evaluations])
            for title, path in FACTS.items()
        ],
        "records": [(e.name, r) for e in evaluations for r in e.metrics["records"]],
    }


def label(condition: str) -> str:
    """`pleural_effusion+edema` as `Pleural effusion + edema`."""
    if condition == "all":
        return "All conditions"
    text = " + ".join(condition.replace("_", " ").split("+"))
    return text[:1].upper() + text[1:]


def number(value: float | None) -> str:
    """A number with at least three significant digits but no more than six decimals, or a dash."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    return f"{value:,.{min(max(3 - max(magnitude, 1), 2 - magnitude, 0), 6)}f}"


def _cell(evaluation: Evaluation, condition: str) -> dict[str, Any]:
    """What one evaluation says of one condition."""
    kinds = ("original", "generated", "reconstruction")
    metrics = (*CALIBRATION, "nrrs")
    fid = evaluation.record("fid", condition)
    details = fid.get("details", {}) if fid else {}
    floor, at_n = (fid or {}).get("real_floor"), details.get("value_at_floor_n")
    return {
        "evaluation": evaluation.name,
        **{kind: evaluation.grids.get(f"{condition}_{kind}") for kind in kinds},
        "fid": fid,
        "floor": floor,
        "at_floor_n": at_n,
        "floor_n": details.get("floor_n"),
        "ratio": at_n / floor if floor and at_n is not None else None,
        "scores": {metric: evaluation.record(metric, condition) for metric in metrics},
    }


def _add_scales(cells: list[dict[str, Any]]) -> None:
    """Adds bar lengths and positions in per cent of the largest value of all cells."""
    distances = [c[key] or 0.0 for c in cells for key in ("floor", "at_floor_n")]
    scores = [r["value"] for c in cells for m in CALIBRATION if (r := c["scores"][m])]
    for cell in cells:
        cell["bars"] = {
            key: _percent(cell[key] or 0.0, max(distances)) for key in ("floor", "at_floor_n")
        }
        cell["marks"] = {
            m: _percent(r["value"], max(scores)) for m in CALIBRATION if (r := cell["scores"][m])
        }


def _percent(value: float, largest: float) -> float:
    return round(100 * value / largest, 2) if largest > 0 else 0.0


def _headline(evaluation: Evaluation, conditions: list[str]) -> dict[str, Any]:
    """The few numbers that a reader wants first."""
    name = "all" if evaluation.record("fid", "all") else conditions[0]
    scores = [r for c in conditions if (r := evaluation.record("rrs", c))]
    ratios = [r["value"] for c in conditions if (r := evaluation.record("nrrs", c))]
    return {
        **_cell(evaluation, name),
        "condition": label(name),
        "scores": [r["value"] for r in scores],
        "score_ratios": ratios,
        "reconstructions": sum(r["n_synthetic"] for r in scores),
        "real_source": evaluation.metrics["real"].get("source"),
        "size": evaluation.metrics["real"].get("size"),
        "n_synthetic": evaluation.metrics["synthetic"].get("count"),
        "n_conditions": len(evaluation.metrics["conditions"]),
    }


def _cautions(evaluations: list[Evaluation]) -> list[str]:
    """Warnings of the records, and what makes evaluations incomparable; each once."""
    found: dict[str, dict[str, list[str]]] = {}
    for e in evaluations:
        for r in e.metrics["records"]:
            reasons = [] if r["metric"] == "nrrs" else (r.get("warning") or "").split("; ")
            for reason in filter(None, reasons):  # nrrs repeats those of rrs
                places = found.setdefault(reason, {}).setdefault(e.name, [])
                places.append(f"{label(r['condition'])} {r['metric'].upper()}")
    texts = [
        f"{reason[:1].upper()}{reason[1:]} [{_places(where, len(evaluations) > 1)}]."
        for reason, where in found.items()
    ]
    texts += [
        f"Images of {e.name} that could not be read, not counted: {len(failures)}."
        for e in evaluations
        if (failures := e.metrics["synthetic"].get("failures"))
    ]
    for title, path in (("real data", ("real", "sha256")), ("extractors", ("extractor", "sha256"))):
        if len({_look_up(e.metrics, path) for e in evaluations}) > 1:
            texts.append(
                f"The evaluations use different {title}: their numbers must not be compared."
            )
    return texts


def _places(where: dict[str, list[str]], several: bool) -> str:
    if several:
        return ", ".join(f"{name} ({', '.join(places)})" for name, places in where.items())
    return ", ".join(place for places in where.values() for place in places)


def _look_up(content: dict[str, Any], path: Iterable[str]) -> str:
    value: Any = content
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return "–" if value is None else str(value)


def _data_uri(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _render(template: str, view: dict[str, Any], out: Path) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cxr_lightning", "commands"),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "label": label,
        "data_uri": _data_uri,
        "link": lambda file: Path(os.path.relpath(file, out.parent)).as_posix(),
    }
    return environment.get_template(template).render(view) + "\n"
