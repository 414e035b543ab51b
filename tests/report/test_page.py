"""The page and the Markdown: complete, self-contained, safe against what an evaluation holds."""

import copy
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from evaluation_writer import AXES, full_metrics, minimal_metrics, write_evaluation
from page_reader import Page

from cxr_lightning.commands.report import report
from cxr_lightning.report.view import SECTIONS

NAMED = ("baseline", "finetune", "finetune_with_a_long_name_and_guidance_3")
ATTACK = "<script>alert(1)</script>"


def pages(tmp_path: Path, *contents: dict[str, Any], names: str = "abc") -> tuple[Page, str]:
    """The page and the Markdown of evaluations."""
    folders = [
        write_evaluation(tmp_path / (name if len(contents) > 1 else "evaluation"), content)
        for name, content in zip(names, contents, strict=False)
    ]
    report(folders, tmp_path / "report.html")
    return read(tmp_path / "report.html")


@pytest.fixture(scope="module")
def full(reports: dict[str, Path]) -> tuple[Page, str]:
    return read(reports["full"])


@pytest.fixture(scope="module")
def three(reports: dict[str, Path]) -> tuple[Page, str]:
    return read(reports["three"])


def read(page: Path) -> tuple[Page, str]:
    markdown = page.with_suffix(".md").read_text(encoding="utf-8")
    return Page(page.read_text(encoding="utf-8")), markdown


def row(metric: str, value: float, **changes: Any) -> dict[str, Any]:
    fid = minimal_metrics()["records"][0]
    return fid | {"metric": metric, "value": value, "ci_low": None, "ci_high": None} | changes


def test_all_sections_in_order(full: tuple[Page, str]) -> None:
    assert full[0].sections == ["In short", *(title for _, title, _ in SECTIONS)]


def test_sections_without_data_vanish(tmp_path: Path) -> None:
    page, markdown = pages(tmp_path, minimal_metrics())
    assert page.sections == [
        "In short",
        "Results by health condition",
        "Fidelity",
        "Read with care",
        "Data and models",
        "How to reproduce it",
        "All records",
        "Limits",
    ]
    assert "## Privacy" not in markdown
    assert "not measured: not asked for" in page.text.lower()


def test_headline_has_a_line_an_axis(full: tuple[Page, str]) -> None:
    start = full[0].text.index("In short")
    headline = full[0].text[start : full[0].text.index("Results by health condition", start)]
    words = ("as far as real images", "distance to another patient", "recognised as in real")
    words += (
        "no measurable gain for a classifier",
        "no sign of copying beyond 1 % false positives",
    )
    assert all(text.lower() in headline.lower() for text in words)
    assert "Research use only, not for diagnosis" in full[0].text[:start]


def test_the_methods_table(tmp_path: Path) -> None:
    records = [
        row("fid", 418.71, ci_low=376.8, ci_high=460.6),
        row("rrs", 0.0351, axis="representation", ci_low=0.0316, ci_high=0.0386),
    ]
    page, markdown = pages(tmp_path, minimal_metrics(records=records))
    assert "Condition Original Generated FID RRS" in page.text
    assert "Pneumonia 418.7 376.8 to 460.6 0.0351 0.0316 to 0.0386" in page.text
    lines = markdown.splitlines()
    start = lines.index(
        "| Condition | Original | Generated | FID (95 % interval) | RRS (95 % interval) |"
    )
    assert lines[start + 2] == (
        "| Pneumonia | ![Pneumonia, real](evaluation/grids/pneumonia_original.png) "
        "| ![Pneumonia, generated](evaluation/grids/pneumonia_generated.png) "
        "| 418.7 (376.8 to 460.6) | 0.0351 (0.0316 to 0.0386) |"
    )


def test_every_number_stands_beside_its_floor(tmp_path: Path) -> None:
    floor = {"real_floor": 100.0, "floor_low": 95.0, "floor_high": 105.0, "floor_n": 61}
    record = row("fid", 120.0, value_at_floor_n=150.0, passed=False, better="lower", **floor)
    page, markdown = pages(tmp_path, minimal_metrics(records=[record]))
    assert "120.0 150.0 at n = 61 100.0 95.00 to 105.0 40 / 30 1.50 × real" in page.text
    cells = "| 120.0; 150.0 at n = 61 | 100.0 (95.00 to 105.0) | 40 / 30 | 1.50 × real |"
    assert f"| Fréchet distance (FID) {cells}" in markdown


def test_facts_of_data_models_and_reproduction(full: tuple[Page, str]) -> None:
    for text in (full[0].text, full[1]):
        for part in ("aa" * 32, "ab" * 32, "b1" * 32, "d1" * 32, "e1" * 32, "f1" * 32, "d9" * 32):
            assert part in text
        for part in ("unipc", "train: 1400", "cxr evaluate --real prepared", "0.1.0", "chexpert"):
            assert part in text
    assert "pleural_effusion = 1" in full[0].text


def test_extractors_that_were_not_used_are_named(tmp_path: Path, full: tuple[Page, str]) -> None:
    for text in full:
        text = text.text if isinstance(text, Page) else text
        assert "Not used: Inception-v3, TorchXRayVision and RadDINO. Published numbers" in text
    used = [{"name": name, "sha256": "1"} for name in ("inception", "xrv:a", "rad_dino")]
    page, _ = pages(tmp_path, minimal_metrics(extractors=used))
    assert "Extractors used: inception, xrv:a, rad_dino." in page.text
    assert "Not used" not in page.text


def test_warnings_are_gathered(tmp_path: Path) -> None:
    records = [
        row("fid", 1.0, warning="too few; too close"),
        row("kid", 1.0, warning="too few", subgroup="view=PA"),
    ]
    failures = {f"train/{i}.png": "broken" for i in range(5)}
    content = minimal_metrics(records=records, synthetic={"count": 3, "failures": failures})
    page, _ = pages(tmp_path, content)
    assert "Too few [Pneumonia FID, Pneumonia KID of View PA]." in page.text
    assert "Too close [Pneumonia FID]." in page.text
    assert "could not be read, not counted: 5 (train/0.png: broken" in page.text


def test_a_warning_of_many_places_is_cut(tmp_path: Path) -> None:
    records = [row("fid", 1.0, warning="too few", condition=f"c{i}") for i in range(20)]
    page, _ = pages(tmp_path, minimal_metrics(records=records))
    assert "C5 FID and 14 more]." in page.text


def test_what_was_left_out_and_why(full: tuple[Page, str]) -> None:
    assert "No RRS for edema, since no real image of it in the held-out split." in full[0].text
    assert "No “Age as asked for” for healthy, since" in full[1]


def test_closest_pairs_flagged_first(full: tuple[Page, str]) -> None:
    text = full[0].text
    places = [text.index(f"No. {rank}, encoder") for rank in (1, 3, 2)]
    assert places == sorted(places)
    assert text.count("flagged as a copy") == 2
    assert "2 more pairs" in text
    assert sum("nearest training image" in alt for alt in full[0].images) == 8


def test_pictures_have_alternative_texts(full: tuple[Page, str], three: tuple[Page, str]) -> None:
    for page, _ in (full, three):
        assert page.images
        assert all(page.images)


def test_accessible_structure(full: tuple[Page, str], three: tuple[Page, str]) -> None:
    for page, _ in (full, three):
        levels = [level for level, _ in page.headings]
        assert levels.count(1) == 1
        assert levels[0] == 1
        assert all(b <= a + 1 for a, b in pairwise(levels))
        assert all(cell.get("scope") for cell in page.header_cells)
        assert len(set(page.ids)) == len(page.ids)


def test_self_contained(full: tuple[Page, str], reports: dict[str, Path]) -> None:
    page, html = full[0], reports["full"].read_text(encoding="utf-8")
    inner = [r for r in page.references if r.startswith("#")]
    assert {r[1:] for r in inner} <= set(page.ids)
    others = [r for r in page.references if not r.startswith("#")]
    assert others
    assert all(r.startswith("data:image/png;base64,") for r in others)
    assert not {"script", "link", "iframe"} & set(page.tags)
    for part in ("http", "url(", "@import", str(reports["full"].parent)):
        assert part not in html
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_several_side_by_side(three: tuple[Page, str]) -> None:
    page, markdown = three
    assert page.sections[:3] == [*NAMED]
    assert f"Condition Original {' '.join(NAMED)}" in page.text
    assert "must not be compared" not in page.text
    assert "### baseline" in markdown
    assert f"| | {' | '.join(NAMED)} |" in markdown
    # What all share stands once.
    assert page.text.count("aa" * 32) == 2  # real images; training images of the generator
    assert page.text.count("No RRS for edema") == 1


def test_different_data_or_extractors_are_said(tmp_path: Path) -> None:
    other = minimal_metrics(
        real={"sha256": "ff" * 32},
        extractors=[{"name": "encoder", "sha256": "ff" * 32}],
        settings={"split": "train"},
        records=[row("fid", 1.0, warning="too few", extractor_sha256="ff" * 32)],
    )
    page, markdown = pages(tmp_path, minimal_metrics(), other)
    for text in (page.text, markdown):
        assert "use different real data: their numbers must not be compared" in text
        assert "use different extractors" in text
        assert "use different splits" in text
    assert "Too few [b (Pneumonia FID)]." in page.text


def test_conditions_of_one_evaluation_alone(tmp_path: Path) -> None:
    other = minimal_metrics(conditions=[{"name": "edema"}], records=[row("fid", 55.5)])
    other["records"][0]["condition"] = "edema"
    page, markdown = pages(tmp_path, minimal_metrics(), other)
    assert "Edema" in page.text
    assert "| Edema | ![Edema, real](b/grids/edema_original.png)" in markdown


def test_unlabelled_images_are_shown_together(tmp_path: Path) -> None:
    content = minimal_metrics(conditions=[], records=[row("fid", 5.0, condition="all")])
    folder = write_evaluation(tmp_path / "evaluation", content)
    source = write_evaluation(tmp_path / "other", minimal_metrics()) / "grids"
    (source / "pneumonia_generated.png").rename(folder / "grids" / "all_generated.png")
    report([folder], tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.images == ["Generated images, All conditions"]


def test_unknown_metrics_stand_among_all_records(tmp_path: Path) -> None:
    records = [row("novel_distance", 1234.5), row("fid", 1.0)]
    page, _ = pages(tmp_path, minimal_metrics(records=records))
    assert page.text.index("novel_distance") > page.text.index("All records")
    assert "1,234" in page.text


def test_content_cannot_inject(tmp_path: Path) -> None:
    content = full_metrics()
    hostile = json.loads(
        json.dumps(content).replace('"pneumonia', f'"{ATTACK}').replace("unipc", ATTACK)
    )
    hostile["conditions"].append({"name": "../../secret", "definition": ATTACK})
    for record in hostile["records"]:
        record |= {"warning": ATTACK, "unit": ATTACK, "extractor": ATTACK, "subgroup": ATTACK}
    hostile |= {"command": ATTACK, "version": ATTACK, "generator_card": {ATTACK: ATTACK}}
    hostile["skipped"] = [dict.fromkeys(("axis", "metric", "condition", "reason"), ATTACK)]
    hostile["settings"] = {ATTACK: {ATTACK: ATTACK}}
    (tmp_path / "secret_original.png").write_bytes(b"secret")
    folder = tmp_path / "x" / ATTACK.replace("/", "")
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(hostile))
    other = write_evaluation(tmp_path / "y" / "other", content)
    report([folder, other], tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert not any("secret" in reference for reference in page.references)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<script" not in re.sub(r"(?m)^    .*$", "", markdown)  # code is shown as it is


def test_markdown_tables_are_whole(tmp_path: Path, full: tuple[Page, str]) -> None:
    name = "a|b\nc"
    records = [row("fid", 1.0, condition=name)]
    _, odd = pages(tmp_path, minimal_metrics(records=records, conditions=[{"name": name}]))
    for markdown in (odd, full[1]):
        block: list[int] = []
        for line in [*markdown.splitlines(), ""]:
            cells = len(re.findall(r"(?<!\\)\|", line))
            block = [*block, cells] if line.startswith("|") else []
            assert not line.startswith("|") or line.endswith("|")
            assert len(set(block)) <= 1, line


OPTIONAL = ("version", "axes", "real", "synthetic", "settings", "extractors", "skipped")
OPTIONAL += ("command", "encoder", "generator", "generator_card", "curves", "pairs")


@pytest.mark.parametrize("part", OPTIONAL)
def test_optional_parts_may_be_absent(tmp_path: Path, part: str) -> None:
    content = full_metrics()
    content["records"] = content["records"][::7]
    del content[part]
    pages(tmp_path, content)


def test_all_optional_parts_may_be_null(tmp_path: Path) -> None:
    pages(tmp_path, full_metrics() | dict.fromkeys(OPTIONAL))


@pytest.mark.parametrize("axis", AXES)
def test_one_axis_alone(tmp_path: Path, axis: str) -> None:
    content = full_metrics()
    records = [r for r in content["records"] if r["axis"] == axis]
    page, _ = pages(tmp_path, content | {"records": records, "axes": [axis], "curves": {}})
    assert "not asked for" in page.text


def test_records_with_nothing_but_their_value(tmp_path: Path) -> None:
    content = full_metrics()
    bare = copy.deepcopy(content)
    bare["records"] = [{k: r[k] for k in ("axis", "metric", "value")} for r in content["records"]]
    pages(tmp_path, bare)


def test_a_pair_of_a_network_whose_name_has_a_dot_has_its_picture(tmp_path: Path) -> None:
    pair = {"picture": "pair_module_resnet50.a1_in1k_1", "rank": 1, "space": "module"}
    page, _ = pages(tmp_path, minimal_metrics(pairs=[pair]))
    assert any("nearest training image" in alt for alt in page.images)


def test_odd_pairs_do_no_harm(tmp_path: Path) -> None:
    odd: list[dict[str, Any]] = [{}, {"picture": 3}, {"picture": "../../secret"}]
    odd += [{"picture": "p", "rank": "x", "condition": 3, "relative": None, "flagged": "yes"}]
    page, _ = pages(tmp_path, minimal_metrics(pairs=[{"picture": "p"}, *odd[3:]]))
    assert "flagged as a copy" not in page.text
    folder = write_evaluation(tmp_path / "other", minimal_metrics())
    (folder / "metrics.json").write_text(json.dumps(minimal_metrics(pairs=odd)))
    report([folder], tmp_path / "other.html")
