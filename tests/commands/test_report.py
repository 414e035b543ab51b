"""`cxr report`: its arguments, what it reads and what it writes."""

import json
from pathlib import Path
from typing import Any

import pytest
from evaluation_writer import minimal_metrics, write_evaluation
from page_reader import Page

from cxr_lightning.cli import main
from cxr_lightning.commands.report import report
from cxr_lightning.errors import UserError


def minimal(folder: Path, **changes: Any) -> Path:
    return write_evaluation(folder, minimal_metrics(**changes))


def test_three_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "report.html"
    report([minimal(tmp_path / "evaluation")], out)
    names = ["report.html", "report.json", "report.md"]
    assert sorted(path.name for path in out.parent.iterdir()) == names
    printed = capsys.readouterr().out
    assert all(str(out.with_name(name)) in printed for name in names)
    merged = json.loads(out.with_suffix(".json").read_text())
    absent: dict[str, Any] = {"curves": {}, "generator_card": {}, "pairs": []}
    assert merged == {"evaluations": {"evaluation": minimal_metrics() | absent}}


def test_names_that_are_no_text_are_shown_as_codes(tmp_path: Path) -> None:
    folders = [write_evaluation(tmp_path / name) for name in ("set\udcff", "other")]
    report(folders, tmp_path / "r.html")
    for suffix in (".html", ".md"):
        assert "udcff" in (tmp_path / f"r{suffix}").read_text(encoding="utf-8")


def test_again_replaces_the_report(tmp_path: Path) -> None:
    folder = minimal(tmp_path / "evaluation")
    report([folder], tmp_path / "report.html")
    before = {p: p.read_bytes() for p in tmp_path.glob("report.*")}
    report([folder], tmp_path / "report.html")
    assert {p: p.read_bytes() for p in tmp_path.glob("report.*")} == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "\x00",
        json.dumps(minimal_metrics(format=1)),
        json.dumps(minimal_metrics(format=3)),
        json.dumps({k: v for k, v in minimal_metrics().items() if k != "conditions"}),
        json.dumps({k: v for k, v in minimal_metrics().items() if k != "records"}),
        json.dumps(minimal_metrics(records=[{"axis": "fidelity"}])),
        json.dumps(minimal_metrics(records=[{"axis": "fidelity", "metric": 3, "value": 1}])),
        json.dumps(minimal_metrics(records=[{"axis": "a", "metric": "fid", "value": "1"}])),
        json.dumps(minimal_metrics(records=[{"axis": "a", "metric": "fid", "value": True}])),
        json.dumps(minimal_metrics(records={})),
        json.dumps(minimal_metrics(conditions=["pneumonia"])),
        json.dumps(minimal_metrics(curves=[])),
    ],
)
def test_no_evaluation(tmp_path: Path, text: str) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "metrics.json").write_text(text)
    with pytest.raises(UserError, match=r"evaluation: .*metrics.json is no evaluation.* again"):
        report([tmp_path / "evaluation"], tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation"]


def test_earlier_format_is_named(tmp_path: Path) -> None:
    minimal(tmp_path / "evaluation", format=1)
    with pytest.raises(UserError, match=r"no evaluation in format 2; make it again with 'cxr ev"):
        report([tmp_path / "evaluation"], tmp_path / "report.html")


def test_wrong_arguments(tmp_path: Path) -> None:
    folder = minimal(tmp_path / "evaluation")
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
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"out: .* cannot be written"):
        report([folder], tmp_path / "file" / "report.html")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evaluation", "file", "folder.html"]


@pytest.mark.parametrize("name", ["metrics.json", "README.md"])
def test_other_files_are_never_replaced(tmp_path: Path, name: str) -> None:
    folder = minimal(tmp_path / "evaluation")
    (folder / "README.md").write_text("# Mine\n")
    before = (folder / name).read_bytes()
    with pytest.raises(UserError, match=f"out: .*{name} stands where .* no report made it"):
        report([folder], (folder / name).with_suffix(".html"))
    assert (folder / name).read_bytes() == before
    assert not (folder / name).with_suffix(".html").exists()


def test_nothing_is_left_when_a_file_cannot_be_placed(tmp_path: Path) -> None:
    folder = minimal(tmp_path / "evaluation")
    (tmp_path / "report.md").mkdir()
    with pytest.raises(UserError, match=r"out: .*report\.md stands"):
        report([folder], tmp_path / "report.html")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evaluation", "report.md"]


def test_command_line_takes_one_or_several(tmp_path: Path) -> None:
    folders = [minimal(tmp_path / name) for name in ("one", "two")]
    main(["report", "--evaluation", str(folders[0]), "--out", str(tmp_path / "1.html")])
    several = map(str, folders)
    main(["report", "--evaluation", *several, "--out", str(tmp_path / "2.html")])
    assert "Condition Original Generated" in Page((tmp_path / "1.html").read_text()).text
    assert "Condition Original one two" in Page((tmp_path / "2.html").read_text()).text
