"""`cxr evaluate` on small folders: its numbers, and what it leaves out."""

import inspect
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from brightness_sets import (
    BRIGHTNESS,
    SIZE,
    draw_image,
    label_row,
    make_encoder,
    make_generator,
    metrics_of,
    records_of,
)
from PIL import Image

from cxr_lightning.artifacts import product_sha256, save_product
from cxr_lightning.commands.evaluate import _command, evaluate
from cxr_lightning.commands.report import report
from cxr_lightning.data.prepared import open_prepared
from cxr_lightning.errors import UserError
from cxr_lightning.evaluation import facts
from cxr_lightning.evaluation.work import Work, make_grid
from cxr_lightning.networks.classifier import Classifier

FAST = ["fidelity", "representation"]

FIDELITY = {
    *("fid", "kid", "fid_equal_n", "embedding_diversity", "ms_ssim"),
    *("precision", "recall", "density", "coverage", "histogram_distance", "spectral_distance"),
}


def test_fidelity_per_condition(real: Path, synthetic: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(real, synthetic, out, extractor=["fixed"], axes=["fidelity"], bootstrap=40)
    records = records_of(out)
    found = {metric for metric, condition in records if condition == "healthy"}
    assert found >= FIDELITY
    assert {c for _, c in records} == {"healthy", "pneumonia", "all"}
    record = records["fid", "healthy"]
    assert (record["n_real"], record["n_synthetic"]) == (24, 12)
    assert record["ci_low"] <= record["value"] <= record["ci_high"]
    assert record["floor_n"] == 12
    assert record["floor_low"] <= record["real_floor"] <= record["floor_high"]
    assert record["details"]["real_split"] == "all"
    assert record["extractor"] == "fixed"
    assert record["preprocessing"]
    assert "no more images than features on one side" in record["warning"]
    # Real and synthetic come from the same distribution here.
    assert record["value_at_floor_n"] == pytest.approx(record["real_floor"], rel=0.5)
    assert record["passed"] is True
    assert records["fid", "all"]["n_real"] == 48
    # Conditions are compared at the same number of images: 10 of pneumonia.
    assert {records["fid_equal_n", c]["floor_n"] for c in BRIGHTNESS} == {10}


def test_numbers_of_subgroups(real: Path, synthetic: Path, tmp_path: Path) -> None:
    table = pd.read_csv(real / "table.csv")
    table.loc[:9, "AP/PA"] = "AP"
    table.to_csv(real / "table.csv", index=False)
    evaluate(real, synthetic, tmp_path / "out", extractor=["fixed"], axes=["fidelity"], bootstrap=0)
    records = metrics_of(tmp_path / "out")["records"]
    groups = {r["subgroup"]: r for r in records if r["metric"] == "fid"}
    # All are men of 50 years: those subgroups would repeat the whole. No synthetic image is AP.
    assert set(groups) == {"all", "view=PA"}
    assert groups["view=PA"]["condition"] == "all"
    assert (groups["view=PA"]["n_real"], groups["view=PA"]["n_synthetic"]) == (38, 22)
    of_view = {r["metric"] for r in records if r["subgroup"] == "view=PA"}
    assert of_view == FIDELITY - {"fid_equal_n"}


def test_swapped_conditions_fail_fidelity(real: Path, synthetic: Path, tmp_path: Path) -> None:
    """The negative control: swapped conditions are far above the floor."""
    manifest = json.loads((synthetic / "manifest.json").read_text())
    for image in manifest["images"]:
        image["condition"] = "healthy" if image["condition"] == "pneumonia" else "pneumonia"
    (synthetic / "manifest.json").write_text(json.dumps(manifest))
    evaluate(real, synthetic, tmp_path / "out", extractor=["fixed"], axes=FAST, bootstrap=0)
    for condition in BRIGHTNESS:
        record = records_of(tmp_path / "out")["fid", condition]
        assert record["value_at_floor_n"] > 5 * record["real_floor"]
        assert record["passed"] is False
        assert record["ci_low"] is None
        assert record["ci_high"] is None


def test_identities_and_no_paths(real: Path, synthetic: Path, tmp_path: Path) -> None:
    evaluate(real, synthetic, tmp_path / "out", extractor=["fixed"], axes=FAST, bootstrap=0)
    text = (tmp_path / "out" / "metrics.json").read_text()
    assert "/secret/place" not in text
    assert str(tmp_path) not in text
    content = json.loads(text)
    facts = {"source": "test", "sha256": "ab" * 32, "size": SIZE, "count": 48, "patients": 24}
    assert content["real"] | facts == content["real"]
    assert content["real"]["splits"] == {"train": 32, "valid": 16}
    command = "cxr evaluate --real real --synthetic synthetic --out out --extractor fixed"
    assert content["command"].startswith(command)
    assert content["synthetic"]["product_sha256"] == "cd" * 32
    assert content["synthetic"]["guidance"] == 1.5
    assert content["extractors"][0]["num_features"] == 64
    assert content["conditions"][0]["definition"] == "No Finding = 1, Support Devices not 1"
    assert {p.name for p in (tmp_path / "out" / "grids").iterdir()} == {
        f"{c}_{kind}.png" for c in BRIGHTNESS for kind in ("original", "generated")
    }


def test_products_of_one_name_are_told_apart_in_the_command() -> None:
    arguments = {name: p.default for name, p in inspect.signature(evaluate).parameters.items()}
    named = {
        "real": Path("/secret/prepared"),
        "encoder": Path("/secret/runs/moco/product"),
        "generator": Path("product"),
        "extractor": ["encoder=/secret/held/product", "module=/secret/net.pt", "fixed"],
        "classifier": Path("evaluation/classifier"),
    }
    command = _command(arguments | named | {"synthetic": Path("s"), "out": Path("o")})
    assert command == (
        "cxr evaluate --real prepared --synthetic s --out o --encoder moco/product --generator "
        "product --extractor encoder=held/product module=net.pt fixed "
        "--classifier evaluation/classifier"
    )


def test_axes_without_features_need_no_extractor(
    real: Path, synthetic: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"bootstrap": 0, "classifier_steps": 1, "utility_seeds": 1}
    evaluate(real, synthetic, tmp_path / "out", axes=["condition", "utility"], **settings)
    content = metrics_of(tmp_path / "out")
    assert content["extractors"] == []
    assert content["records"]
    report([tmp_path / "out"], tmp_path / "report.html")


def test_same_arguments_same_bytes(real: Path, synthetic: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        evaluate(
            real,
            synthetic,
            tmp_path / name / "out",
            extractor=["fixed"],
            axes=FAST,
            bootstrap=25,
            cache=tmp_path / name,
        )
    one, two = ((tmp_path / n / "out/metrics.json").read_text() for n in ("one", "two"))
    assert one.replace("--cache one", "--cache two") == two


def test_representation_without_generator_is_left_out(
    real: Path, synthetic: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(
        real,
        synthetic,
        tmp_path / "out",
        encoder=encoder,
        extractor=["fixed"],
        axes=FAST,
        bootstrap=0,
    )
    assert "left out, since it needs --generator" in capsys.readouterr().out
    content = metrics_of(tmp_path / "out")
    assert not [r for r in content["records"] if r["axis"] == "representation"]
    assert {s["axis"] for s in content["skipped"]} == {"fidelity", "representation"}
    assert content["encoder"] == product_sha256(encoder)


def test_representation_and_its_calibration(
    real: Path, synthetic: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = make_generator(tmp_path / "generator")
    out = tmp_path / "out"
    evaluate(
        real,
        synthetic,
        out,
        encoder=encoder,
        generator=generator,
        extractor=["encoder"],
        axes=FAST,
        reconstructions=5,
        bootstrap=30,
    )
    assert "made by another product than --generator" in capsys.readouterr().err
    records = records_of(out)
    for condition in BRIGHTNESS:
        values = {m: records[m, condition]["value"] for m in ("rrs", "rrs_vae", "rrs_ceil_same")}
        floor = records["rrs_floor_pixel", condition]["value"]
        assert 0 < records["rrs_floor_augment", condition]["value"] <= 2
        assert all(0 <= value <= 2 for value in values.values())
        assert floor < values["rrs_ceil_same"]
        assert records["rrs_ceil_random", condition]["value"] > 0
        nrrs = records["nrrs", condition]
        assert nrrs["value"] == pytest.approx(values["rrs"] / values["rrs_ceil_same"])
        rrs = records["rrs", condition]
        assert rrs["ci_low"] <= rrs["value"] <= rrs["ci_high"]
        assert rrs["real_floor"] == floor
        assert rrs["n_real"] == rrs["n_synthetic"] == 5
        sampled = {"split": "valid", "sampler": "sde_dpmpp_2m", "steps": 20, "spacing": "beta"}
        assert rrs["details"] | sampled == rrs["details"]
        assert "only 5 held-out images" in rrs["warning"]
    assert metrics_of(out)["generator"] == product_sha256(generator)
    assert metrics_of(out)["real"]["is_training_data"] is None
    for sets, known in (({"data": "ef" * 32}, False), ({"earlier_data": ["ab" * 32]}, True)):
        manifest = {"data": "cd" * 32, "sha256": "cd" * 32} | sets
        assert facts._is_training_data(open_prepared(real), manifest) is known
    assert records["fid", "healthy"]["extractor_sha256"] == product_sha256(encoder)
    assert (out / "grids" / "healthy_reconstruction.png").is_file()


def test_the_score_by_view_and_beside_another_patient_of_the_view(
    real: Path, synthetic: Path, encoder: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(real / "table.csv", keep_default_na=False, dtype=str)
    other = table["patient"].str[-5:].astype(int) // 2 % 2 == 1
    table["AP/PA"] = other.map({True: "AP", False: "PA"})
    table.to_csv(real / "table.csv", index=False)
    images = np.load(real / "images.npy")
    images[other.to_numpy(), :, : SIZE // 2] //= 4  # a view that any encoder sees
    np.save(real / "images.npy", images)
    evaluate(
        real,
        synthetic,
        tmp_path / "out",
        encoder=encoder,
        generator=make_generator(tmp_path / "generator"),
        extractor=["fixed"],
        axes=["representation"],
        bootstrap=0,
    )
    records = {
        (r["metric"], r["condition"], r["subgroup"]): r
        for r in metrics_of(tmp_path / "out")["records"]
    }
    for condition in BRIGHTNESS:
        whole = records["rrs", condition, "all"]
        parts = [records["rrs", condition, f"view={view}"] for view in ("AP", "PA")]
        assert sum(part["n_real"] for part in parts) == whole["n_real"] == 8
        total = sum(part["n_real"] * part["value"] for part in parts)
        assert total == pytest.approx(8 * whole["value"])
        assert parts[0]["value"] != pytest.approx(parts[1]["value"], rel=1e-3)
        assert ("nrrs", condition, "view=AP") in records
        assert ("rrs", condition, "sex=Male") not in records  # that is all of them
        same, view = (
            records[f"rrs_ceil_{name}", condition, "all"]["value"] for name in ("same", "view")
        )
        assert view < same
    report([tmp_path / "out"], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Other patient, same condition and view" in page
    assert "Healthy, View AP" in page


def test_score_by_the_encoder_of_the_fine_tuning_is_flagged(
    real: Path, synthetic: Path, encoder: Path, tmp_path: Path
) -> None:
    facts = {"parents": {"encoder": product_sha256(encoder)}}
    generator = make_generator(tmp_path / "generator", facts=facts)
    products: dict[str, Any] = {"encoder": encoder, "generator": generator}
    evaluate(
        real,
        synthetic,
        tmp_path / "out",
        extractor=["fixed"],
        axes=FAST,
        bootstrap=0,
        reconstructions=2,
        **products,
    )
    warning = records_of(tmp_path / "out")["rrs", "healthy"]["warning"]
    assert "with this very encoder" in warning
    assert "give --encoder_held_out" in warning


@pytest.mark.parametrize("facts", ["parents", "ancestors"])
def test_distances_by_the_encoder_of_any_fine_tuning_are_flagged(
    real: Path, synthetic: Path, encoder: Path, tmp_path: Path, facts: str
) -> None:
    sha256 = product_sha256(encoder)
    named: dict[str, Any] = {"parents": {"encoder": sha256}, "ancestors": [sha256]}
    maker = make_generator(tmp_path / "maker", facts={facts: named[facts]})
    state_maker(synthetic, maker)
    options: dict[str, Any] = {"encoder": encoder, "axes": FAST, "bootstrap": 0}
    evaluate(real, synthetic, tmp_path / "out", reconstructions=2, **options)
    records = records_of(tmp_path / "out")
    for metric in ("fid", "fid_equal_n", "kid", "precision", "rrs"):
        assert "with this very encoder" in records[metric, "healthy"]["warning"]
    with pytest.raises(UserError, match="encoder_held_out: .* fine-tuned with"):
        other = make_encoder(tmp_path / "other", seed=1)
        options |= {"encoder": other, "encoder_held_out": encoder}
        evaluate(real, synthetic, tmp_path / "out2", **options)


def state_maker(synthetic: Path, product: Path) -> None:
    """Has the manifest of a set say which product made it."""
    manifest = json.loads((synthetic / "manifest.json").read_text())
    manifest["product"] = {"path": str(product), "sha256": product_sha256(product)}
    (synthetic / "manifest.json").write_text(json.dumps(manifest | {"size": SIZE}))


def test_the_product_that_made_the_images_is_found_by_their_manifest(
    real: Path, synthetic: Path, encoder: Path, tmp_path: Path
) -> None:
    maker = make_generator(tmp_path / "maker", facts={"data": "ab" * 32})
    state_maker(synthetic, maker)
    options: dict[str, Any] = {"axes": ["representation"], "bootstrap": 0, "reconstructions": 2}
    evaluate(real, synthetic, tmp_path / "out", encoder=encoder, **options)
    content = metrics_of(tmp_path / "out")
    assert content["generator"] == product_sha256(maker)
    assert content["real"]["is_training_data"] is True
    assert ("rrs", "healthy") in records_of(tmp_path / "out")
    # another generator says nothing of what these images were trained on
    other = make_generator(tmp_path / "other", facts={"data": "ef" * 32}, seed=1)
    evaluate(real, synthetic, tmp_path / "out", encoder=encoder, generator=other, **options)
    assert metrics_of(tmp_path / "out")["real"]["is_training_data"] is True
    maker.rename(tmp_path / "moved")
    evaluate(real, synthetic, tmp_path / "out", encoder=encoder, generator=other, **options)
    assert metrics_of(tmp_path / "out")["real"]["is_training_data"] is None


def test_what_else_lies_in_the_folder_stays(real: Path, synthetic: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"extractor": ["fixed"], "axes": ["fidelity"], "bootstrap": 0}
    out = tmp_path / "out"
    evaluate(real, synthetic, out, **options)
    (out / "report.html").write_text("mine")
    shutil.copytree(synthetic, out / "synthetic")
    with pytest.raises(UserError, match="synthetic: .* lies in .*out, which"):
        evaluate(real, out / "synthetic", out, **options)
    evaluate(real, synthetic, out, seed=1, **options)
    names = {path.name for path in out.iterdir()}
    assert names == {"report.html", "synthetic", "grids", "pairs", "metrics.json"}
    assert metrics_of(out)["settings"]["seed"] == 1
    assert (out / "report.html").read_text() == "mine"


def test_a_second_evaluation_of_the_folder_waits_its_turn(
    real: Path, synthetic: Path, tmp_path: Path
) -> None:
    first = Work(tmp_path / ".out.partial")
    options: dict[str, Any] = {"extractor": ["fixed"], "axes": ["fidelity"], "bootstrap": 0}
    with first.lock, pytest.raises(UserError, match="out: another 'cxr evaluate' is at work in"):
        evaluate(real, synthetic, tmp_path / "out", **options)
    evaluate(real, synthetic, tmp_path / "out", **options)
    assert metrics_of(tmp_path / "out")["records"]


def test_a_held_out_encoder_scores_the_same_images_beside_it(
    real: Path, synthetic: Path, encoder: Path, tmp_path: Path
) -> None:
    facts = {"parents": {"encoder": product_sha256(encoder)}}
    other = make_encoder(tmp_path / "other", seed=1)
    evaluate(
        real,
        synthetic,
        tmp_path / "out",
        encoder=encoder,
        encoder_held_out=other,
        generator=make_generator(tmp_path / "generator", facts=facts),
        extractor=["fixed"],
        axes=["representation"],
        bootstrap=0,
        reconstructions=2,
    )
    content = metrics_of(tmp_path / "out")
    assert content["encoder_held_out"] == product_sha256(other)
    for metric in ("rrs", "rrs_floor_augment", "rrs_vae", "rrs_ceil_same", "nrrs"):
        found = [
            r for r in content["records"] if (r["metric"], r["condition"]) == (metric, "healthy")
        ]
        assert [r["extractor"] for r in found] == ["encoder", "encoder_held_out"]
        assert [r["extractor_sha256"] for r in found] == [
            product_sha256(encoder), product_sha256(other)
        ]  # fmt: skip
        assert found[0]["value"] != found[1]["value"]
        if metric == "rrs":
            assert "read that of the held-out encoder" in found[0]["warning"]
            assert "very encoder" not in found[1]["warning"]
    report(evaluation=[tmp_path / "out"], out=tmp_path / "report.html")
    markdown = (tmp_path / "report.md").read_text()
    assert re.search(r"^\| Condition \| Encoder \| Resize round trip \|", markdown, re.MULTILINE)
    for name in ("given", "held out"):
        assert re.search(rf"^\| Healthy \| {name} \| [0-9]", markdown, re.MULTILINE)
    assert "held-out encoder" in markdown


def test_a_generator_tuned_to_few_steps_reconstructs_with_its_own_sampler(
    real: Path, synthetic: Path, encoder: Path, tmp_path: Path
) -> None:
    facts = {"sampling": {"sampler": "consistency", "steps": 2}}
    generator = make_generator(tmp_path / "generator", facts=facts)
    products: dict[str, Any] = {"encoder": encoder, "generator": generator}
    evaluate(
        real,
        synthetic,
        tmp_path / "out",
        extractor=["fixed"],
        axes=["representation"],
        bootstrap=0,
        reconstructions=2,
        **products,
    )
    details = records_of(tmp_path / "out")["rrs", "healthy"]["details"]
    assert details | facts["sampling"] == details


def test_condition_without_held_out_images_is_skipped(
    real: Path, synthetic: Path, encoder: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(real / "table.csv")
    table.loc[table["Pneumonia"] == 1, "split"] = "train"
    table.to_csv(real / "table.csv", index=False)
    generator = make_generator(tmp_path / "generator")
    products: dict[str, Any] = {"encoder": encoder, "generator": generator}
    evaluate(
        real,
        synthetic,
        tmp_path / "out",
        extractor=["fixed"],
        axes=FAST,
        bootstrap=0,
        reconstructions=2,
        **products,
    )
    assert ("rrs", "healthy") in records_of(tmp_path / "out")
    assert ("rrs", "pneumonia") not in records_of(tmp_path / "out")
    assert any("held-out split" in s["reason"] for s in metrics_of(tmp_path / "out")["skipped"])


def test_folder_of_another_tool(real: Path, tmp_path: Path) -> None:
    """Only train.csv and images: conditions from the labels; JPEG; colour; paths as CheXpert's."""
    folder = tmp_path / "other"
    conditions = ["healthy"] * 6 + ["pneumonia"] * 5
    rows = []
    for i, condition in enumerate(conditions):
        path = f"train/patient{i:05}/study1/view1_frontal.jpg"
        (folder / path).parent.mkdir(parents=True)
        Image.fromarray(draw_image(condition, i)).convert("RGB").save(folder / path)
        rows.append(label_row(condition, f"SomeName/{path}"))
    pd.DataFrame(rows).to_csv(folder / "train.csv", index=False)
    evaluate(real, folder, tmp_path / "out", extractor=["fixed"], axes=FAST, bootstrap=0)
    content = metrics_of(tmp_path / "out")
    assert [c["name"] for c in content["conditions"]] == ["healthy", "pneumonia"]
    assert records_of(tmp_path / "out")["fid", "pneumonia"]["n_synthetic"] == 5
    assert content["synthetic"]["product_sha256"] is None


def test_split_and_conditions_chosen(real: Path, synthetic: Path, tmp_path: Path) -> None:
    evaluate(
        real,
        synthetic,
        tmp_path / "out",
        extractor=["fixed"],
        axes=FAST,
        bootstrap=0,
        conditions="pneumonia, edema",
        split="train",
    )
    content = metrics_of(tmp_path / "out")
    assert records_of(tmp_path / "out")["fid", "pneumonia"]["n_real"] == 16
    skipped = [s for s in content["skipped"] if s["axis"] == "fidelity"]
    assert [s["condition"] for s in skipped if s["metric"] == "all"] == ["edema"]
    few = {s["metric"] for s in skipped if s["metric"] != "all"}
    assert few == {"fid_infinity by fixed"}
    assert "0 real and 0 synthetic images" in skipped[0]["reason"]


def test_earlier_evaluation_is_replaced(real: Path, synthetic: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(real, synthetic, out, extractor=["fixed"], axes=FAST, bootstrap=0)
    (out / "grids" / "stale.png").touch()
    evaluate(real, synthetic, out, extractor=["fixed"], axes=FAST, bootstrap=0)
    assert not (out / "grids" / "stale.png").exists()


def test_without_labels_conditions_are_left_out(
    real: Path, synthetic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (synthetic / "train.csv").unlink()
    (synthetic / "manifest.json").unlink()
    out = tmp_path / "out"
    evaluate(real, synthetic, out, extractor=["fixed"], bootstrap=0)
    assert "have no labels" in capsys.readouterr().out
    content = metrics_of(out)
    assert content["conditions"] == []
    assert {r["axis"] for r in content["records"]} == {"fidelity", "privacy"}
    assert {s["axis"] for s in content["skipped"]} >= {"representation", "condition", "utility"}
    assert records_of(out)["fid", "all"]["n_real"] == 48
    assert {p.name for p in (out / "grids").iterdir()} == {"all_generated.png", "all_original.png"}


def test_grid() -> None:
    images = np.stack([np.full((3, 2), value, dtype=np.uint8) for value in range(10, 70, 10)])
    sheet = np.asarray(make_grid(images))
    assert sheet.shape == (7, 11)
    assert sheet[0, 3] == 20
    assert sheet[4, 3] == 60
    assert sheet[3].max() == 0
    assert np.asarray(make_grid(images[:2])).shape == (3, 5)


def test_a_link_as_out_is_followed(real: Path, synthetic: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk", target_is_directory=True)
    for _ in range(2):
        evaluate(real, synthetic, tmp_path / "out", extractor=["fixed"], axes=FAST, bootstrap=0)
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "metrics.json").is_file()


def test_one_condition_named_twice_counts_once(real: Path, synthetic: Path, tmp_path: Path) -> None:
    asked = "pneumonia,Pneumonia"
    evaluate(
        real,
        synthetic,
        tmp_path / "out",
        extractor=["fixed"],
        axes=FAST,
        bootstrap=0,
        conditions=asked,
    )
    assert [c["name"] for c in metrics_of(tmp_path / "out")["conditions"]] == ["pneumonia"]


def test_a_classifier_of_an_unfinished_request_does_not_go_along(tmp_path: Path) -> None:
    work = Work(tmp_path / ".out.partial")
    network = Classifier(image_size=16, width=8)
    save_product(work.folder / "classifier", "classifier", {"classifier": network}, {})
    sha256 = product_sha256(work.folder / "classifier")
    work.discard()
    assert work.folder.exists()  # with what an earlier run trained
    work.finish(tmp_path / "out", {"classifier": sha256})
    assert (tmp_path / "out/classifier").is_dir()
    shutil.copytree(tmp_path / "out/classifier", tmp_path / ".out.partial/classifier")
    work.lock.close()
    work = Work(tmp_path / ".out.partial")
    with work.lock:
        work.finish(tmp_path / "out", {"classifier": "ab" * 32})
    assert not (tmp_path / "out/classifier").exists()
