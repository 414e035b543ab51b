"""Writing the report: the templates, and files that are whole or absent."""

import base64
import json
import os
import uuid
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from cxr_lightning.errors import UserError
from cxr_lightning.markdown import escape
from cxr_lightning.report.plots import swatch
from cxr_lightning.report.read import Evaluation
from cxr_lightning.report.view import build_view
from cxr_lightning.report.words import (
    fact,
    label,
    number,
    range_text,
    subgroup_label,
)

TEMPLATES = {".html": "html.j2", ".md": "md.j2"}
STARTS = {".md": "# Synthetic chest X-rays: evaluation\n", ".json": '{\n "evaluations": {'}
"""What the files beside the page begin with; others are never replaced."""


def write_report(evaluations: Sequence[Evaluation], out: Path) -> list[Path]:
    """Writes the page, and Markdown and JSON next to it; returns their paths.

    Raises:
        UserError: If a file stands there that no report made.
    """
    for suffix, start in STARTS.items():
        beside = out.with_suffix(suffix)
        if beside.exists() and not _begins(beside, start):
            raise UserError(
                f"out: {beside} stands where the report would write, and no report made it; give "
                "another name, or move it away."
            )
    view = build_view(evaluations)
    pages = {suffix: _render(name, view, out) for suffix, name in TEMPLATES.items()}
    merged = {"evaluations": {e.name: e.metrics for e in evaluations}}
    pages[".json"] = json.dumps(merged, indent=1, allow_nan=False) + "\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    partials = {}
    try:
        for suffix, text in pages.items():
            partial = out.with_name(f".{out.stem}{suffix}.{uuid.uuid4().hex}.partial")
            partials[out.with_suffix(suffix)] = partial
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        for target, partial in partials.items():
            partial.replace(target)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
    return [*partials]


def render_headline(evaluation: Evaluation) -> str:
    """What was measured in a line, and the table of the axes, as Markdown."""
    head = build_view([evaluation])["heads"][0]
    table = _environment(autoescape=False).get_template("headline.md.j2").render(head=head)
    return f"{escape(head['facts'])}\n\n{table.strip()}"


def _render(template: str, view: dict[str, Any], out: Path) -> str:
    page = _environment(template == TEMPLATES[".html"]).get_template(template)
    return page.render(view, folder=out.parent).rstrip() + "\n"


@cache
def _environment(autoescape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("cxr_lightning", "report"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "label": label,
        "subgroup": subgroup_label,
        "fact": fact,
        "data_uri": data_uri,
        "md": escape,
        "swatch": swatch,
        "sentence": lambda text: text[:1].upper() + text[1:],
        "spread": lambda record: range_text(record, record.ci_low, record.ci_high),
        "link": link,
    }
    return environment


def _begins(file: Path, start: str) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(len(start)) == start.encode()


def data_uri(file: Path) -> str:
    """The image as part of the page."""
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def link(file: Path, folder: Path) -> str:
    """The way from a folder to a file, as a Markdown link holds it."""
    path = Path(os.path.relpath(file, folder)).as_posix()
    return quote(os.fsencode(path), safe="/+=,~")
