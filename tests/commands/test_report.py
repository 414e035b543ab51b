"""`cxr report`: complete, self-contained, safe against what an evaluation holds."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cxr_lightning.cli import main
from cxr_lightning.commands.report import distinct_names, label, number, report
from cxr_lightning.errors import UserError


def _record(metric: str, condition: str, value: float, **changes: Any) -> dict[str, Any]:
    record: dict[str, Any] = {
        "axis": "fidelity" if metric == "fid" else "representation",
        "metric": metric,
        "condition": condition,
        "value": value,
        "ci_low": 0.9 * value,
        "ci_high": 1.1 * value,
        "real_floor": 100.0 if metric == "fid" else None,
        "n_real": 321,
        "n_synthetic": 123,
        "extractor": "inception",
        "extractor_sha256": "ee" * 32,
    }
    if metric == "fid":
        record["details"] = {"floor_n": 61, "value_at_floor_n": 150.0}
    return record | changes


def _content(**changes: Any) -> dict[str, Any]:
    scores = {
        "rrs": 0.0351,
        "rrs_floor_pixel": 0.0012,
        "rrs_vae": 0.0832,
        "rrs_ceil_same": 0.2514,
        "rrs_ceil_random": 0.3017,
        "nrrs": 0.1396,
    }
    records = [_record("fid", c, v) for c, v in (("pneumonia", 418.71), ("pleural_effusion", 99.5))]
    records += [_record("fid", "all", 251.12)]
    records += [_record(metric, "pneumonia", value) for metric, value in scores.items()]
    return {
        "format": 1,
        "version": "0.1.0",
        "real": {"source": "nih14", "sha256": "aa" * 32, "size": 64, "count": 850},
        "synthetic": {"count": 246, "product_sha256": "bb" * 32, "sampler": "unipc", "steps": 17},
        "encoder": "cc" * 32,
        "generator": "dd" * 32,
        "extractor": {"name": "inception", "sha256": "ee" * 32, "num_features": 2048},
        "settings": {"split": "all", "bootstrap": 200, "seed": 0},
        "conditions": ["pneumonia", "pleural_effusion"],
        "records": records,
        "skipped": [
            {
                "axis": "representation",
                "metric": "rrs",
                "condition": "pleural_effusion",
                "reason": "no real image of this condition in the held-out split (valid)",
            }
        ],
    } | changes


def _write(folder: Path, content: dict[str, Any] | None = None) -> Path:
    (folder / "grids").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(content or _content()))
    kinds = ("original", "generated", "reconstruction")
    names = [f"pneumonia_{kind}" for kind in kinds] + ["pleural_effusion_generated"]
    for i, name in enumerate(names):
        Image.fromarray(np.full((4, 4), 40 * i, dtype=np.uint8)).save(
            folder / "grids" / f"{name}.png"
        )
    return folder


class _Page(HTMLParser):
    """Tags, references and visible text of a page; checks that tags close in order."""

    VOID = ("meta", "img", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [v or "" for k, v in attrs if k in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def test_one_evaluation(tmp_path: Path) -> None:
    report([_write(tmp_path / "evaluation")], tmp_path / "report.html")
    page = _Page((tmp_path / "report.html").read_text())
    # The method's table: condition, original, generated, FID, RRS.
    assert "Condition Original Generated FID RRS" in page.text
    assert "Pneumonia 418.7 376.8 to 460.6 0.0351 0.0316 to 0.0386" in page.text
    for part in ("251.1", "1.50", "0.0832", "0.2514"[:5], "0.140", "321", "123", "61"):
        assert part in page.text
    for fact in ("aa" * 32, "bb" * 32, "dd" * 32, "unipc", "17", "inception", "not for diagnosis"):
        assert fact in page.text
    assert "no RRS for pleural effusion, since no real image" in page.text
    assert page.tags.count("img") == 5  # three of the table, two reconstructions


def test_self_contained(tmp_path: Path) -> None:
    report([_write(tmp_path / "evaluation")], tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    page = _Page(html)
    assert page.references
    assert all(r.startswith("data:image/png;base64,") for r in page.references)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "http" not in html
    assert "url(" not in html
    assert str(tmp_path) not in html
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_markdown_beside(tmp_path: Path) -> None:
    report([_write(tmp_path / "evaluation")], tmp_path / "out" / "report.html")
    lines = (tmp_path / "out" / "report.md").read_text().splitlines()
    start = lines.index(
        "| Condition | Original | Generated | FID (95 % interval) | RRS (95 % interval) |"
    )
    assert lines[start + 2] == (
        "| Pneumonia | ![real images](../evaluation/grids/pneumonia_original.png) "
        "| ![generated images](../evaluation/grids/pneumonia_generated.png) "
        "| 418.7 (376.8 to 460.6) | 0.0351 (0.0316 to 0.0386) |"
    )
    assert lines[start + 3].startswith("| Pleural effusion | – | ![generated images]")
    assert lines[start + 3].endswith("| 99.50 (89.55 to 109.5) | – |")
    tables = [line for line in lines if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)
    assert "| Sampler | unipc |" in lines
    assert "- evaluation: no RRS for Pleural effusion, since no real image" in "\n".join(lines)


def test_several_side_by_side(tmp_path: Path) -> None:
    records = [_record("fid", "pneumonia", 77.7), _record("fid", "edema", 55.5)]
    other = _content(records=records, conditions=["pneumonia", "edema"], skipped=[])
    folders = [_write(tmp_path / "ddpm"), _write(tmp_path / "finetune", other)]
    report(folders, tmp_path / "report.html")
    page = _Page((tmp_path / "report.html").read_text())
    assert "Condition Original ddpm finetune" in page.text
    assert "418.7" in page.text
    assert "77.70" in page.text
    assert "Edema" in page.text
    assert "must not be compared" not in page.text
    markdown = (tmp_path / "report.md").read_text()
    assert "### ddpm" in markdown
    assert "| | ddpm | finetune |" in markdown


def test_different_data_or_extractor_is_said(tmp_path: Path) -> None:
    records = [_record("fid", "pneumonia", 1.0, warning="too few")]
    other = _content(real={"sha256": "ff" * 32}, extractor={"sha256": "ff" * 32}, records=records)
    report([_write(tmp_path / "one"), _write(tmp_path / "two", other)], tmp_path / "report.html")
    text = _Page((tmp_path / "report.html").read_text()).text
    assert "use different real data: their numbers must not be compared" in text
    assert "use different extractors" in text
    assert "Too few [two (Pneumonia FID)]." in text


def test_warnings_are_gathered(tmp_path: Path) -> None:
    records = [
        _record("fid", "pneumonia", 1.0, warning="too few; too close"),
        _record("fid", "pleural_effusion", 1.0, warning="too few"),
    ]
    failures = {"train/a.png": "broken"}
    content = _content(records=records, synthetic={"count": 3, "failures": failures})
    report([_write(tmp_path / "evaluation", content)], tmp_path / "report.html")
    text = _Page((tmp_path / "report.html").read_text()).text
    assert "Too few [Pneumonia FID, Pleural effusion FID]." in text
    assert "Too close [Pneumonia FID]." in text
    assert "Images of evaluation that could not be read, not counted: 1." in text


def test_no_floor_and_no_interval(tmp_path: Path) -> None:
    record = _record("fid", "pneumonia", 5.0, real_floor=None, ci_low=None, ci_high=None)
    record["details"] = {"floor": "not defined"}
    content = _content(records=[record], conditions=["pneumonia"], skipped=[])
    report([_write(tmp_path / "evaluation", content)], tmp_path / "report.html")
    text = _Page((tmp_path / "report.html").read_text()).text
    assert "no floor" in text
    assert "What the representation score means" not in text


def test_content_cannot_inject(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    content = _content(
        conditions=[attack, "../../secret"],
        records=[_record("fid", attack, 1.0, warning=attack)],
        real={"source": attack},
    )
    (tmp_path / "secret_original.png").write_bytes(b"secret")
    report([_write(tmp_path / "a" / attack.replace("/", ""), content)], tmp_path / "report.html")
    page = _Page((tmp_path / "report.html").read_text())
    assert "script" not in page.tags
    assert not page.references  # images by the names of the grids folder alone


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        json.dumps(_content(format=2)),
        json.dumps({k: v for k, v in _content().items() if k != "conditions"}),
        json.dumps(_content(records=[{"axis": "fidelity"}])),
    ],
)
def test_no_evaluation(tmp_path: Path, text: str) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "metrics.json").write_text(text)
    with pytest.raises(UserError, match=r"evaluation: .*metrics.json is no evaluation"):
        report([tmp_path / "evaluation"], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_wrong_arguments(tmp_path: Path) -> None:
    folder = _write(tmp_path / "evaluation")
    with pytest.raises(UserError, match="evaluation: none given"):
        report([], tmp_path / "report.html")
    with pytest.raises(UserError, match=r"evaluation: no metrics\.json in .*absent"):
        report([folder, tmp_path / "absent"], tmp_path / "report.html")
    with pytest.raises(UserError, match="is named twice"):
        report([folder, folder], tmp_path / "report.html")
    (tmp_path / "folder.html").mkdir()
    for out in (tmp_path / "report.pdf", tmp_path / "folder.html"):
        with pytest.raises(UserError, match=r"out: .* is no name of an HTML file"):
            report([folder], out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evaluation", "folder.html"]


def test_command_line_takes_one_or_several(tmp_path: Path) -> None:
    folders = [_write(tmp_path / name) for name in ("one", "two")]
    main(["report", "--evaluation", str(folders[0]), "--out", str(tmp_path / "1.html")])
    several = map(str, folders)
    main(["report", "--evaluation", *several, "--out", str(tmp_path / "2.html")])
    assert "Condition Original Generated" in _Page((tmp_path / "1.html").read_text()).text
    assert "Condition Original one two" in _Page((tmp_path / "2.html").read_text()).text


def test_names_tell_folders_apart() -> None:
    assert distinct_names([Path("/a/x"), Path("/a/y")]) == ["x", "y"]
    assert distinct_names([Path("/a/x/e"), Path("/a/y/e")]) == ["x/e", "y/e"]


def test_labels_and_numbers() -> None:
    assert label("pleural_effusion+edema") == "Pleural effusion + edema"
    assert label("all") == "All conditions"
    expected = {0.0: "0", 418.71: "418.7", 25149.2: "25,149", 1.5: "1.50", 0.0351: "0.0351"}
    assert {value: number(value) for value in expected} == expected
    assert number(None) == "–"
    assert number(2.18e-4) == "0.000218"
