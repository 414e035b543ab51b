"""`cxr edit` on tiny generators, through the command line."""

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

from cxr_lightning.artifacts import product_sha256
from cxr_lightning.cli import main
from cxr_lightning.commands.generate import generate
from cxr_lightning.commands.sampling import SamplingOptions
from cxr_lightning.data.dataset import table_condition
from cxr_lightning.data.policies import LabelPolicy
from cxr_lightning.data.prepared import open_prepared
from cxr_lightning.data.transforms import to_image, to_model
from cxr_lightning.data.vocabulary import parse_condition, state_finding
from cxr_lightning.diffusion.direction import condition_direction
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.random import ImageNoise
from cxr_lightning.diffusion.samplers import Sampling

Run = Callable[..., dict[str, Any]]
LATENT = 6


@pytest.fixture
def run(products: Path, prepared: Path, tmp_path: Path) -> Run:
    """Runs the command: 2 images at 3 strengths, 2 steps, one a batch; returns images.json."""

    def apply(*args: object, model: str = "generator", name: str = "sheet") -> dict[str, Any]:
        settings = ["--rows", 2, "--strength", -1.5, 0, 1, "--steps", 2, "--batch_size", 1]
        paths = ["--out", tmp_path / f"{name}.png", "--singles", tmp_path / name]
        what = ["--data", prepared, "--finding", "pleural effusion"]
        given = ["--model", products / model, *what, *paths, *settings, "--device", "cpu", *args]
        main(["edit", *map(str, given)])
        content: dict[str, Any] = json.loads((tmp_path / name / "images.json").read_text())
        return content

    return apply


@pytest.fixture
def fails(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command, which must say what is wrong and write nothing."""

    def apply(*args: object, model: str = "generator") -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as stop:
            run(*args, model=model)
        assert stop.value.code == 2
        assert sorted(tmp_path.rglob("*")) == before
        said = capsys.readouterr().err.splitlines()[-1]
        return said.removeprefix("cxr edit: error: ")

    return apply


@pytest.fixture
def relabel(prepared: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies the prepared set and changes columns of its training rows."""

    def apply(**columns: Any) -> Path:
        folder = shutil.copytree(prepared, tmp_path / "relabelled")
        table = pd.read_csv(folder / "table.csv", dtype=str, keep_default_na=False)
        train = table["split"] == "train"
        for name, values in columns.items():
            table.loc[train, name.replace("_", " ")] = np.resize(values, train.sum())
        table.to_csv(folder / "table.csv", index=False)
        return folder

    return apply


@pytest.fixture
def vector(products: Path, prepared: Path) -> torch.Tensor:
    """The direction of pleural effusion, from the training images whose label is known."""
    data, generator = open_prepared(prepared), Generator.from_pretrained(products / "generator")
    train = torch.from_numpy(np.flatnonzero(data.table["split"] == "train"))
    condition = table_condition(data.table, LabelPolicy()).rows(train)
    images = torch.from_numpy(np.array(data.images)).unsqueeze(1)[train]
    found = condition_direction(generator.encode(to_model(images)), condition, "Pleural Effusion")
    assert found is not None
    return found


def tile(folder: Path, row: int, column: int) -> np.ndarray:
    return np.asarray(Image.open(folder / f"row{row:03d}_column{column:03d}.png"))


def test_strength_0_is_the_image_of_cxr_generate(run, products, tmp_path):
    run("--condition", "healthy", "--seed", 3)
    generate(
        products / "generator",
        tmp_path / "set",
        condition="healthy",
        count=2,
        seed=3,
        sampling=SamplingOptions(steps=2),
        batch_size=1,
        device="cpu",
    )
    for row in (0, 1):
        plain = Image.open(tmp_path / f"set/train/patient{row + 1:05d}/study1/view1_frontal.png")
        assert np.array_equal(tile(tmp_path / "sheet", row, 1), np.asarray(plain))
        for column in (0, 2):
            assert not np.array_equal(tile(tmp_path / "sheet", row, column), np.asarray(plain))


@pytest.mark.parametrize("switch", [False, True])
def test_an_edit_is_the_direction_added_with_the_noise_kept(
    run, products, tmp_path, vector, switch
):
    run("--condition", "healthy", *(["--switch"] if switch else []))
    generator = Generator.from_pretrained(products / "generator")
    asked = parse_condition("healthy").request(1)
    for row in (0, 1):
        for column, strength in enumerate((-1.5, 0.0, 1.0)):
            noise = ImageNoise(0, torch.tensor([row]))
            z = generator.draw_latent(asked, noise) + strength * vector
            shown = asked
            if switch and strength:
                shown = state_finding(asked, "Pleural Effusion", strength > 0)
            made = to_image(generator.refine(z, shown, noise, Sampling(steps=2)))[0, 0].numpy()
            difference = made.astype(int) - tile(tmp_path / "sheet", row, column)
            assert np.abs(difference).max() <= 1  # the codes of a batch are a rounding away
            assert (difference != 0).mean() < 0.01


def test_given_radiographs_are_edited_and_stand_at_the_left(
    run, products, prepared, tmp_path, vector
):
    pixels = np.array(open_prepared(prepared).images[:3])
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(file)
    content = run("--images", *files)
    picture = Image.open(tmp_path / "sheet.png")
    sheet = np.asarray(picture)
    assert sheet.shape == (3 * 34 + 2, 4 * 34 + 2)
    assert picture.text["Synthetic"] == "partly"
    assert content["images"][3] == {
        "file": "row001_column000.png",
        "row": 1,
        "column": 0,
        "strength": -1.5,
        "condition": "unknown",
        "index": 1,
        "image": str(files[1]),
    }
    generator = Generator.from_pretrained(products / "generator")
    unknown = parse_condition("healthy").request(1).keep(torch.zeros(1, 1, dtype=torch.bool))
    for row, image in enumerate(pixels):
        assert np.array_equal(sheet[2 + 34 * row :, 2:][:32, :32], image)
        shown = to_model(torch.from_numpy(image)[None, None])
        made = generator.reconstruct(shown, unknown, torch.tensor([row]), Sampling(steps=2))
        assert np.array_equal(tile(tmp_path / "sheet", row, 1), to_image(made)[0, 0].numpy())


def test_contents_say_what_each_image_is(run, products, prepared, tmp_path, vector, capsys):
    content = run("--condition", "healthy", "--switch", "--seed", 5)
    data = open_prepared(prepared)
    train = data.table[data.table["split"] == "train"]
    present = int((train["Pleural Effusion"] == 1).sum())
    # known without it: stated, or implied by No Finding
    absent = int(((train["Pleural Effusion"] == 0) | (train["No Finding"] == 1)).sum())
    direction = content.pop("direction")
    assert (direction["present"], direction["absent"]) == (present, absent)
    assert direction["length"] == pytest.approx(float(vector.norm()), rel=1e-3)
    assert 0.0 <= direction["auroc"] <= 1.0
    expected = {
        "kind": "edit",
        "product_sha256": product_sha256(products / "generator"),
        "data": {"path": str(prepared), "sha256": data.sha256},
        "finding": "Pleural Effusion",
        "seed": 5,
        "steps": 2,
    }
    assert {key: content[key] for key in expected} == expected
    stated = [image.get("stated") for image in content["images"]]
    assert stated == [False, None, True] * 2
    said = capsys.readouterr().out
    assert (
        f"direction of Pleural Effusion: {present} training images with it, {absent} with" in said
    )


def test_batch_size_changes_no_picture_beyond_a_rounding(run, tmp_path):
    run(name="one")
    run("--batch_size", 4, name="four")
    for row in (0, 1):
        for column in range(3):
            a, b = (tile(tmp_path / name, row, column).astype(int) for name in ("one", "four"))
            assert np.abs(a - b).max() <= 1
            assert (a != b).mean() <= 0.01


def test_few_images_are_warned_of(run, relabel, capsys):
    data = relabel(Fracture=["1.0", *["0.0"] * 9])
    run("--data", data, "--finding", "fracture")
    assert "warning: fewer than 10 training images on one side" in capsys.readouterr().err


def test_an_edge_that_half_of_the_patients_cannot_tell_is_null(run, relabel, prepared):
    rows = (open_prepared(prepared).table["split"] == "train").sum()
    data = relabel(Fracture=["1.0", *["0.0"] * (rows - 1)])
    content = run("--data", data, "--finding", "fracture")
    assert content["direction"]["auroc"] is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["0.0"], "shows Fracture; choose another --finding or --data."),
        (["-1.0", "", "n/a"], "shows Fracture; choose"),
        (["1.0"], "is known to be without Fracture; choose another --finding or --data."),
    ],
)
def test_a_finding_that_does_not_vary_is_refused(fails, relabel, labels, message):
    data = relabel(Fracture=labels, No_Finding=[""])
    said = fails("--data", data, "--finding", "fracture")
    assert said == f"finding: no training image of {data} {message}" or message in said


def test_a_finding_that_the_view_tells_is_refused(fails, relabel):
    columns = {"Fracture": ["1.0", "0.0"], "AP/PA": ["AP", "PA"], "No Finding": [""]}
    data = relabel(**columns)
    assert "tell Fracture wholly" in fails("--data", data, "--finding", "fracture")


def test_an_unconditional_model_has_nothing_to_edit(fails):
    assert fails(model="uncond").startswith("model: an unconditional model (model.form: uncond)")


def test_another_size_of_the_data_is_refused(fails, tmp_path):
    paths = ["--root", tmp_path / "raw", "--out", tmp_path / "small", "--size", "16"]
    main(["prepare", "--source", "phantom", *map(str, paths), "--patients", "2", "--workers", "1"])
    said = fails("--data", tmp_path / "small")
    assert said.endswith(
        "holds images of 16 pixels, and the model makes images of 32; prepare it with --size 32."
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--finding", "flu"], "finding: 'flu' is no observation; use one of No Finding, "),
        (["--strength", 1, "inf"], "strength: inf is not possible; use a number."),
        (["--strength", "strong"], "strength: strong is not possible; use a number."),
        (["--rows", 0], "rows: 0 is not possible; use 1 or more."),
        (["--seed", -1], "seed: -1 is not possible; use 0 or more."),
        (["--steps", 51], "steps: 51 is not possible"),
        (["--out", "sheet.jpg"], "out: sheet.jpg is no PNG file"),
        (["--condition", "flu"], "condition: 'flu' in 'flu' is not a health condition"),
        (["--condition", "edema,healthy"], "condition: 2 are given; give 1 at most."),
        (["--images", "a.png"], "images: a.png cannot be read (no such file)"),
        (["--data", "nowhere"], "data: no prepared data set at nowhere"),
        (["--model", "nowhere"], "model: no product at nowhere"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(fails, args, message):
    assert fails(*args).startswith(message)
