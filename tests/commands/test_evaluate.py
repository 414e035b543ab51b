"""`cxr evaluate` on small folders: numbers, skips, mistakes, and nothing half-written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from cxr_lightning.artifacts import product_sha256, save_product
from cxr_lightning.commands import evaluate as module
from cxr_lightning.commands.evaluate import evaluate
from cxr_lightning.data.prepared import hash_rows
from cxr_lightning.diffusion.prior import LatentPrior
from cxr_lightning.errors import UserError
from cxr_lightning.evaluation import synthetic as synthetic_module
from cxr_lightning.evaluation.records import AxisResult
from cxr_lightning.evaluation.work import make_grid
from cxr_lightning.networks.autoencoder import Autoencoder
from cxr_lightning.networks.encoder import Encoder
from cxr_lightning.networks.unet import Denoiser
from cxr_lightning.types import OBSERVATIONS

SIZE = 32
FAST = ["fidelity", "representation"]
BRIGHTNESS = {"healthy": 80, "pneumonia": 160}


def _image(condition: str, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 30, (SIZE, SIZE))
    return np.clip(BRIGHTNESS[condition] + noise, 0, 255).astype(np.uint8)


def _row(condition: str, path: str) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(OBSERVATIONS)
    row["No Finding" if condition == "healthy" else "Pneumonia"] = 1.0
    fields = {"Path": path, "Sex": "Male", "Age": 50, "Frontal/Lateral": "Frontal", "AP/PA": "PA"}
    return {**fields, **row}


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """48 images of 24 patients: half healthy, half pneumonia; every third patient held out."""
    folder = tmp_path / "real"
    folder.mkdir()
    rows, images = [], []
    for i in range(48):
        patient = i // 2
        condition = "healthy" if patient % 2 else "pneumonia"
        row = _row(condition, f"x/train/patient{patient:05}/study1/view{i % 2 + 1}_frontal.png")
        split = "valid" if patient % 3 == 0 else "train"
        rows.append(row | {"patient": f"patient{patient:05}", "study": "study1", "split": split})
        images.append(_image(condition, i))
    table = pd.DataFrame(rows).assign(width=SIZE, height=SIZE)
    table.to_csv(folder / "table.csv", index=False)
    np.save(folder / "images.npy", np.stack(images))
    header = {"format": 2, "source": "test", "count": 48, "size": SIZE, "sha256": "ab" * 32}
    header |= {
        "origins": [],
        "request": "",
        "resize": {},
        "versions": {},
        "rows_sha256": hash_rows(table),
    }
    (folder / "header.json").write_text(json.dumps(header))
    (folder / "failures.csv").write_text("Path,reason\n")
    return folder


def _write_images(folder: Path, conditions: list[str]) -> list[str]:
    paths = []
    for i, condition in enumerate(conditions):
        path = f"train/patient{i + 1:05}/study1/view1_frontal.png"
        (folder / path).parent.mkdir(parents=True)
        Image.fromarray(_image(condition, 1000 + i)).save(folder / path)
        paths.append(path)
    return paths


@pytest.fixture
def synthetic(tmp_path: Path) -> Path:
    """As `cxr generate` writes it: 12 healthy, 10 pneumonia."""
    folder = tmp_path / "synthetic"
    conditions = ["healthy"] * 12 + ["pneumonia"] * 10
    paths = _write_images(folder, conditions)
    rows = [_row(c, f"synthetic/{p}") for p, c in zip(paths, conditions, strict=True)]
    pd.DataFrame(rows).to_csv(folder / "train.csv", index=False)
    manifest = {
        "format": 1,
        "kind": "synthetic",
        "product": {"path": "/secret/place", "sha256": "cd" * 32},
        "seed": 7,
        "sampler": "ddim",
        "steps": 20,
        "guidance": 1.5,
        "size": SIZE,
        "images": [
            {"path": p, "condition": c, "index": i}
            for i, (p, c) in enumerate(zip(paths, conditions, strict=True))
        ],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = Encoder(image_size=SIZE, width=4, backbone="small", dim=8)
    save_product(tmp_path / "encoder", "encoder", {"encoder": network}, {})
    return tmp_path / "encoder"


def _make_generator(folder: Path, size: int = SIZE, facts: dict[str, Any] | None = None) -> Path:
    torch.manual_seed(0)
    networks: dict[str, nn.Module] = {
        "autoencoder": Autoencoder(image_size=size, width=4, latent_dim=4),
        "prior": LatentPrior(latent_dim=4),
        "denoiser": Denoiser(image_size=size, width=32, multipliers=[1, 1], blocks=1, attention=[]),
    }
    save_product(folder, "generator", networks, facts or {})
    return folder


def _metrics(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return content


def _records(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(r["metric"], r["condition"]): r for r in _metrics(out)["records"]}


FIDELITY = {
    *("fid", "kid", "fid_equal_n", "embedding_diversity", "ms_ssim"),
    *("precision", "recall", "density", "coverage", "histogram_distance", "spectral_distance"),
}


def test_fidelity_per_condition(real: Path, synthetic: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(real, synthetic, out, extractor=["fixed"], axes=["fidelity"], bootstrap=40)
    records = _records(out)
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
    records = _metrics(tmp_path / "out")["records"]
    groups = {r["subgroup"]: r for r in records if r["metric"] == "fid"}
    # All are men of 50 years: those subgroups would repeat the whole. No synthetic image is AP.
    assert set(groups) == {"all", "view=PA"}
    assert groups["view=PA"]["condition"] == "all"
    assert (groups["view=PA"]["n_real"], groups["view=PA"]["n_synthetic"]) == (38, 22)


def test_swapped_conditions_fail_fidelity(real: Path, synthetic: Path, tmp_path: Path) -> None:
    """The negative control: swapped conditions are far above the floor."""
    manifest = json.loads((synthetic / "manifest.json").read_text())
    for image in manifest["images"]:
        image["condition"] = "healthy" if image["condition"] == "pneumonia" else "pneumonia"
    (synthetic / "manifest.json").write_text(json.dumps(manifest))
    evaluate(real, synthetic, tmp_path / "out", extractor=["fixed"], axes=FAST, bootstrap=0)
    for condition in BRIGHTNESS:
        record = _records(tmp_path / "out")["fid", condition]
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
    content = _metrics(tmp_path / "out")
    assert not [r for r in content["records"] if r["axis"] == "representation"]
    assert [s["axis"] for s in content["skipped"]] == ["representation"]
    assert content["encoder"] == product_sha256(encoder)


def test_representation_and_its_calibration(
    real: Path, synthetic: Path, encoder: Path, tmp_path: Path
) -> None:
    generator = _make_generator(tmp_path / "generator")
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
    records = _records(out)
    for condition in BRIGHTNESS:
        values = {m: records[m, condition]["value"] for m in ("rrs", "rrs_vae", "rrs_ceil_same")}
        floor = records["rrs_floor_pixel", condition]["value"]
        assert all(0 <= value <= 2 for value in values.values())
        assert floor < values["rrs_ceil_same"]
        assert records["rrs_ceil_random", condition]["value"] > 0
        nrrs = records["nrrs", condition]
        assert nrrs["value"] == pytest.approx(values["rrs"] / values["rrs_ceil_same"])
        rrs = records["rrs", condition]
        assert rrs["ci_low"] <= rrs["value"] <= rrs["ci_high"]
        assert rrs["real_floor"] == floor
        assert rrs["n_real"] == rrs["n_synthetic"] == 5
        assert rrs["details"] | {"split": "valid", "sampler": "ddim", "steps": 20} == rrs["details"]
        assert "only 5 held-out images" in rrs["warning"]
    assert _metrics(out)["generator"] == product_sha256(generator)
    assert records["fid", "healthy"]["extractor_sha256"] == product_sha256(encoder)
    assert (out / "grids" / "healthy_reconstruction.png").is_file()


def test_score_by_the_encoder_of_the_fine_tuning_is_flagged(
    real: Path, synthetic: Path, encoder: Path, tmp_path: Path
) -> None:
    facts = {"parents": {"encoder": product_sha256(encoder)}}
    generator = _make_generator(tmp_path / "generator", facts=facts)
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
    assert "with this very encoder" in _records(tmp_path / "out")["rrs", "healthy"]["warning"]


def test_condition_without_held_out_images_is_skipped(
    real: Path, synthetic: Path, encoder: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(real / "table.csv")
    table.loc[table["Pneumonia"] == 1, "split"] = "train"
    table.to_csv(real / "table.csv", index=False)
    generator = _make_generator(tmp_path / "generator")
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
    assert ("rrs", "healthy") in _records(tmp_path / "out")
    assert ("rrs", "pneumonia") not in _records(tmp_path / "out")
    assert any("held-out split" in s["reason"] for s in _metrics(tmp_path / "out")["skipped"])


def test_folder_of_another_tool(real: Path, tmp_path: Path) -> None:
    """Only train.csv and images: conditions from the labels; JPEG; colour; paths as CheXpert's."""
    folder = tmp_path / "other"
    conditions = ["healthy"] * 6 + ["pneumonia"] * 5
    rows = []
    for i, condition in enumerate(conditions):
        path = f"train/patient{i:05}/study1/view1_frontal.jpg"
        (folder / path).parent.mkdir(parents=True)
        Image.fromarray(_image(condition, i)).convert("RGB").save(folder / path)
        rows.append(_row(condition, f"SomeName/{path}"))
    pd.DataFrame(rows).to_csv(folder / "train.csv", index=False)
    evaluate(real, folder, tmp_path / "out", extractor=["fixed"], axes=FAST, bootstrap=0)
    content = _metrics(tmp_path / "out")
    assert [c["name"] for c in content["conditions"]] == ["healthy", "pneumonia"]
    assert _records(tmp_path / "out")["fid", "pneumonia"]["n_synthetic"] == 5
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
    content = _metrics(tmp_path / "out")
    assert _records(tmp_path / "out")["fid", "pneumonia"]["n_real"] == 16
    skipped = [s for s in content["skipped"] if s["axis"] == "fidelity"]
    assert [s["condition"] for s in skipped] == ["edema"]
    assert "0 real and 0 synthetic images" in skipped[0]["reason"]


def test_earlier_evaluation_is_replaced(real: Path, synthetic: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(real, synthetic, out, extractor=["fixed"], axes=FAST, bootstrap=0)
    (out / "grids" / "stale.png").touch()
    evaluate(real, synthetic, out, extractor=["fixed"], axes=FAST, bootstrap=0)
    assert not (out / "grids" / "stale.png").exists()


def _set_manifest(key: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {key: value}))

    return change


def _other_size(folder: Path) -> None:
    path = next((folder / "train").rglob("*.png"))
    Image.new("L", (24, 24)).save(path)  # smaller than the real images


def _unreadable(folder: Path) -> None:
    next((folder / "train").rglob("*.png")).write_bytes(b"no image")


def _unknown_condition(folder: Path) -> None:
    text = (folder / "manifest.json").read_text().replace("pneumonia", "flu")
    (folder / "manifest.json").write_text(text)


def _only_a_table(text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "manifest.json").unlink()
        (folder / "train.csv").write_text(text)

    return change


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_size, r"synthetic: .* has 24 x 24 pixels but the real images have 32 x 32"),
        (_unreadable, r"synthetic: 1 images in .* cannot be read"),
        (_empty, r"synthetic: .* holds no image"),
        (_set_manifest("images", []), r"synthetic: .* do not list the same images"),
        (_set_manifest("format", 2), r"synthetic: .* in format 1"),
        (_set_manifest("images", 3), r"synthetic: .*manifest.json cannot be read"),
        (_unknown_condition, r"condition: 'flu' in 'flu' is not a health condition"),
        (_only_a_table(""), r"synthetic: .*train.csv has no rows"),
        (
            _only_a_table("Path,Sex\na.png,Male\n"),
            r"synthetic: 1 images in .* \(first: a.png: no such",
        ),
    ],
)
def test_broken_synthetic_folder(
    real: Path, synthetic: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    change(synthetic)
    with pytest.raises(UserError, match=message):
        evaluate(real, synthetic, tmp_path / "out", extractor=["fixed"], axes=FAST)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["real", "synthetic"]


def test_unreadable_share_is_listed_not_dropped(
    real: Path, synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic_module, "MAX_UNREADABLE", 0.1)
    _unreadable(synthetic)
    evaluate(real, synthetic, tmp_path / "out", extractor=["fixed"], axes=FAST, bootstrap=0)
    content = _metrics(tmp_path / "out")
    assert content["synthetic"]["count"] == 21
    assert len(content["synthetic"]["failures"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size: 0 is too few"),
        ({"reconstructions": 0}, "reconstructions: 0 is too few"),
        ({"bootstrap": -1}, "bootstrap: -1 is negative"),
        ({"conditions": "measles"}, "condition: 'measles' in 'measles' is not a health condition"),
        ({"conditions": "edema"}, r"conditions: no condition \(edema\) has both real and synth"),
        ({"conditions": ","}, r"conditions: no condition \(none\) has both"),
        ({"encoder": Path("/absent")}, "encoder: no product at /absent"),
        ({"generator": Path("/absent")}, "generator: .* needs an encoder too"),
        ({"extractor": ["encoder"]}, "extractor: .*encoder"),
        ({"extractor": ["measles"]}, "extractor: 'measles'"),
        ({"axes": ["measles"]}, "axes: 'measles' is no axis"),
        ({"utility_seeds": 0}, "utility_seeds: 0 is too few"),
        ({"utility_fractions": [0.1, 2.0]}, "utility_fractions: 2.0 is no share"),
        ({"false_positives": 0.0}, "false_positives: 0.0 is no share"),
        ({"classifier": Path("/absent")}, "classifier: there is no /absent"),
        ({"reidentification": Path("/absent")}, "reidentification: there is no /absent"),
        ({"real": Path("/absent")}, "^real: no prepared data set at /absent"),
        ({"synthetic": Path("/absent")}, "synthetic: no folder /absent"),
    ],
)
def test_wrong_arguments(
    real: Path, synthetic: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    default: dict[str, Any] = {
        "real": real,
        "synthetic": synthetic,
        "out": tmp_path / "out",
        "extractor": ["fixed"],
        "axes": FAST,
    }
    with pytest.raises(UserError, match=message):
        evaluate(**(default | arguments))
    assert not (tmp_path / "out").exists()


def test_real_given_twice(real: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"synthetic: .* is a prepared"):
        evaluate(
            real,
            tmp_path / "real" / ".." / "real",
            tmp_path / "out",
            extractor=["fixed"],
            axes=FAST,
        )


def test_generator_of_another_size(
    real: Path, synthetic: Path, encoder: Path, tmp_path: Path
) -> None:
    generator = _make_generator(tmp_path / "generator", size=64)
    with pytest.raises(UserError, match=r"generator: .* images of 64 pixels but .* 32"):
        evaluate(
            real,
            synthetic,
            tmp_path / "out",
            encoder=encoder,
            generator=generator,
            extractor=["fixed"],
            axes=FAST,
        )


def test_out_that_holds_something_else(real: Path, synthetic: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    for out in (tmp_path / "out", tmp_path / "out" / "thesis.txt", real, synthetic):
        with pytest.raises(UserError, match=r"out: .* exists and holds no evaluation"):
            evaluate(real, synthetic, out, extractor=["fixed"], axes=FAST)
    for folder in (real, synthetic):
        with pytest.raises(UserError, match=r"out: .* lies in the (real|synthetic) data set"):
            evaluate(real, synthetic, folder / "out", extractor=["fixed"], axes=FAST)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_a_crash_loses_nothing_and_finished_axes_are_kept(
    real: Path, synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    settings: dict[str, Any] = {"extractor": ["fixed"], "axes": ["fidelity", "privacy"]}
    evaluate(real, synthetic, out, **settings, bootstrap=0)
    before, calls = (out / "metrics.json").read_text(), []

    def fail(inputs: Any) -> AxisResult:
        raise OSError("disk full")

    def fidelity(inputs: Any) -> AxisResult:
        calls.append(1)
        return real_fidelity(inputs)

    real_fidelity, real_privacy = module.AXES["fidelity"], module.AXES["privacy"]
    monkeypatch.setitem(module.AXES, "fidelity", fidelity)
    monkeypatch.setitem(module.AXES, "privacy", fail)
    with pytest.raises(OSError, match="disk full"):
        evaluate(real, synthetic, out, **settings, bootstrap=20)
    assert (out / "metrics.json").read_text() == before
    monkeypatch.setitem(module.AXES, "privacy", real_privacy)
    evaluate(real, synthetic, out, **settings, bootstrap=20)
    assert len(calls) == 1
    assert {r["axis"] for r in _metrics(out)["records"]} == {"fidelity", "privacy"}
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("feature_cache", "out", "real", "synthetic"),
    ]
    # Other arguments begin anew.
    monkeypatch.setitem(module.AXES, "privacy", fail)
    with pytest.raises(OSError, match="disk full"):
        evaluate(real, synthetic, out, **settings, bootstrap=20)
    monkeypatch.setitem(module.AXES, "privacy", real_privacy)
    evaluate(real, synthetic, out, **settings, bootstrap=21)
    assert len(calls) == 3


def test_no_number_no_evaluation(
    real: Path, synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.AXES, "fidelity", lambda inputs: AxisResult())
    with pytest.raises(UserError, match="as no number could be made"):
        evaluate(real, synthetic, tmp_path / "out", extractor=["fixed"], axes=["fidelity"])
    assert not (tmp_path / "out").exists()


def test_without_labels_conditions_are_left_out(
    real: Path, synthetic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (synthetic / "train.csv").unlink()
    (synthetic / "manifest.json").unlink()
    out = tmp_path / "out"
    evaluate(real, synthetic, out, extractor=["fixed"], bootstrap=0)
    assert "have no labels" in capsys.readouterr().out
    content = _metrics(out)
    assert content["conditions"] == []
    assert {r["axis"] for r in content["records"]} == {"fidelity", "privacy"}
    assert {s["axis"] for s in content["skipped"]} >= {"representation", "condition", "utility"}
    assert _records(out)["fid", "all"]["n_real"] == 48
    assert {p.name for p in (out / "grids").iterdir()} == {"all_generated.png", "all_original.png"}


def test_grid() -> None:
    images = np.stack([np.full((3, 2), value, dtype=np.uint8) for value in range(10, 70, 10)])
    sheet = np.asarray(make_grid(images))
    assert sheet.shape == (7, 11)
    assert sheet[0, 3] == 20
    assert sheet[4, 3] == 60
    assert sheet[3].max() == 0
    assert np.asarray(make_grid(images[:2])).shape == (3, 5)
